"""Reads a run's configuration: defaults, then a `base` file, then the file, then the command line.

In: a path or the name of a shipped configuration, and `--section.key value` arguments. Out: a frozen RunConfig and the
origin of each of its values. Knows nothing of what follows from the values: that is the plan's.
"""

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from megagpt.config import RunConfig, Section
from megagpt.config_cli import COMMAND_LINE, read_arguments
from megagpt.config_text import nearest, show_value, wanted
from megagpt.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DEFAULT = "default"
_FOLDERS = ("configs/models", "configs/runs", "configs")


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration and where each value came from.

    `origins` maps every dotted key, such as "train.lr", to a file, to "command line", or to "default".
    """

    config: RunConfig
    origins: dict[str, str]

    def value(self, key: str) -> Any:
        """The value at a dotted key."""
        section, _, field = key.partition(".")
        return getattr(getattr(self.config, section), field)

    def describe(self, key: str) -> str:
        """`train.lr = 0.0006 (default)`: how every message about a value begins."""
        return f"{key} = {show_value(self.value(key))} ({self.origins[key]})"


@dataclass(frozen=True)
class _Layer:
    """The values of one source, by dotted key."""

    origin: str
    values: dict[str, Any]


def config_folders() -> list[Path]:
    """Folders in which a configuration is looked for by name: current folder, repository, installed package."""
    roots = [Path.cwd(), Path(__file__).resolve().parent.parent, Path(sys.prefix) / "share" / "megagpt"]
    folders: list[Path] = []
    for root in roots:
        folders += [root / part for part in _FOLDERS if (root / part).is_dir()]
    return list(dict.fromkeys(folders))


def shipped_names() -> list[str]:
    """Every configuration that can be asked for by name, sorted."""
    return sorted({path.stem for folder in config_folders() for path in folder.glob("*.toml")})


def find_config(name_or_path: str) -> Path:
    """The file meant by a path to a TOML file or by a name such as gpt3-175b.

    Raises ConfigError with the nearest names where there is none.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    is_name = path.name == name_or_path and path.suffix != ".toml"
    if not is_name:
        near = nearest(path.stem, shipped_names())
        raise ConfigError(f"{name_or_path}: no such configuration file{_offer(near)}")
    for folder in config_folders():
        if (folder / f"{name_or_path}.toml").is_file():
            return folder / f"{name_or_path}.toml"
    names = shipped_names()
    near = nearest(name_or_path, names)
    there_are = f"; there are {', '.join(names)}, or give the path of a TOML file" if not near else ""
    raise ConfigError(f"no configuration is named {name_or_path!r}{_offer(near)}{there_are}")


def load_config(name_or_path: str | None, arguments: list[str]) -> LoadedConfig:
    """The configuration of a run; `name_or_path` None means the defaults alone.

    Later sources win: defaults, the file named by the file's `base` (one level), the file, `arguments`
    (`--train.lr 3e-4`, `--train.lr=3e-4`). Raises ConfigError with every problem found in any of them.
    """
    problems: list[str] = []
    layers = _file_layers(name_or_path, problems) if name_or_path is not None else []
    layers.append(_Layer(COMMAND_LINE, read_arguments(arguments, problems)))

    values: dict[str, Any] = {}
    origins = dict.fromkeys(config_keys(), DEFAULT)
    for layer in layers:
        values |= layer.values
        origins |= dict.fromkeys(layer.values, layer.origin)

    nested: dict[str, dict[str, Any]] = {}
    for key, value in values.items():
        section, _, field = key.partition(".")
        nested.setdefault(section, {})[field] = value
    try:
        config = RunConfig.model_validate(nested)
    except ValidationError as error:
        raise ConfigError(problems + _value_problems(error, values, origins)) from None
    if problems:
        raise ConfigError(problems)
    return LoadedConfig(config, origins)


def config_keys() -> list[str]:
    """Every dotted key, in the order of the sections."""
    return [f"{name}.{field}" for name, section in _sections().items() for field in section.model_fields]


def dump_toml(config: RunConfig) -> str:
    """The whole configuration as TOML that `load_config` reads back to an equal RunConfig.

    Floats are written with all their digits; values that are unset (None) are left out, as TOML has no null.
    """
    lines: list[str] = []
    for section in RunConfig.model_fields:
        lines.append(f"[{section}]")
        for field, value in getattr(config, section).model_dump().items():
            if value is not None:
                lines.append(f"{field} = {_toml_value(value)}")
        lines.append("")
    return "\n".join(lines)


def _sections() -> dict[str, type[Section]]:
    sections: dict[str, type[Section]] = {}
    for name, info in RunConfig.model_fields.items():
        assert isinstance(info.annotation, type), name
        assert issubclass(info.annotation, Section), name
        sections[name] = info.annotation
    return sections


def _toml_value(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        parts = [f"{key} = {_toml_value(part)}" for key, part in value.items() if part is not None]
        return "{" + ", ".join(parts) + "}"
    assert isinstance(value, tuple), value
    return "[" + ", ".join(_toml_value(item) for item in value) + "]"


def _offer(names: list[str]) -> str:
    return f"; did you mean {' or '.join(names)}?" if names else ""


def _shown_path(path: Path) -> str:
    """The path from the current folder where it lies below it, else in full."""
    absolute = os.path.abspath(path)
    relative = os.path.relpath(absolute)
    return absolute if relative.startswith("..") else relative


def _file_layers(name_or_path: str, problems: list[str]) -> list[_Layer]:
    """The layers of a file and its base, base first."""
    try:
        path = find_config(name_or_path)
    except ConfigError as error:
        problems += error.problems
        return []
    tables = _read_toml(path, problems)
    origin = _shown_path(path)
    base = tables.pop("base", None)
    own = _Layer(origin, _flatten(tables, origin, problems))
    if base is None:
        return [own]
    if not isinstance(base, str):
        problems.append(f"base = {show_value(base)} ({origin}) must be the path of a TOML file, relative to this one")
        return [own]
    base_path = path.parent / base
    if not base_path.is_file():
        problems.append(f"base = {show_value(base)} ({origin}): there is no file {_shown_path(base_path)}")
        return [own]
    base_tables = _read_toml(base_path, problems)
    base_origin = _shown_path(base_path)
    if "base" in base_tables:
        problems.append(
            f"base = {show_value(base_tables.pop('base'))} ({base_origin}): a base file cannot name another base; "
            f"{origin} already builds on this one, so move the values into one of the two"
        )
    return [_Layer(base_origin, _flatten(base_tables, base_origin, problems)), own]


def _read_toml(path: Path, problems: list[str]) -> dict[str, Any]:
    origin = _shown_path(path)
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        problems.append(f"{origin}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        problems.append(f"{origin}:{line}: is not UTF-8 text")
    except tomllib.TOMLDecodeError as error:
        problems.append(_toml_problem(origin, str(error)))
    return {}


def _toml_problem(origin: str, message: str) -> str:
    """`file:line: what is wrong`; tomllib puts the place at the end of its message."""
    match = re.search(r" \(at line (\d+), column (\d+)\)$", message)
    if match is None:
        return f"{origin}: is not valid TOML: {message.removesuffix(' (at end of document)')} (at the end of the file)"
    return f"{origin}:{match[1]}: is not valid TOML: {message[: match.start()]} (column {match[2]})"


def _flatten(tables: dict[str, Any], origin: str, problems: list[str]) -> dict[str, Any]:
    """Values by dotted key; unknown sections and keys become problems with the nearest names."""
    sections = _sections()
    keys = config_keys()
    values: dict[str, Any] = {}
    for name, table in tables.items():
        section = sections.get(name)
        if section is None:
            homes = [key for key in keys if key.endswith(f".{name}")]
            offer = _offer(nearest(name, ["base", *sections]) or homes)
            kind = "section" if isinstance(table, dict) else "key"
            problems.append(f"unknown {kind} {name} ({origin}){offer}")
        elif not isinstance(table, dict):
            problems.append(f"{name} = {show_value(table)} ({origin}) must be a section, written [{name}]")
        else:
            for field, value in table.items():
                key = f"{name}.{field}"
                if key in keys:
                    values[key] = value
                else:
                    near = nearest(field, list(section.model_fields))
                    offers = [f"{name}.{found}" for found in near] or [k for k in keys if k.endswith(f".{field}")]
                    there_are = f"; the keys of [{name}] are {', '.join(section.model_fields)}" if not offers else ""
                    problems.append(f"unknown key {key} ({origin}){_offer(offers)}{there_are}")
    return values


def _value_problems(error: ValidationError, values: dict[str, Any], origins: dict[str, str]) -> list[str]:
    """One problem a key: its value, where it came from and what is wanted."""
    problems: dict[str, str] = {}
    for detail in error.errors(include_url=False):
        key = ".".join(str(part) for part in detail["loc"][:2])
        assert key in values, detail
        problems.setdefault(key, f"{key} = {show_value(values[key])} ({origins[key]}) {wanted(detail)}")
    return list(problems.values())
