"""Which checkpoints of a run are kept: the newest ones, every n-th step's, and the one that `latest` names.

In: a folder of checkpoints. Out: those that may go. Pure but for listing and removing folders.
"""

import shutil
from pathlib import Path

from megagpt.checkpoint.commit import REMOVING, read_latest
from megagpt.checkpoint.manifest import parse_step, step_folder


def saved_steps(checkpoints: Path) -> list[int]:
    """Steps of the checkpoints in a folder, ascending; one that is being written has another name and is not among
    them."""
    found = (parse_step(path.name) for path in checkpoints.iterdir() if path.is_dir())
    return sorted(step for step in found if step is not None)


def removable_steps(steps: list[int], keep: int, keep_every_steps: int, spared: int | None) -> list[int]:
    """The steps that are neither of the `keep` newest, nor a multiple of `keep_every_steps` (0: none), nor `spared`."""
    assert keep >= 1, keep
    older = sorted(steps)[:-keep]
    return [step for step in older if step != spared and not (keep_every_steps and step % keep_every_steps == 0)]


def latest_step(checkpoints: Path) -> int | None:
    """The step that `latest` names, or None where it names none."""
    name = read_latest(checkpoints)
    return parse_step(name) if name is not None else None


def remove_steps(checkpoints: Path, steps: list[int]) -> None:
    """Remove the checkpoints of these steps. Each is renamed first: half of one must not look whole."""
    for step in steps:
        folder = checkpoints / step_folder(step)
        doomed = folder.with_name(folder.name + REMOVING)
        shutil.rmtree(doomed, ignore_errors=True)  # left by a removal that was killed
        folder.rename(doomed)
        shutil.rmtree(doomed)
