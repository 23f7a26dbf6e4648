"""Writes a dataset in Megatron's format. In: documents' token ids. Out: PREFIX.bin, .idx and .json, all or nothing.

Memory does not grow with the number of documents: their lengths go to a file, from which the index is written.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from megagpt.data.dataset_output import DatasetOutput, cannot_write
from megagpt.data.idx_file import BLOCK_ENTRIES, IndexPart, write_index
from megagpt.errors import DataError

MAX_DOCUMENT_TOKENS = 2**31 - 1  # the index holds int32 lengths
LENGTH_BYTES = 4


class LengthBlocks:
    """The lengths of documents in an open file of int32, in blocks; may be gone through several times."""

    def __init__(self, file: int, num_documents: int) -> None:
        self._file = file
        self._num_documents = num_documents

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        for start in range(0, self._num_documents, BLOCK_ENTRIES):
            count = min(BLOCK_ENTRIES, self._num_documents - start)
            block = np.frombuffer(os.pread(self._file, count * LENGTH_BYTES, start * LENGTH_BYTES), dtype="<i4")
            assert len(block) == count, (start, count, len(block))
            yield block


class DocumentEnds:
    """The number of sequences up to and with each document, where each document is one sequence; in blocks."""

    def __init__(self, num_documents: int) -> None:
        self._num_documents = num_documents

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        for start in range(0, self._num_documents, BLOCK_ENTRIES):
            yield np.arange(start + 1, min(start + BLOCK_ENTRIES, self._num_documents) + 1, dtype="<i8")


def write_document_index(stream: BinaryIO, dtype: np.dtype, lengths: int, num_documents: int) -> None:
    """Write the .idx of documents whose lengths are in the open int32 file. Raises OSError where the disk is full."""
    part = IndexPart(num_documents, num_documents, LengthBlocks(lengths, num_documents), DocumentEnds(num_documents))
    write_index(stream, dtype, part)


def too_long(document: str, num_tokens: int) -> DataError:
    """The error for a document that the format cannot hold; `document` says which."""
    return DataError(
        f"{document} has {num_tokens} tokens; Megatron's format holds {MAX_DOCUMENT_TOKENS} in a document: split it"
    )


class IndexedWriter:
    """A dataset being written; a context manager. Without `finish` nothing is left behind.

    Each document is one sequence, as Megatron's preprocessing makes them without --split-sentences.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype, overwrite: bool = False) -> None:
        """Raises DataError where the dataset exists (and not `overwrite`), is being written, or cannot be written."""
        import tempfile  # lazily: a build, which starts often, does without it

        self.prefix = str(prefix)
        self.dtype = np.dtype(dtype)
        self.num_documents = 0
        self.num_tokens = 0
        self.max_token_id = -1
        self._output = DatasetOutput(prefix, overwrite)
        folder = Path(self._output.prefix).parent
        try:
            self._lengths = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by finish, abandon)
        except OSError as error:
            self._output.abandon()
            raise cannot_write(folder / "temporary file", error) from error

    def __enter__(self) -> "IndexedWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abandon()

    def add_documents(self, ids: NDArray, lengths: Sequence[int]) -> None:
        """Append documents: `ids` are the token ids of all of them, `lengths` the number of tokens of each.

        Raises OSError where the disk is full, DataError where a document is too long for the format.
        """
        counts = np.asarray(lengths, dtype=np.int64)
        assert counts.sum() == len(ids), (counts.sum(), len(ids))
        if counts.max() > MAX_DOCUMENT_TOKENS:
            raise too_long(f"document {self.num_documents + int(counts.argmax())}", int(counts.max()))
        lowest, highest = int(ids.min()), int(ids.max())
        assert 0 <= lowest <= highest <= np.iinfo(self.dtype).max, (lowest, highest, self.dtype)
        self._output.bin.write(ids.astype(self.dtype).tobytes())
        self._lengths.write(counts.astype("<i4").tobytes())
        self.num_documents += len(counts)
        self.num_tokens += len(ids)
        self.max_token_id = max(self.max_token_id, highest)

    def finish(self, sidecar: str | None = None) -> None:
        """Write index and sidecar, flush everything to the disk, and give the files their names (the .idx last)."""
        assert self.num_documents > 0, "a dataset needs at least one document"
        write_document_index(self._output.idx, self.dtype, self._lengths.fileno(), self.num_documents)
        self._output.finish_writing(sidecar)
        self._output.publish()
        self._lengths.close()

    def abandon(self) -> None:
        """Remove what was written, unless `finish` was reached."""
        self._output.abandon()
        self._lengths.close()
