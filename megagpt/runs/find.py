"""Which run folders lie in and below a folder. In: folders. Out: run folders, and what could not be looked into."""

import os
from pathlib import Path
from typing import NamedTuple

from megagpt.errors import ConfigError
from megagpt.training.run_record import SESSIONS_FILE
from megagpt.training.run_state import METRICS_FILE

_DEEPEST = 6  # folders below the one that was asked for


class FoundRuns(NamedTuple):
    """Run folders, in the order of their names, and a line for each folder that could not be read."""

    folders: list[Path]
    unreadable: list[str]


def find_runs(roots: list[Path]) -> FoundRuns:
    """The run folders among `roots` and below them; those inside a run folder are not looked for.

    Raises ConfigError where one of `roots` is no folder.
    """
    found = FoundRuns([], [])
    seen: set[str] = set()
    for root in roots:
        if not root.is_dir():
            raise ConfigError(f"{root} is no folder; name run folders, or folders that hold some: megagpt runs FOLDER")
        _look(root, 0, found, seen)
    return found


def is_run(names: set[str]) -> bool:
    """Whether a folder with these names in it is a run's. Runs of an earlier megagpt have no record of sessions."""
    return SESSIONS_FILE in names or ("config.toml" in names and bool(names & {METRICS_FILE, "checkpoints"}))


def _look(folder: Path, depth: int, found: FoundRuns, seen: set[str]) -> None:
    real = os.path.realpath(folder)
    if real in seen:  # named twice, or a link to a folder above
        return
    seen.add(real)
    try:
        with os.scandir(folder) as entries:
            names = {entry.name: entry.is_dir() for entry in entries}
    except OSError as error:
        found.unreadable.append(f"{folder} could not be read: {error.strerror}")
        return
    if is_run(set(names)):
        found.folders.append(folder)
    elif depth < _DEEPEST:
        for name in sorted(name for name, is_folder in names.items() if is_folder and not name.startswith(".")):
            _look(folder / name, depth + 1, found, seen)
