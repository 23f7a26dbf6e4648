"""Which checkpoint a run continues from: the newest that is whole, or the latest and no other. No communication.

In: the folder of checkpoints, `checkpoint.resume`, and those that were found damaged when they were read. Out: a
checkpoint of this run with its manifest, or the error that says what to do. What is damaged is passed over and told;
what is not of this run is an error.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from megagpt.checkpoint.candidates import find_candidates
from megagpt.checkpoint.manifest import LATEST_NAME, Manifest
from megagpt.config_file import LoadedConfig
from megagpt.errors import CheckpointError, ConfigError, DamagedCheckpointError


class PassedOver(NamedTuple):
    """A damaged checkpoint, and what is wrong with it."""

    folder: Path
    why: str


class ResumeChoice(NamedTuple):
    """The checkpoint to continue from, if any, and those before it that are damaged."""

    checkpoint: tuple[Path, Manifest] | None
    damaged: tuple[PassedOver, ...]


def choose_checkpoint(
    loaded: LoadedConfig,
    checkpoints: Path,
    check: Callable[[Path], Manifest],
    damaged: tuple[PassedOver, ...] = (),
) -> ResumeChoice:
    """The first checkpoint that `check` accepts, without those that are known as `damaged`.

    `check` raises DamagedCheckpointError for one that is damaged, and CheckpointError for one that is not of this run.
    Raises ConfigError, or CheckpointError where every checkpoint is damaged: a run never starts anew beside them.
    """
    found = find_candidates(checkpoints)
    policy = loaded.config.checkpoint.resume
    if policy == "never" and found.all:
        raise ConfigError(
            f"{loaded.describe('checkpoint.resume')}, but {checkpoints} holds a checkpoint ({found.all[0].name}); "
            'use "auto" to continue from it, or choose another run.folder'
        )
    if policy == "latest":
        if found.latest is None:
            raise CheckpointError(
                f"{loaded.describe('checkpoint.resume')}, but there is no {checkpoints / LATEST_NAME}; "
                'use "auto", which starts anew where there is no checkpoint'
            )
        return ResumeChoice((found.latest, _checked(found.latest, check)), ())
    known = {passed.folder for passed in damaged}
    for folder in found.all:
        if folder in known:
            continue
        try:
            return ResumeChoice((folder, _checked(folder, check)), damaged)
        except DamagedCheckpointError as error:
            damaged = (*damaged, PassedOver(folder, str(error)))
    if damaged:
        each = "; ".join(f"{passed.folder.name}: {passed.why}" for passed in damaged)
        raise CheckpointError(
            f"every checkpoint in {checkpoints} is damaged: {each}. Bring one back from a copy, or choose another "
            "run.folder to start anew"
        )
    return ResumeChoice(None, ())


def _checked(folder: Path, check: Callable[[Path], Manifest]) -> Manifest:
    if not folder.is_dir():  # the others were found by looking for folders
        raise DamagedCheckpointError(
            f"{folder.parent / LATEST_NAME} names {folder.name}, which is not there; write the name of a checkpoint "
            "into it"
        )
    return check(folder)


def describe_damage(damaged: tuple[PassedOver, ...]) -> list[str]:
    """A line for each damaged checkpoint."""
    return [f"checkpoint {passed.folder.name} is passed over: {passed.why}" for passed in damaged]
