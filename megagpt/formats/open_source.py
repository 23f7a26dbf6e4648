"""Which kind of files a folder holds, and the ModelSource of it."""

from pathlib import Path

from megagpt.checkpoint.manifest import LATEST_NAME, MANIFEST_NAME
from megagpt.errors import CheckpointError
from megagpt.formats.checkpoint_source import CheckpointSource
from megagpt.formats.source import ModelSource


def open_source(path: str | Path, verify: bool = True) -> ModelSource:
    """The model in a run folder, checkpoint folder, or a folder of other software that this package reads.

    `verify` checks the hashes of our own checkpoints. Raises CheckpointError saying which files were looked for where
    the folder is none of them, and what a source's class raises.
    """
    path = Path(path)
    if is_checkpoint(path) or not path.exists():
        return CheckpointSource(path, verify)
    raise CheckpointError(
        f"{path} is no model: looked for {MANIFEST_NAME}, checkpoints/{LATEST_NAME} and {LATEST_NAME} of a run or "
        "checkpoint; give such a folder"
    )


def is_checkpoint(path: Path) -> bool:
    """Whether it is a checkpoint or run folder of ours."""
    return any((path / name).is_file() for name in (MANIFEST_NAME, f"checkpoints/{LATEST_NAME}", LATEST_NAME))
