"""Words of messages about configuration values: the nearest name, a value as TOML writes it, what a key wants.

Pure text: knows nothing of files or of the command line.
"""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_TYPES = {
    "int_type": "must be a whole number, such as 12",
    "int_from_float": "must be a whole number, such as 12",
    "int_parsing": "must be a whole number, such as 12",
    "float_type": "must be a number, such as 0.1 or 6e-4",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "string_type": 'must be text in quotes, such as "abc"',
    "string_too_short": "must not be empty",
}


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """At most two of `names` that `name` may have been meant to be, nearest first."""
    return difflib.get_close_matches(name, list(names), n=2, cutoff=0.6)


def show_value(value: object) -> str:
    """A value as a user writes it in TOML; None reads `unset`."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f'"{value}"'
    if hasattr(value, "model_dump"):  # a part of the configuration; pydantic is not imported here: it is slow
        return show_value(value.model_dump(exclude_none=True))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(show_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {show_value(item)}" for key, item in value.items()) + "}"
    return str(value)


def any_of(values: Sequence[object]) -> str:
    """`1, 2 or 4`."""
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


def wanted(detail: Mapping[str, Any]) -> str:
    """What pydantic's error `detail` says the value must be, in our words."""
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind == "literal_error":
        return f"must be {context['expected'].replace(chr(39), chr(34))}"
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"must be {words} {context[name]:g}"
    assert kind in _TYPES, detail
    return _TYPES[kind]
