"""Configuration values on the command line: `--section.key value`, generated from the fields of RunConfig.

In: arguments. Out: values by dotted key. Knows nothing of files, nor of the other options of a command.
"""

import argparse
import sys
from typing import Any, Literal, NoReturn, get_args, get_origin

from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from megagpt.config import RunConfig
from megagpt.config_text import nearest
from megagpt.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

COMMAND_LINE = "command line"


class CommandParser(argparse.ArgumentParser):
    """Raises ConfigError where argparse would print its own message and leave the process."""

    def error(self, message: str) -> NoReturn:
        """The message with the command's name and where to look."""
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


class _CommandLineConfig(RunConfig, BaseSettings):  # type: ignore[misc]
    """RunConfig in the form from which pydantic-settings makes arguments; never filled itself."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True)


def config_arguments_help(parser: argparse.ArgumentParser) -> None:
    """Lists every `--section.key` with its description, type and default in the parser's `--help`.

    The values themselves are taken out by `split_arguments` before the parser sees them.
    """
    CliSettingsSource(_CommandLineConfig, root_parser=parser, cli_avoid_json=True, cli_hide_none_type=True)


def split_arguments(argv: list[str]) -> tuple[list[str], list[str]]:
    """`argv` in two: a command's own arguments, and those of the form `--section.key value` or `--section.key=value`.

    A flag with a dot in its name is a configuration flag, known or not; the argument after it is its value unless it
    is a flag itself. Everything after a bare `--` is the command's own.
    """
    own: list[str] = []
    config: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            own += [argument, *rest]
            break
        name, equals, _ = argument.partition("=")
        if not (name.startswith("--") and "." in name):
            own.append(argument)
            continue
        config.append(argument)
        if not equals and rest and not rest[0].startswith("--"):
            config.append(rest.pop(0))
    return own, config


def unknown_argument(argument: str, known: list[str]) -> str:
    """The message for an argument that a command does not know; `known` are its own flags, such as `--gpus`."""
    name = argument.partition("=")[0]
    flags = [*known, *(f"--{key}" for key in _keys())]
    near = [flag for flag in flags if flag.endswith("." + name.lstrip("-"))][:2] or nearest(name, flags)
    return f"unknown argument {name} (command line)" + (f"; did you mean {' or '.join(near)}?" if near else "")


def read_arguments(arguments: list[str], problems: list[str]) -> dict[str, Any]:
    """Values by dotted key. `null` or `none` unsets a value that may be unset.

    Values that do not parse are returned as the text they are, for the validation to refuse with their origin.
    Unknown flags and flags without a value are added to `problems`.
    """
    keys = _keys()
    accepted: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.partition("=")
        if not equals and rest and not rest[0].startswith("--"):
            equals, value = "=", rest.pop(0)
        if name.removeprefix("--") not in keys or not name.startswith("--"):
            problems.append(unknown_argument(name, []))
        elif not equals:
            problems.append(f"{name} (command line) needs a value, as in {name} VALUE")
        else:
            accepted[name] = value
    return {name.removeprefix("--"): _typed(name.removeprefix("--"), value) for name, value in accepted.items()}


def _keys() -> list[str]:
    return [
        f"{name}.{field}"
        for name, info in RunConfig.model_fields.items()
        for field in info.annotation.model_fields  # type: ignore[union-attr]
    ]


def _typed(key: str, text: str) -> Any:
    """The value that `text` stands for in the type of `key`, or `text` itself where it stands for none.

    Done here as the sections are strict, and pydantic-settings turns text into numbers differently from version to
    version (2.14 leaves it text).
    """
    section, _, field = key.partition(".")
    annotation: Any = RunConfig.model_fields[section].annotation
    kind = annotation.model_fields[field].annotation
    if type(None) in get_args(kind):
        if text in ("null", "none"):
            return None
        kind = next(option for option in get_args(kind) if option is not type(None))
    if key == "data.corpora":
        return _toml(text)
    if get_origin(kind) is tuple:
        parts = [_number(part.strip(), float) for part in text.strip().removeprefix("[").removesuffix("]").split(",")]
        return text if any(isinstance(part, str) for part in parts) else parts
    if get_origin(kind) is Literal:
        return next((choice for choice in get_args(kind) if str(choice) == text), text)
    if kind is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    return text if kind is str else _number(text, kind)


def _toml(text: str) -> Any:
    """A value as a file has it, or the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _number(text: str, kind: type[int] | type[float]) -> int | float | str:
    try:
        return kind(text)
    except ValueError:
        return text
