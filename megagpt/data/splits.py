"""Which documents are for training, validation and test. In: document numbers and shares. Out: which are in a split.

A document's split depends on its number and the shares alone: not on the seed of a run, nor on how many documents
there are, so a longer dataset with the same beginning keeps every document where it was.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from megagpt.errors import DataError

Split = Literal["train", "valid", "test"]
SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_STREAM = 0x6D65676167707431  # "megagpt1": sets this use of the hash apart from others
PLACES = 1 << 53  # what document_place is below: as many as a float's digits can tell apart
_CHUNK_DOCUMENTS = 1 << 16


def split_bounds(shares: tuple[float, float, float], split: Split) -> tuple[int, int]:
    """(low, high): document i is in `split` where low <= document_place(i) < high.

    So it is in the first split whose cumulative share exceeds u(i) = document_place(i) / 2^53. Raises DataError where
    the shares are wrong or `split` has no share.
    """
    ends = [math.ceil(end * PLACES) for end in _cumulative(shares)]
    chosen = SPLITS.index(split)
    if shares[chosen] == 0:
        raise _no_share(shares, split)
    return (ends[chosen - 1] if chosen else 0), ends[chosen]


def has_documents(num_documents: int, shares: tuple[float, float, float], split: Split) -> bool:
    """Whether any document is in `split`; looks no further than the first. Raises DataError as split_bounds does."""
    low, high = split_bounds(shares, split)
    for start in range(0, num_documents, _CHUNK_DOCUMENTS):
        places = document_place(np.arange(start, min(start + _CHUNK_DOCUMENTS, num_documents)))
        if bool(np.any((places >= low) & (places < high))):
            return True
    return False


def document_place(documents: NDArray[np.int64]) -> NDArray[np.int64]:
    """A number in 0 … 2^53 - 1 for each document number, spread evenly: splitmix64 (Steele 2014), its upper 53 bits."""
    with np.errstate(over="ignore"):
        x = np.uint64(_STREAM) + (documents.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = x ^ (x >> np.uint64(31))
    return (x >> np.uint64(11)).astype(np.int64)


def no_documents(shares: tuple[float, float, float], split: Split, num_documents: int) -> DataError:
    """What to say of a split that has a share and no document."""
    return DataError(
        f"the {split} share {shares[SPLITS.index(split)]} of data.split = {list(shares)} gets none of the dataset's "
        f"{num_documents} documents; use more documents, a larger share, or set it to 0"
    )


def _no_share(shares: tuple[float, float, float], split: Split) -> DataError:
    return DataError(f"the {split} share of data.split = {list(shares)} is 0, so it has no documents; give it a share")


def _cumulative(shares: tuple[float, float, float]) -> NDArray[np.float64]:
    if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise DataError(f"data.split = {list(shares)} must be three shares of at least 0 that sum to 1")
    ends = np.cumsum(np.asarray(shares, dtype=np.float64))
    last = max(index for index, share in enumerate(shares) if share > 0)
    ends[last:] = 1.0  # whatever rounding left, a share of 0 gets nothing
    return ends
