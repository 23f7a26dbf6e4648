"""How a checkpoint comes to exist, whole or not at all: the names it has until then. Rank 0 alone; no communication.

    step-00000100.writing     being written; becomes step-00000100 once everything in it is on the disk
    step-00000100.replaced    the checkpoint of the same step that was there before; goes once the new one is in place
    step-00000100.removing    being removed

What a killed save leaves under these names is cleared by the next one. Between the two renames of a replacement the
step's own name is missing: `checkpoint_folder` finds the one before under its other name then.
"""

import shutil
from pathlib import Path

from megagpt.checkpoint.manifest import LATEST_NAME, parse_step, write_durably
from megagpt.durable import flush_folder

WRITING, REPLACED, REMOVING = ".writing", ".replaced", ".removing"


def checkpoint_folder(checkpoints: Path, name: str) -> Path:
    """The folder of a checkpoint's name, as `latest` has it; what it held before where a replacement was cut short."""
    folder = checkpoints / name
    replaced = checkpoints / (name + REPLACED)
    return replaced if name and not folder.exists() and replaced.is_dir() else folder


def read_latest(checkpoints: Path) -> str | None:
    """The name in `latest`, whatever it is, or None where there is no such file."""
    path = checkpoints / LATEST_NAME
    return path.read_bytes().decode("utf-8", "replace").strip() if path.is_file() else None


def start_folder(target: Path) -> Path:
    """Clear what killed saves left, and make the folder in which `target` is written. Raises OSError."""
    checkpoints = target.parent
    if not checkpoints.is_dir():
        checkpoints.mkdir(parents=True)
        flush_folder(checkpoints.parent)
    clear_leftovers(checkpoints)
    writing = target.with_name(target.name + WRITING)
    writing.mkdir()
    return writing


def clear_leftovers(checkpoints: Path) -> None:
    """Remove what killed saves and removals left; a checkpoint whose replacement never came gets its name back."""
    for path in sorted(checkpoints.iterdir()):
        if path.suffix not in (WRITING, REPLACED, REMOVING) or parse_step(path.stem) is None:
            continue
        if path.suffix == REPLACED and not path.with_suffix("").exists():
            path.rename(path.with_suffix(""))
        else:
            shutil.rmtree(path)


def commit_folder(writing: Path, target: Path) -> None:
    """Give a folder that is whole and on the disk its name, then point `latest` to it. Raises OSError.

    A checkpoint that is there already, as after a resume from an older one, goes aside first and is removed last.
    """
    replaced = target.with_name(target.name + REPLACED)
    if target.exists():
        target.rename(replaced)
    writing.rename(target)
    flush_folder(target.parent)
    write_durably(target.parent / LATEST_NAME, target.name + "\n")
    if replaced.exists():
        shutil.rmtree(replaced)
