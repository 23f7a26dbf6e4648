"""Megatron's indexed dataset, PREFIX.bin and PREFIX.idx, and our sidecar PREFIX.json.

In: a prefix. Out: random access to documents of token ids by memory map. The files are byte-compatible with
megatron.core.datasets.indexed_dataset (0.16.1). Knows nothing of text, tokenizers or samples.

    .idx   9 bytes "MMIDIDX\\0\\0" | u64 version 1 | u8 id type | u64 sequences N | u64 document bounds D+1
           | i32[N] tokens of each sequence | i64[N] byte offset of each in .bin
           | i64[D+1] first sequence of each document, and N
    .bin   the token ids, one sequence after the other
"""

import os
import struct
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from megagpt.data.sidecar import Sidecar, read_sidecar
from megagpt.errors import DataError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
# 6 and 7 are floats: no token ids.
_DTYPE_OF_CODE = MappingProxyType({1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 8: "<u2"})
CODE_OF_DTYPE = MappingProxyType({np.dtype(name): code for code, name in _DTYPE_OF_CODE.items()})
_SCAN_TOKENS = 1 << 22
_SCAN_ENTRIES = 1 << 17  # of an index, at a time: they stay in the cache


def token_dtype(vocab_size: int) -> np.dtype:
    """The id type for a vocabulary, as mcore's DType.optimal_dtype: uint16 below 65500, else int32."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


def dataset_files(prefix: str | Path) -> tuple[Path, Path, Path]:
    """PREFIX.bin, PREFIX.idx and PREFIX.json; the name of one of the first two stands for its prefix."""
    prefix = str(prefix).removesuffix(".bin").removesuffix(".idx")
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx"), Path(f"{prefix}.json")


class IndexedDataset:
    """Documents of token ids, read through a memory map. A document is one or more sequences (Megatron's term).

    `sidecar` is None where the dataset was made by Megatron, which writes none: its tokenizer is then unknown.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Raises DataError where a file is missing, damaged, truncated, or belongs to another dataset."""
        self.bin_path, self.idx_path, sidecar_path = dataset_files(prefix)
        self.prefix = str(self.bin_path.with_suffix(""))
        for path in (self.idx_path, self.bin_path):
            if not path.is_file():
                raise DataError(
                    f"dataset file {path} does not exist; build it with `python data_tools/build_dataset.py`, or "
                    "correct data.path (PATH without .bin and .idx)"
                )
        self.dtype, self.sequence_lengths, self._pointers, self._bounds = _read_index(self.idx_path)
        self.num_tokens = self._count_tokens()
        self._check_bin_size()
        self._tokens: NDArray = np.memmap(self.bin_path, dtype=self.dtype, mode="r")
        self.sidecar: Sidecar | None = read_sidecar(sidecar_path)
        if self.sidecar is not None:
            self._check_sidecar(self.sidecar, sidecar_path)

    def __len__(self) -> int:
        """Number of documents."""
        return len(self._bounds) - 1

    @property
    def num_documents(self) -> int:
        """Number of documents."""
        return len(self)

    @cached_property
    def document_offsets(self) -> NDArray[np.int64]:
        """Token offset of each document's start, and the end: [num_documents + 1], 8 bytes a document of memory."""
        return self.offsets_at(np.arange(len(self) + 1))

    def offsets_at(self, documents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Token offset of the start of each of `documents`; document number `num_documents` starts at the end."""
        sequences = self._bounds[documents]
        begins = self._pointers[np.minimum(sequences, len(self._pointers) - 1)] // self.dtype.itemsize
        return np.where(sequences < len(self._pointers), begins, self.num_tokens)

    @property
    def document_lengths(self) -> NDArray[np.int64]:
        """Tokens of each document, [num_documents]."""
        return np.diff(self.document_offsets)

    @property
    def arrays(self) -> "DatasetArrays":
        """The mapped files, which all processes of a machine share."""
        return DatasetArrays(self.sequence_lengths, self._pointers, self._own_bounds, self._tokens)

    @cached_property
    def _own_bounds(self) -> NDArray[np.int64] | None:
        """First sequence of each document, or None where every document is one sequence."""
        same = len(self._bounds) == len(self._pointers) + 1 and all(
            np.array_equal(part, np.arange(start, start + len(part))) for start, part in _parts(self._bounds)
        )
        return None if same else self._bounds

    def content_hash(self) -> str:
        """xxh3_128 of the lengths and order of all documents: of the .idx and the size of the .bin."""
        digest = xxhash.xxh3_128(str(os.path.getsize(self.bin_path)).encode())
        digest.update(np.memmap(self.idx_path, mode="r").data)
        return digest.hexdigest()

    @property
    def fingerprint(self) -> str | None:
        """sha256 of the tokenizer that made the ids; None where it is not known."""
        return self.sidecar.fingerprint if self.sidecar is not None else None

    def document(self, number: int) -> NDArray:
        """Token ids of document `number`, a view of the file in its own id type."""
        start, stop = self.offsets_at(np.array([number, number + 1])).tolist()
        return self.tokens(start, stop)

    def tokens(self, start: int, stop: int) -> NDArray:
        """Token ids `start` to `stop` of the whole dataset, a view of the file in its own id type."""
        return self._tokens[start:stop]

    def max_token_id(self) -> int:
        """The largest id: from the sidecar, else by reading the whole .bin once."""
        if self.sidecar is not None:
            return self.sidecar.max_token_id
        starts = range(0, self.num_tokens, _SCAN_TOKENS)
        return max(int(self._tokens[start : start + _SCAN_TOKENS].max()) for start in starts)

    def _count_tokens(self) -> int:
        """Tokens of all sequences. Raises DataError unless each begins where the one before it ends."""
        end = 0
        for start, lengths in _parts(self.sequence_lengths):
            ends = np.cumsum(lengths, dtype=np.int64)
            begins = self._pointers[start : start + len(lengths)]
            if int(begins[0]) != end or not np.array_equal(begins[1:] - end, ends[:-1] * self.dtype.itemsize):
                raise DataError(
                    f"{self.idx_path} is damaged: its sequences do not follow one another in {self.bin_path.name}; "
                    "copy both files again or rebuild the dataset"
                )
            end += int(ends[-1]) * self.dtype.itemsize
        return end // self.dtype.itemsize

    def _check_bin_size(self) -> None:
        expected = self.num_tokens * self.dtype.itemsize
        found = os.path.getsize(self.bin_path)
        if expected == 0:
            raise DataError(f"dataset {self.prefix} has no tokens; build it from a corpus with text")
        if found != expected:
            state = "truncated" if found < expected else "longer than its index says"
            raise DataError(
                f"{self.bin_path} is {state}: {self.idx_path.name} describes {expected} bytes, the file has {found}; "
                "copy both files again or rebuild the dataset"
            )

    def _check_sidecar(self, sidecar: Sidecar, path: Path) -> None:
        described = (sidecar.num_documents, sidecar.num_tokens)
        found = (len(self), self.num_tokens)
        if described != found:
            raise DataError(
                f"{path} belongs to another dataset: it describes {described[0]} documents and {described[1]} tokens, "
                f"{self.idx_path.name} has {found[0]} and {found[1]}; copy all three files again or rebuild the dataset"
            )


class DatasetArrays(NamedTuple):
    """The arrays of a dataset as they lie in its files; `bounds` is None where every document is one sequence."""

    lengths: NDArray[np.int32]  # [N] tokens of each sequence
    pointers: NDArray[np.int64]  # [N] byte offset of each sequence in .bin
    bounds: NDArray[np.int64] | None  # [D+1] first sequence of each document, and N
    tokens: NDArray  # all ids


class IndexHeader(NamedTuple):
    """What the beginning of an .idx says of it."""

    dtype: np.dtype
    num_sequences: int
    num_documents: int


def read_index_header(path: Path) -> IndexHeader:
    """The header of the .idx in `path`. Raises DataError where it is none, damaged, or longer than the file."""
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        head = stream.read(HEADER.size)
    if head[: len(MAGIC)] != MAGIC:
        raise DataError(
            f"{path} is not a Megatron index: it begins with {head[: len(MAGIC)]!r}, not {MAGIC!r}; name a "
            "dataset's prefix"
        )
    if len(head) < HEADER.size:
        raise DataError(f"{path} is truncated within its header; copy it again or rebuild the dataset")
    _, version, code, num_sequences, num_bounds = HEADER.unpack(head)
    if version != 1 or code not in _DTYPE_OF_CODE:
        raise DataError(
            f"{path} has version {version} and id type {code}; version 1 and integer types (1 to 5, 8) can be read"
        )
    expected = HEADER.size + num_sequences * (4 + 8) + num_bounds * 8
    if size < expected:
        raise DataError(
            f"{path} is truncated: its header describes {expected} bytes, the file has {size}; copy it again or rebuild"
        )
    return IndexHeader(np.dtype(_DTYPE_OF_CODE[code]), num_sequences, num_bounds - 1)


def _read_index(path: Path) -> tuple[np.dtype, NDArray[np.int32], NDArray[np.int64], NDArray[np.int64]]:
    """dtype, sequence lengths [N], byte offsets [N] and document bounds [D+1], mapped from the file."""
    dtype, num_sequences, num_documents = read_index_header(path)
    num_bounds = num_documents + 1
    raw = np.memmap(path, mode="r")
    lengths = np.frombuffer(raw, dtype="<i4", count=num_sequences, offset=HEADER.size)
    pointers = np.frombuffer(raw, dtype="<i8", count=num_sequences, offset=HEADER.size + 4 * num_sequences)
    bounds = np.frombuffer(raw, dtype="<i8", count=num_bounds, offset=HEADER.size + 12 * num_sequences)
    ordered = num_bounds > 0 and bounds[0] == 0 and bounds[-1] == num_sequences
    ordered = ordered and all(np.all(part[1:] >= part[:-1]) for _, part in _parts(bounds, overlap=1))
    if not ordered or any(part.min() < 0 for _, part in _parts(lengths)):
        raise DataError(f"{path} is damaged: its documents are not in order; copy it again or rebuild the dataset")
    return dtype, lengths, pointers, bounds


def _parts(values: NDArray, overlap: int = 0) -> Iterator[tuple[int, NDArray]]:
    """(place, part) of a long array, a part at a time; `overlap` entries of the next part with it."""
    for start in range(0, len(values), _SCAN_ENTRIES):
        yield start, values[start : start + _SCAN_ENTRIES + overlap]
