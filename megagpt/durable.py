"""Names that last. In: a folder, or a small file's path and text. Out: what is on the disk, whole or not at all."""

import errno
import os
from contextlib import suppress
from pathlib import Path

from megagpt.errors import DataError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a rename in it survives a power loss."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_file(path: Path, text: str) -> None:
    """Put a small file in UTF-8 in the place of another, so that a reader sees the one or the other. Raises OSError.

    Nothing is left under the temporary name.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)
    finally:
        with suppress(OSError):  # it has its own name by now, or never was
            partial.unlink()


def write_whole(path: str | Path, text: str) -> None:
    """Write a small file in UTF-8, or leave the one that is there: under a temporary name, which then takes its place.

    Raises DataError where that fails; nothing is left under the temporary name.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        replace_file(Path(path), text)
    except OSError as error:
        fix = "free space on its disk, or choose" if error.errno in FULL_DISK else "choose"
        raise DataError(f"cannot write {path}: {error.strerror}; {fix} another output") from error
