"""How the small files of a run folder are written and read: one whole or not at all, a full disk never ends training.

In: records (frozen dataclasses), paths. Out: JSON on the disk, and records again. Must not import anything heavy:
`megagpt runs` reads these files of hundreds of runs.
"""

import json
import os
from collections.abc import Callable
from dataclasses import MISSING, fields
from datetime import datetime, timezone
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_origin

Record = TypeVar("Record")


def utc_now() -> str:
    """The time as the files have it: `2026-11-23T12:07:20+00:00`."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def seconds_since(time: str) -> float | None:
    """Seconds from a time of `utc_now` until now; None where it is no such time."""
    try:
        return (datetime.now(timezone.utc) - datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError):
        return None


def shown_time(time: str) -> str:
    """`2026-11-23 12:07:20 UTC` of a time of `utc_now`."""
    return time.replace("T", " ").replace("+00:00", " UTC")


def append_line(path: Path, line: str) -> None:
    """Add a line to a file and bring it to the disk. A line that a crash cut short is ended first. Raises OSError."""
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else "\n" + line
        file.write(line.encode("utf-8") + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_json(path: Path) -> Any:
    """The value in a JSON file; None where there is none that can be read."""
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def record_from(kind: type[Record], values: Any) -> Record | None:
    """A record of `values` read from JSON; None where it lacks a field or one is of another type.

    Fields that this megagpt does not know are left out: a newer one wrote them.
    """
    if not isinstance(values, dict):
        return None
    known = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in values:
            if field.default is MISSING:
                return None
            continue
        value = values[field.name]
        value = tuple(value) if isinstance(value, list) else value
        wanted: Any = field.type if isinstance(field.type, UnionType) else get_origin(field.type) or field.type
        if not isinstance(value, wanted):
            return None
        known[field.name] = value
    return kind(**known)


class CarefulWriter:
    """Runs what writes files; where the disk refuses, says so once for each file and lets training go on."""

    def __init__(self, on_trouble: Callable[[str], None]) -> None:
        self._on_trouble = on_trouble
        self._refused: set[Path] = set()

    def write(self, path: Path, action: Callable[[], None]) -> None:
        """Run `action`, which writes `path`."""
        try:
            action()
            self._refused.discard(path)
        except OSError as error:
            if path not in self._refused:
                self._refused.add(path)
                self._on_trouble(
                    f"{path} could not be written: {error.strerror}; training goes on; free space on the disk of "
                    "run.folder or give this user rights there"
                )
