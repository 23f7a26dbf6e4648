"""The maths of serving samples in NumPy: what each function means. megagpt/native/samples.cpp does the same faster.

In: arrays of an indexed dataset, keys of orders. Out: numbers in arrays of the caller's. An epoch is the split's
documents in an order, joined end to end; a window is S+1 tokens of it that start at a multiple of S. Where the tokens
of every GROUP-th document of the order begin is an index (`group_starts`); the documents in between are walked.
Arguments are positional and arrays may be anything that can be indexed, such as the virtual ones of a test.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megagpt.data.index_order import order_at
from megagpt.data.splits import PLACES, document_place

_BLOCK = 1 << 16


class Documents(NamedTuple):
    """The documents of a dataset that are in one split; the order of the fields is that of the native module."""

    lengths: Any  # [N] int32, tokens of each sequence
    pointers: Any  # [N] int64, byte offset of each sequence
    bounds: Any  # [D+1] int64, first sequence of each document; None where every document is one sequence
    item_bytes: int
    end_bytes: int  # size of the tokens
    low: int  # a document is in the split where low <= document_place < high
    high: int

    @property
    def num_documents(self) -> int:
        """Documents of the dataset, in whatever split."""
        return len(self.lengths) if self.bounds is None else len(self.bounds) - 1


def order(key: bytes | None, count: int, numbers: NDArray[np.int64], out: NDArray[np.int64]) -> None:
    """out[i] = what stands at place numbers[i] of the order of `count` things."""
    out[:] = order_at(key, count, numbers)


def split_totals(documents: Documents) -> tuple[int, int]:
    """How many documents and tokens the split has."""
    num_documents = num_tokens = 0
    for first in range(0, documents.num_documents, _BLOCK):
        numbers = np.arange(first, min(first + _BLOCK, documents.num_documents))
        inside = belongs(documents, numbers)
        num_documents += int(np.count_nonzero(inside))
        num_tokens += int(tokens_of(documents, numbers)[inside].sum(dtype=np.int64))
    return num_documents, num_tokens


def group_starts(documents: Documents, key: bytes | None, group: int, out: NDArray[np.int64]) -> None:
    """out[g] = tokens of the split before place g * group of the order of all documents; last, all of them.

    Documents of other splits have their places in the order too, and no tokens.
    """
    tokens = 0
    step = _BLOCK // group * group
    for first in range(0, documents.num_documents, step):
        numbers = order_at(key, documents.num_documents, np.arange(first, min(first + step, documents.num_documents)))
        ends = tokens + np.cumsum(np.where(belongs(documents, numbers), tokens_of(documents, numbers), 0))
        begins = np.concatenate(([tokens], ends[:-1]))
        out[first // group : first // group - (-len(numbers) // group)] = begins[::group]
        tokens = int(ends[-1])
    out[-1] = tokens


def gather(
    tokens: Any,
    type_name: str,
    documents: Documents,
    key: bytes | None,
    starts: Any,
    group: int,
    window_key: bytes | None,
    num_windows: int,
    numbers: NDArray[np.int64],
    rows: NDArray[np.int64],
    length: int,
    out: NDArray[np.int64],
) -> None:
    """out[rows[i]] = the length + 1 tokens of sample numbers[i] of the epoch.

    `key` is that of the order of documents, `window_key` that of the order of windows. `type_name`, such as "u2", is
    for the native module, which sees bytes; `starts` is what group_starts gives.
    """
    begins = order_at(window_key, num_windows, numbers) * length
    for part in segments(documents, key, starts, group, begins, length + 1):
        for row, place, begin, taken in zip(*(column.tolist() for column in part), strict=True):
            out[rows[row], place : place + taken] = tokens[begin : begin + taken]


class Segments(NamedTuple):
    """Runs of tokens of several samples: tokens `begin` … `begin + taken - 1` of the dataset are from `place` on."""

    sample: NDArray[np.int64]
    place: NDArray[np.int64]
    begin: NDArray[np.int64]
    taken: NDArray[np.int64]


def segments(
    documents: Documents, key: bytes | None, starts: Any, group: int, begins: NDArray[np.int64], wanted: int
) -> Iterator[Segments]:
    """Where the `wanted` tokens from each of the places `begins` of the epoch lie, a group of documents at a time."""
    samples = np.arange(len(begins))
    at = starts.searchsorted(begins, side="right") - 1
    while len(samples):
        count = documents.num_documents
        places = at[:, None] * group + np.arange(group)
        numbers = order_at(key, count, np.minimum(places, count - 1).reshape(-1))
        inside = belongs(documents, numbers) & (places < count).reshape(-1)
        lengths = np.where(inside, tokens_of(documents, numbers), 0).reshape(places.shape)
        ends = starts[at][:, None] + np.cumsum(lengths, axis=1)
        first = np.maximum(ends - lengths, begins[samples][:, None])
        last = np.minimum(ends, begins[samples][:, None] + wanted)
        row, column = np.nonzero(last > first)
        skipped = first[row, column] - (ends - lengths)[row, column]
        yield Segments(
            samples[row],
            first[row, column] - begins[samples[row]],
            _begin_bytes(documents, numbers.reshape(places.shape)[row, column]) // documents.item_bytes + skipped,
            (last - first)[row, column],
        )
        going_on = ends[:, -1] < begins[samples] + wanted
        samples, at = samples[going_on], starts.searchsorted(ends[going_on, -1], side="right") - 1


def belongs(documents: Documents, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the documents `numbers` are in the split."""
    if (documents.low, documents.high) == (0, PLACES):
        return np.ones(len(numbers), dtype=bool)
    places = document_place(numbers)
    return (places >= documents.low) & (places < documents.high)


def tokens_of(documents: Documents, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tokens of each of the documents `numbers`."""
    if documents.bounds is None:
        return documents.lengths[numbers].astype(np.int64)
    return _begin_bytes(documents, numbers + 1) // documents.item_bytes - (
        _begin_bytes(documents, numbers) // documents.item_bytes
    )


def _begin_bytes(documents: Documents, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    sequences = numbers if documents.bounds is None else documents.bounds[numbers]
    inside = np.minimum(sequences, len(documents.pointers) - 1)
    return np.where(sequences < len(documents.pointers), documents.pointers[inside], documents.end_bytes)


def blend(
    weights: NDArray[np.int64],
    counts: NDArray[np.int64],
    first: int,
    size: int,
    ids: NDArray[np.uint16] | None,
    numbers: NDArray[np.int64] | None,
) -> None:
    """Whose turn the samples first … first + size - 1 of a blend are: see docs/blends.md for the rule and its proof.

    `counts` are the samples of each corpus before `first`, and are brought up to its end. Where arrays are given,
    ids[i] becomes the corpus of sample first + i, numbers[i] its number among the corpus's own.
    """
    whole = [int(weight) for weight in weights]
    total = sum(whole)
    taken = [int(count) for count in counts]
    release = [count * total // weight for count, weight in zip(taken, whole, strict=True)]
    deadline = [-(-(count + 1) * total // weight) for count, weight in zip(taken, whole, strict=True)]
    for place in range(first, first + size):
        soonest = min((end, corpus) for corpus, end in enumerate(deadline) if release[corpus] <= place)
        chosen = soonest[1]
        if soonest[0] <= place:
            raise ValueError("blend: the counts are not those of these weights")
        if ids is not None and numbers is not None:
            ids[place - first], numbers[place - first] = chosen, taken[chosen]
        taken[chosen] += 1
        release[chosen] = taken[chosen] * total // whole[chosen]
        deadline[chosen] = -(-(taken[chosen] + 1) * total // whole[chosen])
    counts[:] = taken
