"""The checkpoints of a run in the order in which they are tried. In: its folder of checkpoints. Out: folders.

Looks at names alone: what is in a checkpoint, and whether it is whole, is for the one who opens it.
"""

from pathlib import Path
from typing import NamedTuple

from megagpt.checkpoint.commit import checkpoint_folder, read_latest
from megagpt.checkpoint.file_record import reading
from megagpt.checkpoint.manifest import parse_step, step_folder
from megagpt.checkpoint.retention import saved_steps


class Candidates(NamedTuple):
    """What a folder of checkpoints holds."""

    latest: Path | None  # what `latest` names, whether it is there or not; None: there is no such file
    others: tuple[Path, ...]  # first those older than `latest`, then those newer, each from the newest on

    @property
    def all(self) -> tuple[Path, ...]:
        """In the order in which they are tried."""
        return (*((self.latest,) if self.latest else ()), *self.others)


def find_candidates(checkpoints: Path) -> Candidates:
    """The checkpoints of a run; empty where it has none yet. Raises CheckpointError where the folder may not be read.

    A save that was killed may have left a whole checkpoint newer than `latest`; but so does one who turns `latest`
    back, and that was meant: what is newer than `latest` comes last.
    """
    with reading(checkpoints):
        if not checkpoints.is_dir():
            return Candidates(None, ())
        name = read_latest(checkpoints)
        steps = saved_steps(checkpoints)[::-1]
    latest_step = parse_step(name) if name is not None else None
    if latest_step is not None:
        older = [step for step in steps if step < latest_step]
        steps = older + [step for step in steps if step > latest_step]
    latest = checkpoint_folder(checkpoints, name) if name is not None else None
    return Candidates(latest, tuple(checkpoints / step_folder(step) for step in steps))
