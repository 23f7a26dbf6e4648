"""PREFIX.json beside a dataset: which tokenizer made it, from what, and how much. Knows only JSON."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megagpt.errors import DataError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Source:
    """An input file; `size_bytes` as stored, None for standard input."""

    path: str
    size_bytes: int | None


@dataclass(frozen=True)
class Sidecar:
    """What the .idx cannot say. `text_bytes` is UTF-8; tokens include the end-of-document ids."""

    tokenizer_kind: str
    fingerprint: str
    vocab_size: int
    eod_id: int
    max_token_id: int
    num_documents: int
    num_tokens: int
    text_bytes: int
    sources: tuple[Source, ...]
    skipped: Mapping[str, int]  # reason -> documents left out
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The file's content."""
        return json.dumps(asdict(self), ensure_ascii=False, indent=2) + "\n"


def read_sidecar(path: Path) -> Sidecar | None:
    """The sidecar in `path`; None where the file does not exist. Raises DataError where it is damaged."""
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except UnicodeDecodeError as error:
        raise _damaged(path, str(error)) from error
    try:
        values: dict[str, Any] = json.loads(content)
        version = values["format_version"]
        if version != FORMAT_VERSION:
            raise DataError(
                f"{path} has format version {version}; this program reads {FORMAT_VERSION}: rebuild the dataset"
            )
        values["sources"] = tuple(Source(**source) for source in values["sources"])
        return Sidecar(**values)
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, detail: str) -> DataError:
    return DataError(
        f"{path} is damaged ({detail}); copy it again or rebuild the dataset (without the file the dataset's tokenizer "
        "is unknown)"
    )
