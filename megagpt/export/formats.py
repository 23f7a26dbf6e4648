"""The formats of `megagpt export`: a name for --format, help, and the class that writes and proves it.

To add one: a module with an `Exporter` (exporter.py) and a line here. Modules are imported when they are used.
"""

import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from megagpt.config_text import nearest
from megagpt.errors import ConfigError

if TYPE_CHECKING:
    from megagpt.export.exporter import Exporter


class ExportFormat(NamedTuple):
    """One line of the table."""

    help: str
    exporter: str  # module:class


FORMATS: Mapping[str, ExportFormat] = MappingProxyType(
    {
        "hf": ExportFormat(
            "Hugging Face transformers, GPT-2 architecture", "megagpt.export.huggingface:HuggingFaceExporter"
        ),
    }
)


def find_exporter(name: str) -> "Exporter":
    """The exporter of a format's name. Raises ConfigError for an unknown one."""
    if name not in FORMATS:
        near = nearest(name, list(FORMATS))
        offer = f"did you mean {' or '.join(near)}?" if near else f"use {', '.join(FORMATS)}"
        raise ConfigError(f"export format {name!r} is unknown; {offer}")
    module, _, attribute = FORMATS[name].exporter.partition(":")
    exporter: Exporter = getattr(importlib.import_module(module), attribute)()
    assert exporter.format == name, (exporter.format, name)
    return exporter
