"""The files of one dataset being written, all or nothing. In: a prefix. Out: PREFIX.bin, .idx and perhaps .json.

Everything is written under temporary names (PREFIX.bin.partial …), flushed, and renamed, the .idx last: a dataset with
an .idx is complete. One writer at a time; it does not know what it writes.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from megagpt.data.indexed import dataset_files
from megagpt.durable import FULL_DISK, flush_folder
from megagpt.errors import DataError


class DatasetOutput:
    """A context manager; without `publish` nothing is left behind. `bin` and `idx` are open files, empty at first."""

    def __init__(self, prefix: str | Path, overwrite: bool = False) -> None:
        """Raises DataError where the dataset exists (and not `overwrite`), is being built, or cannot be written."""
        self._targets = dataset_files(prefix)
        self.prefix = str(self._targets[0]).removesuffix(".bin")
        self._overwrite = overwrite
        self._partials = tuple(Path(f"{target}.partial") for target in self._targets)
        self._refuse_existing()
        self._refuse_unfinished_build()
        self.bin: BinaryIO = self._open_locked(self._partials[0])
        self._held = True
        try:
            self.idx: BinaryIO = open(self._partials[1], "wb")  # noqa: SIM115 (closed by publish or abandon)
        except OSError as error:
            self._partials[0].unlink(missing_ok=True)
            self.bin.close()
            raise cannot_write(self._partials[1], error) from error

    @property
    def partial_bin(self) -> Path:
        """The .bin under its temporary name."""
        return self._partials[0]

    def __enter__(self) -> "DatasetOutput":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def finish_writing(self, sidecar: str | None) -> None:
        """Write the sidecar and bring all files to the disk; they keep their temporary names until `publish`."""
        for stream in (self.bin, self.idx):
            stream.flush()
            os.fsync(stream.fileno())
        if sidecar is not None:
            with open(self._partials[2], "wb") as stream:
                stream.write(sidecar.encode("utf-8"))
                stream.flush()
                os.fsync(stream.fileno())

    def publish(self) -> None:
        """Give the finished files their names; an old dataset's files go first, so no mixture is ever complete."""
        self._refuse_existing()
        bin_path, idx_path, json_path = self._targets
        for stale in (idx_path, json_path):
            stale.unlink(missing_ok=True)
        os.replace(self._partials[0], bin_path)
        if self._partials[2].exists():
            os.replace(self._partials[2], json_path)
        os.replace(self._partials[1], idx_path)
        flush_folder(idx_path.parent)
        self._held = False
        self.bin.close()
        self.idx.close()

    def abandon(self) -> None:
        """Remove what was written, unless `publish` was reached."""
        if not self._held:
            return
        self._held = False
        for partial in self._partials:
            partial.unlink(missing_ok=True)
        for stream in (self.idx, self.bin):
            _close_whatever_is_left(stream)

    def _open_locked(self, path: Path) -> BinaryIO:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            same = path.exists() and os.path.samestat(os.fstat(stream.fileno()), os.stat(path))
        except BlockingIOError:
            same = False
        if not same:  # locked by another, or renamed by it since it was opened here: then it is that dataset's .bin
            stream.close()
            raise DataError(f"another process is writing {self._targets[0]} now; wait for it, or choose another output")
        try:
            self._refuse_unfinished_build()  # again: one may have begun, and been killed, before the lock was ours
        except DataError:
            stream.close()
            raise
        stream.truncate(0)  # what a killed process left
        return stream

    def _refuse_existing(self) -> None:
        existing = [path for path in self._targets if path.exists()]
        if existing and not self._overwrite:
            raise DataError(f"{existing[0]} exists; choose another output, or replace it with --overwrite")

    def _refuse_unfinished_build(self) -> None:
        journal = Path(f"{self.prefix}.journal")
        if journal.exists():
            raise DataError(
                f"an unfinished build is at {self.prefix} ({journal.name}); finish it with the command that began it, "
                "remove its files, or choose another output"
            )


def cannot_write(path: Path, error: OSError) -> DataError:
    """The error for a file that cannot be opened for writing."""
    fix = "free space on its disk, or choose" if error.errno in FULL_DISK else "choose"
    return DataError(f"cannot write {path}: {error.strerror}; {fix} another output")


@contextmanager
def full_disk_named(
    output: str, needed_bytes: int | None = None, kept: str = "nothing was kept", choose: str = "an output"
) -> Iterator[None]:
    """Turn "no space left" into a DataError that says how much `output` needs, where that is known."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise
        needed = "" if needed_bytes is None else f": about {needed_bytes / 1e6:.1f} MB are needed in all"
        raise DataError(
            f"no space is left on the disk of {output}{needed}; free space there or choose {choose} on another "
            f"disk ({kept})"
        ) from error


def _close_whatever_is_left(stream: BinaryIO) -> None:
    try:
        stream.close()
    except OSError as error:  # what a full disk left in the buffer cannot be written, and need not be
        if error.errno not in FULL_DISK:
            raise
