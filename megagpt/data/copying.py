"""Bytes from one file to another without a detour through Python. In: two files, where, how many. Out: the way used."""

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from megagpt.errors import DataError

_CALL_BYTES = 64 << 20  # one call's share: what a progress bar waits for
_READ_BYTES = 8 << 20
# What a system or file system answers that cannot copy so.
_UNSUPPORTED = frozenset((errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM))


class CopyWay(NamedTuple):
    """A way to copy: (source, target, source offset, target offset, bytes) to the bytes copied, 0 at the end."""

    name: str
    copy: Callable[[int, int, int, int, int], int]


def copy_ways() -> list[CopyWay]:
    """What this system has, the fastest first: within the file system, within the kernel, through a buffer."""
    ways = [CopyWay("read and write", _read_write)]
    if hasattr(os, "sendfile"):
        ways.insert(0, CopyWay("sendfile", _sendfile))
    if hasattr(os, "copy_file_range"):
        ways.insert(0, CopyWay("copy_file_range", _copy_file_range))
    return ways


def append_file(
    path: Path, num_bytes: int, target: int, at: int, ways: Sequence[CopyWay], on_copied: Callable[[int], None]
) -> str:
    """Copy the first `num_bytes` of `path` to offset `at` of the file descriptor `target`; the name of the way used.

    A way that this file system does not know is passed over for the next. `on_copied` gets the bytes of each step.
    Raises DataError where the file ends early, OSError where the disk is full.
    """
    source = os.open(path, os.O_RDONLY)
    try:
        done, used = 0, 0
        while done < num_bytes:
            try:
                step = ways[used].copy(source, target, done, at + done, min(num_bytes - done, _CALL_BYTES))
            except OSError as error:
                if error.errno not in _UNSUPPORTED or used + 1 == len(ways):
                    raise
                used += 1
                continue
            if step == 0 and used + 1 < len(ways):  # some file systems answer so where they cannot
                used += 1
                continue
            if step == 0:
                raise DataError(f"{path} became shorter while it was copied; do not write to it, and merge again")
            done += step
            on_copied(step)
        return ways[used].name
    finally:
        os.close(source)


def _copy_file_range(source: int, target: int, source_at: int, target_at: int, num_bytes: int) -> int:
    return os.copy_file_range(source, target, num_bytes, source_at, target_at)


def _sendfile(source: int, target: int, source_at: int, target_at: int, num_bytes: int) -> int:
    os.lseek(target, target_at, os.SEEK_SET)
    return os.sendfile(target, source, source_at, num_bytes)


def _read_write(source: int, target: int, source_at: int, target_at: int, num_bytes: int) -> int:
    block = os.pread(source, min(num_bytes, _READ_BYTES), source_at)
    view, at = memoryview(block), target_at
    while view:
        written = os.pwrite(target, view, at)
        view, at = view[written:], at + written
    return len(block)
