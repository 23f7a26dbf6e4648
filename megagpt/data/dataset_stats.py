"""How long a dataset's documents are, and how often each id occurs. In: the .idx and .bin. Out: counts.

Read by blocks: memory depends on the vocabulary and on how many different lengths there are. Knows no text.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megagpt.data.idx_file import IdxFile, read_tokens
from megagpt.errors import DataError

COUNTED_TOKENS = 1 << 30  # all ids of most datasets; of longer ones a sample, evenly spread
_BLOCK_TOKENS = 1 << 16  # counting stays in the cache: 600M ids/s measured, 40M/s with blocks of everything
_SHORT = 1 << 16  # lengths below are counted by a table, above by sorting


class LengthCounts(NamedTuple):
    """Every length that occurs, rising, in tokens with the end-of-document id; and how many documents have it."""

    lengths: NDArray[np.int64]
    counts: NDArray[np.int64]

    def quantile(self, share: float) -> int:
        """The length that a document at `share` (0 shortest, 1 longest) of all has."""
        ranks = np.cumsum(self.counts)
        return int(self.lengths[np.searchsorted(ranks, share * (ranks[-1] - 1), side="right")])

    def mean(self) -> float:
        """Tokens of a document on average."""
        return float(np.dot(self.lengths, self.counts) / self.counts.sum())


class LengthBin(NamedTuple):
    """Documents of `first` to `last` tokens (both included), and their tokens."""

    first: int
    last: int
    num_documents: int
    num_tokens: int


class TokenCounts(NamedTuple):
    """How often each id occurs, [vocabulary], in `num_counted` of the dataset's `num_tokens` ids."""

    counts: NDArray[np.int64]
    num_counted: int
    num_tokens: int

    def never_used(self) -> int:
        """Ids of the vocabulary that do not occur among those counted."""
        return int(np.count_nonzero(self.counts == 0))

    def covering(self, share: float) -> int:
        """How many of the most frequent ids make up `share` of all that were counted."""
        ordered = np.cumsum(np.sort(self.counts)[::-1])
        return int(np.searchsorted(ordered, share * self.num_counted)) + 1

    def most_frequent(self, count: int) -> list[tuple[int, int]]:
        """(id, occurrences), most frequent first; ids that do not occur are left out."""
        order = np.argsort(-self.counts, kind="stable")[:count]
        return [(int(index), int(self.counts[index])) for index in order if self.counts[index]]


def count_lengths(idx: IdxFile) -> LengthCounts:
    """Lengths of all documents."""
    table = np.zeros(_SHORT, dtype=np.int64)
    long, long_counts = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    for start, stop in idx.document_blocks():
        lengths = np.diff(idx.token_offsets(start, stop))
        short = lengths < _SHORT
        table += np.bincount(lengths[short], minlength=_SHORT)
        if not short.all():
            long, inverse = np.unique(np.concatenate((long, lengths[~short])), return_inverse=True)
            weights = np.concatenate((long_counts, np.ones(np.count_nonzero(~short), dtype=np.int64)))
            long_counts = np.bincount(inverse, weights=weights, minlength=len(long)).astype(np.int64)
    present = np.flatnonzero(table)
    return LengthCounts(np.concatenate((present, long)), np.concatenate((table[present], long_counts)))


def length_bins(counts: LengthCounts, per_doubling: int = 1) -> list[LengthBin]:
    """A histogram with bins that grow: `per_doubling` bins for each doubling of the length; no bin is left out.

    Whole lengths only: with two a doubling the first bins are 1, 2, 3, 4-5, 6-7, 8-10 …
    """
    longest = int(counts.lengths[-1])
    edges, step = [1], 0
    while edges[-1] <= longest:
        step += 1
        edge = round(2 ** (step / per_doubling))
        if edge > edges[-1]:
            edges.append(edge)
    if counts.lengths[0] == 0:
        edges.insert(0, 0)
    places = np.searchsorted(counts.lengths, edges)
    documents = np.concatenate(([0], np.cumsum(counts.counts)))
    tokens = np.concatenate(([0], np.cumsum(counts.counts * counts.lengths)))
    return [
        LengthBin(first, last - 1, int(documents[stop] - documents[start]), int(tokens[stop] - tokens[start]))
        for first, last, start, stop in zip(edges[:-1], edges[1:], places[:-1], places[1:], strict=True)
    ]


def count_tokens(bin_path: Path, idx: IdxFile, vocab_size: int, limit: int = COUNTED_TOKENS) -> TokenCounts:
    """How often each id occurs; beyond `limit` tokens in blocks that are evenly spread over the dataset.

    The table is longer than `vocab_size` where an id is beyond it. Raises DataError for a negative id.
    """
    starts = np.arange(0, idx.num_tokens, _BLOCK_TOKENS)
    num_blocks = max(1, limit // _BLOCK_TOKENS)
    if len(starts) > num_blocks:
        starts = starts[np.linspace(0, len(starts) - 1, num_blocks).astype(np.int64)]
    counts, counted = np.zeros(vocab_size, dtype=np.int64), 0
    for start in starts.tolist():
        block = read_tokens(bin_path, idx.dtype, start, min(start + _BLOCK_TOKENS, idx.num_tokens))
        if block.min() < 0:
            raise DataError(f"{bin_path} has a negative id, {block.min()}: it is damaged; copy it again or rebuild it")
        here = np.bincount(block, minlength=len(counts))
        if len(here) > len(counts):
            counts = np.concatenate((counts, np.zeros(len(here) - len(counts), dtype=np.int64)))
        counts += here
        counted += len(block)
    return TokenCounts(counts, counted, idx.num_tokens)
