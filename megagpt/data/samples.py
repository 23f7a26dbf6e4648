"""The order of samples. In: an indexed dataset, a split, a seed, a sequence length. Out: the tokens of sample n, any n.

An epoch goes through the split's documents in shuffled order, joined end to end (each ends with the end-of-document
id), cut into windows of S+1 tokens that start every S tokens, so that each token but the first is a label once; what is
left after the last whole window is dropped. The windows are then shuffled. Epochs follow one another without end, each
in an order of its own. Validation and test are not shuffled and go round once. Knows nothing of ranks or batches.

Both orders are pure functions (index_order.py). All that is kept of an epoch is where the tokens of every 16th document
begin: half a byte a document, in memory or in a file that all processes map (index_files.py).
"""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from megagpt.data.index_core import index_core
from megagpt.data.index_files import IndexStore
from megagpt.data.index_numpy import Documents
from megagpt.data.index_order import order_key
from megagpt.data.indexed import IndexedDataset
from megagpt.data.splits import PLACES, SPLITS, Split, has_documents, no_documents, split_bounds
from megagpt.errors import DataError

GROUP = 16  # documents between two entries of the index
_CACHED_EPOCHS = 2  # a batch can straddle two


class SampleIndex:
    """Random access to the samples of one split; the same arguments give the same samples."""

    def __init__(
        self,
        dataset: IndexedDataset,
        split: Split,
        shares: tuple[float, float, float],
        sequence_length: int,
        seed: int,
        store: IndexStore | None = None,
        native: bool = True,
    ) -> None:
        """`store`: where the index of an epoch is kept; None: in memory. `native` False: the plain NumPy maths.

        Raises DataError where the split has no document, or too few tokens for one sample.
        """
        assert sequence_length >= 1, sequence_length
        self.dataset = dataset
        self.split = split
        self.shares = shares
        self.sequence_length = sequence_length
        self.seed = seed
        self.shuffled = split == "train"
        self.store = store
        self._core = index_core(native)
        self._documents = documents_in(dataset, shares, split)
        self.num_documents, self.num_tokens = self._count(shares)
        self.samples_per_epoch = max(self.num_tokens - 1, 0) // sequence_length
        if self.samples_per_epoch == 0:
            raise DataError(
                f"the {split} split of {dataset.prefix} has {self.num_tokens} tokens in {self.num_documents} "
                f"documents, and one sample needs {sequence_length + 1}; use more text, a larger share in data.split, "
                "or a shorter model.sequence_length"
            )
        self._epochs: OrderedDict[int, Sequence[int] | NDArray[np.int64]] = OrderedDict()

    def tokens_of(self, sample: int) -> NDArray[np.int64]:
        """The S+1 tokens of sample `sample` (from 0): inputs are all but the last, labels all but the first.

        Raises IndexError beyond the one pass of validation and test.
        """
        return self.tokens_of_many([sample])[0]

    def tokens_of_many(self, samples: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """The tokens of samples in any order, [n, S+1]. Raises IndexError as `tokens_of` does."""
        numbers = np.asarray(samples, dtype=np.int64)
        tokens = np.empty((len(numbers), self.sequence_length + 1), dtype=np.int64)
        self.read(numbers, np.arange(len(numbers)), tokens)
        return tokens

    def read(self, samples: NDArray[np.int64], rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> None:
        """tokens[rows[i]] = the S+1 tokens of sample samples[i]; `tokens` is [n, S+1]."""
        last = np.iinfo(np.int64).max if self.shuffled else self.samples_per_epoch - 1
        beyond = samples[(samples < 0) | (samples > last)]
        if len(beyond):
            raise IndexError(f"sample {beyond[0]} of {self.split}, which has {self.samples_per_epoch} in its one pass")
        epochs, within = np.divmod(samples, self.samples_per_epoch)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            self._gather(epoch, within[chosen], rows[chosen], tokens)

    def open_epoch(self, epoch: int) -> Sequence[int] | NDArray[np.int64]:
        """The index of an epoch: tokens before every GROUP-th place of its order of documents, and all of them."""
        if epoch not in self._epochs:
            starts = self._make_index(epoch)
            if len(self._epochs) >= _CACHED_EPOCHS:
                self._epochs.popitem(last=False)
            self._epochs[epoch] = starts
        return self._epochs[epoch]

    def _gather(
        self, epoch: int, within: NDArray[np.int64], rows: NDArray[np.int64], tokens: NDArray[np.int64]
    ) -> None:
        self._core.gather(
            self.dataset.arrays.tokens,
            f"{self.dataset.dtype.kind}{self.dataset.dtype.itemsize}",
            self._documents,
            self._key("documents", epoch),
            self.open_epoch(epoch),
            GROUP,
            self._key("samples", epoch),
            self.samples_per_epoch,
            within,
            rows,
            self.sequence_length,
            tokens,
        )

    def _key(self, order: str, epoch: int) -> bytes | None:
        return order_key(self.seed, f"{order}/{self.split}/{epoch}") if self.shuffled else None

    def _make_index(self, epoch: int) -> Sequence[int] | NDArray[np.int64]:
        size = -(-self._documents.num_documents // GROUP) + 1
        key = self._key("documents", epoch)

        def build() -> NDArray[np.int64]:
            starts = np.empty(size, dtype=np.int64)
            self._core.group_starts(self._documents, key, GROUP, starts)
            assert starts[-1] == self.num_tokens, (int(starts[-1]), self.num_tokens)
            return starts

        if self.store is None:
            return build()
        order = f"{self.seed}/{epoch}" if self.shuffled else "in order"
        low, high = self._documents.low, self._documents.high
        return self.store.load(f"{self.split}-{epoch}", f"{order} {low} {high} {GROUP}", size, build)

    def _count(self, shares: tuple[float, float, float]) -> tuple[int, int]:
        """Documents and tokens of the split. Raises DataError where any split has a share and no document."""
        for split, share in zip(SPLITS, shares, strict=True):
            if share > 0 and not has_documents(self._documents.num_documents, shares, split):
                raise no_documents(shares, split, self._documents.num_documents)
        if (self._documents.low, self._documents.high) == (0, PLACES):
            return self._documents.num_documents, self.dataset.num_tokens
        return self._core.split_totals(self._documents)


def documents_in(dataset: IndexedDataset, shares: tuple[float, float, float], split: Split) -> Documents:
    """The documents of a split. Raises DataError where the shares are wrong or the split has none."""
    arrays = dataset.arrays
    end_bytes = dataset.num_tokens * dataset.dtype.itemsize
    low, high = split_bounds(shares, split)
    return Documents(arrays.lengths, arrays.pointers, arrays.bounds, dataset.dtype.itemsize, end_bytes, low, high)
