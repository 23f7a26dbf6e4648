"""Writes a dataset in Megatron's format. In: documents' token ids. Out: PREFIX.bin, .idx and .json, all or nothing.

Everything is written under temporary names; the .idx gets its name last, so a dataset with an .idx is complete.
Memory: 4 bytes a document.
"""

import errno
import fcntl
import os
from array import array
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from megagpt.data.indexed import CODE_OF_DTYPE, HEADER, MAGIC, dataset_files
from megagpt.errors import DataError

_MAX_SEQUENCE_TOKENS = 2**31 - 1  # the index holds int32 lengths
_CHUNK_DOCUMENTS = 1 << 20


class IndexedWriter:
    """A dataset being written; a context manager. Without `finish` nothing is left behind.

    Each document is one sequence, as Megatron's preprocessing makes them without --split-sentences.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype, overwrite: bool = False) -> None:
        """Raises DataError where the dataset exists (and not `overwrite`), is being written, or cannot be written."""
        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype)
        self.num_tokens = 0
        self.max_token_id = -1
        self._lengths = array("i")
        self._targets = dataset_files(prefix)
        self._overwrite = overwrite
        self._refuse_existing()
        self._partials = [Path(f"{target}.partial") for target in self._targets]
        self._locked = False
        self._bin: BinaryIO = self._open_bin()

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    @property
    def num_documents(self) -> int:
        """Documents added so far."""
        return len(self._lengths)

    def add_documents(self, ids: NDArray, lengths: list[int]) -> None:
        """Append documents: `ids` are the token ids of all of them, `lengths` the number of tokens of each.

        Raises OSError where the disk is full, DataError where a document is too long for the format.
        """
        assert sum(lengths) == len(ids), (sum(lengths), len(ids))
        if max(lengths) > _MAX_SEQUENCE_TOKENS:
            raise DataError(
                f"document {len(self._lengths) + int(np.argmax(lengths))} has {max(lengths)} tokens; Megatron's format "
                f"holds {_MAX_SEQUENCE_TOKENS} in a document: split it"
            )
        lowest, highest = int(ids.min()), int(ids.max())
        assert 0 <= lowest <= highest <= np.iinfo(self.dtype).max, (lowest, highest, self.dtype)
        self._bin.write(ids.astype(self.dtype).tobytes())
        self._lengths.extend(lengths)
        self.num_tokens += len(ids)
        self.max_token_id = max(self.max_token_id, highest)

    def finish(self, sidecar: str | None = None) -> None:
        """Write index and sidecar, flush everything to the disk, and give the files their names (the .idx last)."""
        assert self.num_documents > 0, "a dataset needs at least one document"
        bin_partial, idx_partial, json_partial = self._partials
        _flush(self._bin)
        with open(idx_partial, "wb") as stream:
            self._write_index(stream)
            _flush(stream)
        if sidecar is not None:
            with open(json_partial, "wb") as stream:
                stream.write(sidecar.encode("utf-8"))
                _flush(stream)
        self._refuse_existing()
        bin_path, idx_path, json_path = self._targets
        for stale in (idx_path, json_path):  # an old index must not describe the new tokens, whenever we are stopped
            stale.unlink(missing_ok=True)
        os.replace(bin_partial, bin_path)
        if sidecar is not None:
            os.replace(json_partial, json_path)
        os.replace(idx_partial, idx_path)
        self._locked = False
        self._bin.close()

    def abandon(self) -> None:
        """Remove what was written, unless `finish` was reached."""
        if not self._locked:
            return
        self._locked = False
        for partial in self._partials:
            partial.unlink(missing_ok=True)
        try:
            self._bin.close()
        except OSError as error:  # what a full disk left in the buffer cannot be written, and need not be
            if error.errno != errno.ENOSPC:
                raise

    def _write_index(self, stream: BinaryIO) -> None:
        lengths = np.frombuffer(self._lengths, dtype=np.int32)
        count = len(lengths)
        stream.write(HEADER.pack(MAGIC, 1, CODE_OF_DTYPE[self.dtype], count, count + 1))
        stream.write(lengths.astype("<i4").tobytes())
        offset = 0
        for start in range(0, count, _CHUNK_DOCUMENTS):
            ends = offset + np.cumsum(lengths[start : start + _CHUNK_DOCUMENTS], dtype="<i8") * self.dtype.itemsize
            stream.write(np.concatenate(([offset], ends[:-1])).astype("<i8").tobytes())
            offset = int(ends[-1])
        for start in range(0, count + 1, _CHUNK_DOCUMENTS):
            stream.write(np.arange(start, min(start + _CHUNK_DOCUMENTS, count + 1), dtype="<i8").tobytes())

    def _open_bin(self) -> BinaryIO:
        path = self._partials[0]
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            stream = open(path, "ab")  # noqa: SIM115 (closed by finish or abandon)
        except OSError as error:
            raise DataError(f"cannot write {path}: {error.strerror}; choose another output") from error
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.close()
            raise DataError(
                f"another process is writing {self._targets[0]} now; wait for it, or choose another output"
            ) from error
        self._locked = True
        if os.fstat(stream.fileno()).st_size:  # left by a build that was killed
            stream.truncate(0)
        return stream

    def _refuse_existing(self) -> None:
        existing = [path for path in self._targets if path.exists()]
        if existing and not self._overwrite:
            raise DataError(f"{existing[0]} exists; choose another output, or replace it with --overwrite")


def _flush(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
