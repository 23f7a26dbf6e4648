"""Splits a dataset by what its documents say. In: a dataset, shares. Out: PREFIX-train, PREFIX-valid, PREFIX-test.

A document's side follows from the hash of its own ids and a seed, from nothing else: not from its place, nor from other
documents. So equal documents are on one side, and a corpus that grew keeps every document where it was. Memory is
bounded by a block of documents and the longest one. Knows nothing of text or tokenizers.
"""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

from megagpt.data.dataset_output import DatasetOutput, full_disk_named
from megagpt.data.idx_file import IdxFile, read_tokens
from megagpt.data.parts import Part, open_part
from megagpt.data.split_sides import Side
from megagpt.data.splits import SPLITS
from megagpt.errors import DataError

_BLOCK_TOKENS = 1 << 20
OnTokens = Callable[[int, int], None]  # tokens done, tokens in all


class SideReport(NamedTuple):
    """What one side got."""

    prefix: str
    num_documents: int
    num_tokens: int


class SplitReport(NamedTuple):
    """A finished split: `sides` in the order train, valid, test, those with a share of 0 left out."""

    prefix: str
    num_documents: int
    num_tokens: int
    sides: tuple[SideReport, ...]
    seconds: float

    def lines(self) -> list[str]:
        """The report in words."""
        lines = [f"split          {self.prefix}: {self.num_documents} documents, {self.num_tokens} tokens"]
        for side in self.sides:
            documents, tokens = side.num_documents / self.num_documents, side.num_tokens / self.num_tokens
            lines.append(
                f"dataset        {side.prefix}: {side.num_documents} documents ({documents:.2%}), "
                f"{side.num_tokens} tokens ({tokens:.2%})"
            )
        return [*lines, f"time           {self.seconds:.2f} s"]


def split_dataset(
    source: str,
    output: str,
    shares: tuple[float, float, float],
    seed: int = 0,
    overwrite: bool = False,
    on_tokens: OnTokens | None = None,
) -> SplitReport:
    """Write a dataset for each of train, valid and test whose share is above 0, all or nothing.

    Documents keep their order and their sequences. Raises DataError for shares that are wrong, a side that gets no
    document, damage, outputs that exist or are being written, and a full disk.
    """
    started = time.perf_counter()
    ends = side_ends(shares)
    part = open_part(source)
    if part.idx is None:
        raise DataError(f"{source} is the share of a task without documents: there is nothing to split")
    part.idx.check()
    names = [f"{output}-{side}" for side in SPLITS]
    needed = part.bin_bytes + os.path.getsize(part.idx.path)
    with full_disk_named(output, needed), ExitStack() as stack:
        sides = [
            Side(DatasetOutput(name, overwrite), part, stack) if share > 0 else None
            for name, share in zip(names, shares, strict=True)
        ]
        _distribute(part, part.idx, ends, seed, sides, on_tokens)
        written = [side for side in sides if side is not None]
        for name, share, side in zip(SPLITS, shares, sides, strict=True):
            if side is not None and side.num_documents == 0:
                raise DataError(
                    f"the {name} share {share} gets none of the {part.idx.num_documents} documents of {source}; use "
                    "more documents, a larger share, or 0"
                )
        rule = ", ".join(f"{name} {share:g}" for name, share in zip(SPLITS, shares, strict=True))
        for side in written:
            side.finish(f"in another side of the split of {part.prefix} by document hash ({rule}, seed {seed})")
        for side in written:
            side.files.publish()
    return SplitReport(
        prefix=part.prefix,
        num_documents=part.idx.num_documents,
        num_tokens=part.idx.num_tokens,
        sides=tuple(SideReport(side.files.prefix, side.num_documents, side.num_tokens) for side in written),
        seconds=time.perf_counter() - started,
    )


def side_ends(shares: tuple[float, float, float]) -> NDArray[np.float64]:
    """Where the interval [0, 1) of each side ends. Raises DataError where the shares are not three that sum to 1."""
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        words = " + ".join(f"--{name} {share:g}" for name, share in zip(SPLITS, shares, strict=True))
        raise DataError(f"{words} must be three shares of at least 0 that sum to 1; they sum to {sum(shares):g}")
    ends = np.cumsum(np.asarray(shares, dtype=np.float64))
    last = max(index for index, share in enumerate(shares) if share > 0)
    ends[last:] = 1.0  # whatever rounding left, a share of 0 gets nothing
    return ends


def document_positions(ids: NDArray, offsets: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """A number in [0, 1) for each document of `ids` [tokens], from its ids alone; `offsets` [documents + 1].

    The upper 53 bits of xxh3_64 over the ids as little-endian int32, whatever type they are stored in. Raises DataError
    for ids beyond int32.
    """
    if ids.dtype.itemsize > 4 and len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < 2**31:
        raise DataError(
            f"an id is not in the range of int32: {int(ids.min())} to {int(ids.max())}; the data is damaged"
        )
    data = np.ascontiguousarray(ids, dtype="<i4").data.cast("B")
    edges = ((offsets - offsets[0]) * 4).tolist()
    digest = xxhash.xxh3_64_intdigest
    hashes = [digest(data[start:stop], seed) for start, stop in pairwise(edges)]
    return (np.array(hashes, dtype=np.uint64) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _distribute(
    part: Part,
    idx: IdxFile,
    ends: NDArray[np.float64],
    seed: int,
    sides: Sequence[Side | None],
    on_tokens: OnTokens | None,
) -> None:
    for start, stop in _document_runs(idx):
        offsets = idx.token_offsets(start, stop)
        ids = read_tokens(part.bin_path, idx.dtype, int(offsets[0]), int(offsets[-1]))
        bounds = idx.bounds(start, stop + 1)
        lengths = idx.lengths(int(bounds[0]), int(bounds[-1]))
        chosen = np.searchsorted(ends, document_positions(ids, offsets, seed), side="right")
        for number, side in enumerate(sides):
            if side is not None:
                side.add(start, chosen == number, ids, np.diff(offsets), lengths, np.diff(bounds))
        if on_tokens is not None:
            on_tokens(int(offsets[-1]), idx.num_tokens)


def _document_runs(idx: IdxFile) -> Iterator[tuple[int, int]]:
    """Runs of documents of about a million tokens, or one longer document."""
    for first, last in idx.document_blocks():
        offsets = idx.token_offsets(first, last)
        start = first
        while start < last:
            limit = offsets[start - first] + _BLOCK_TOKENS
            stop = first + int(np.searchsorted(offsets, limit, side="right")) - 1
            stop = min(max(stop, start + 1), last)
            yield start, stop
            start = stop
