"""Megatron's .idx by blocks, for any number of documents. In: the file, or lengths. Out: blocks of it, or the file.

Where `IndexedDataset` maps the whole index, this reads and writes a few megabytes at a time: joining, splitting and
verifying need bounded memory for 10^9 documents. Knows nothing of tokens, text or sidecars.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megagpt.data.indexed import CODE_OF_DTYPE, HEADER, MAGIC, read_index_header
from megagpt.errors import DataError

BLOCK_ENTRIES = 1 << 18  # entries of the index held at once: 2 MiB of int64


class IdxFile:
    """An .idx read by blocks; the file is open only while a block is read, so thousands of these can be had."""

    def __init__(self, path: Path) -> None:
        """Raises DataError where it is not an index, or shorter than its header says."""
        self.path = path
        self.dtype, self.num_sequences, self.num_documents = read_index_header(path)
        self.num_tokens = self._start_of(self.num_sequences)

    def lengths(self, start: int, stop: int) -> NDArray[np.int32]:
        """Tokens of sequences `start` to `stop`."""
        return self._read(HEADER.size, 4, start, stop).view("<i4")

    def pointers(self, start: int, stop: int) -> NDArray[np.int64]:
        """Byte offset in .bin of sequences `start` to `stop`."""
        return self._read(HEADER.size + 4 * self.num_sequences, 8, start, stop).view("<i8")

    def bounds(self, start: int, stop: int) -> NDArray[np.int64]:
        """First sequence of documents `start` to `stop`; bound number `num_documents` is the number of sequences."""
        return self._read(HEADER.size + 12 * self.num_sequences, 8, start, stop).view("<i8")

    def token_offsets(self, start: int, stop: int) -> NDArray[np.int64]:
        """First token of each of the documents `start` to `stop`, and the end of the last: [stop - start + 1]."""
        bounds = self.bounds(start, stop + 1)
        first, last = int(bounds[0]), int(bounds[-1])
        offsets = np.append(self.pointers(first, last) // self.dtype.itemsize, self._start_of(last))
        return offsets[bounds - first]

    def document_blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """Consecutive runs of documents, each small enough to be held."""
        return _blocks(start, self.num_documents if stop is None else stop)

    def check(self) -> None:
        """Every length, offset and bound agrees with the others. Raises DataError naming the first that does not."""
        position = 0
        for start, stop in _blocks(0, self.num_sequences):
            lengths = self.lengths(start, stop)
            if bool(np.any(lengths < 0)):
                raise self._damaged(f"sequence {start + int(np.argmax(lengths < 0))} has a negative length")
            ends = position + np.cumsum(lengths, dtype=np.int64) * self.dtype.itemsize
            wrong = self.pointers(start, stop) != np.concatenate(([position], ends[:-1]))
            if bool(np.any(wrong)):
                raise self._damaged(f"sequence {start + int(np.argmax(wrong))} does not begin where the last one ends")
            position = int(ends[-1])
        self._check_bounds()

    def _check_bounds(self) -> None:
        last = 0
        for start, stop in _blocks(0, self.num_documents + 1):
            bounds = self.bounds(start, stop)
            if (start == 0 and bounds[0] != 0) or bounds[0] < last or bool(np.any(np.diff(bounds) < 0)):
                raise self._damaged(f"its documents {start} to {stop} are not in order")
            last = int(bounds[-1])
        if last != self.num_sequences or self.num_documents < 0:
            raise self._damaged(f"its documents end at sequence {last} of {self.num_sequences}")

    def _start_of(self, sequence: int) -> int:
        """First token of a sequence; that of sequence `num_sequences` is the number of tokens."""
        if sequence < self.num_sequences:
            return int(self.pointers(sequence, sequence + 1)[0]) // self.dtype.itemsize
        if sequence == 0:
            return 0
        length = int(self.lengths(sequence - 1, sequence)[0])
        return int(self.pointers(sequence - 1, sequence)[0]) // self.dtype.itemsize + length

    def _read(self, base: int, width: int, start: int, stop: int) -> NDArray[np.uint8]:
        assert 0 <= start <= stop, (start, stop)
        buffer = np.empty((stop - start) * width, dtype=np.uint8)
        view = buffer.data
        with open(self.path, "rb", buffering=0) as stream:
            stream.seek(base + start * width)
            while view:
                count = stream.readinto(view)
                if not count:
                    raise self._damaged("it became shorter while it was read")
                view = view[count:]
        return buffer

    def _damaged(self, detail: str) -> DataError:
        return DataError(f"{self.path} is damaged: {detail}; copy it again or rebuild the dataset")


def read_tokens(bin_path: Path, dtype: np.dtype, start: int, stop: int) -> NDArray:
    """Ids `start` to `stop` of a .bin, read rather than mapped, so that memory is only what is held."""
    ids = np.fromfile(bin_path, dtype=dtype, count=stop - start, offset=start * dtype.itemsize)
    if len(ids) < stop - start:
        raise DataError(f"{bin_path} became shorter while it was read; do not write to it, and try again")
    return ids


class IndexPart(NamedTuple):
    """What to write of an index, in blocks; both may be gone through several times.

    `lengths`: blocks of tokens of each sequence. `ends`: blocks of the number of sequences in all documents up to and
    with each one.
    """

    num_sequences: int
    num_documents: int
    lengths: Iterable[NDArray[np.int32]]
    ends: Iterable[NDArray[np.int64]]


def write_index(stream: BinaryIO, dtype: np.dtype, index: IndexPart) -> int:
    """Write an .idx; its number of tokens. Raises OSError where the disk is full."""
    stream.write(HEADER.pack(MAGIC, 1, CODE_OF_DTYPE[dtype], index.num_sequences, index.num_documents + 1))
    for lengths in index.lengths:
        stream.write(lengths.astype("<i4", copy=False).data)
    position = 0
    for lengths in index.lengths:
        ends = position + np.cumsum(lengths, dtype="<i8") * dtype.itemsize
        stream.write(np.concatenate(([position], ends[:-1])).astype("<i8", copy=False).data)
        position = int(ends[-1])
    stream.write(np.zeros(1, dtype="<i8").data)
    for ends in index.ends:
        stream.write(ends.astype("<i8", copy=False).data)
    return position // dtype.itemsize


def _blocks(start: int, stop: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, BLOCK_ENTRIES):
        yield first, min(first + BLOCK_ENTRIES, stop)
