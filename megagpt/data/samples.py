"""The order of samples. In: an indexed dataset, a split, a seed, a sequence length. Out: the tokens of sample n, any n.

An epoch goes through the split's documents in shuffled order, joined end to end (each ends with the end-of-document
id), cut into windows of S+1 tokens that start every S tokens, so that each token but the first is a label once; what is
left after the last whole window is dropped. The windows are then shuffled. Epochs follow one another without end, each
in an order of its own. Validation and test are not shuffled and go round once. Knows nothing of ranks or batches.
"""

import hashlib
from collections import OrderedDict
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megagpt.data.indexed import IndexedDataset
from megagpt.data.splits import Split, documents_of_split
from megagpt.errors import DataError

_CACHED_EPOCHS = 2  # a batch can straddle two


class _Epoch(NamedTuple):
    documents: NDArray[np.int64]  # document numbers in this epoch's order
    starts: NDArray[np.int64]  # [documents + 1] place of each document's first token in the epoch
    windows: NDArray[np.int64] | None  # sample of the epoch -> window; None: in order


class SampleIndex:
    """Random access to the samples of one split; the same arguments give the same samples."""

    def __init__(
        self,
        dataset: IndexedDataset,
        split: Split,
        shares: tuple[float, float, float],
        sequence_length: int,
        seed: int,
    ) -> None:
        """Raises DataError where the split has no document, or too few tokens for one sample."""
        assert sequence_length >= 1, sequence_length
        self.dataset = dataset
        self.split = split
        self.sequence_length = sequence_length
        self.seed = seed
        self.shuffled = split == "train"
        self._documents = documents_of_split(len(dataset), shares, split)
        self._lengths = dataset.document_lengths[self._documents]
        self.num_tokens = int(self._lengths.sum())
        self.samples_per_epoch = max(self.num_tokens - 1, 0) // sequence_length
        if self.samples_per_epoch == 0:
            raise DataError(
                f"the {split} split of {dataset.prefix} has {self.num_tokens} tokens in {len(self._documents)} "
                f"documents, and one sample needs {sequence_length + 1}; use more text, a larger share in data.split, "
                "or a shorter model.sequence_length"
            )
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()

    @property
    def num_documents(self) -> int:
        """Documents in the split."""
        return len(self._documents)

    def tokens_of(self, sample: int) -> NDArray[np.int64]:
        """The S+1 tokens of sample `sample` (from 0): inputs are all but the last, labels all but the first.

        Raises IndexError beyond the one pass of validation and test.
        """
        if sample < 0 or (not self.shuffled and sample >= self.samples_per_epoch):
            raise IndexError(f"sample {sample} of {self.split}, which has {self.samples_per_epoch} in its one pass")
        number, within = divmod(sample, self.samples_per_epoch)
        epoch = self._epoch(number)
        window = within if epoch.windows is None else int(epoch.windows[within])
        return self._gather(epoch, window * self.sequence_length)

    def _gather(self, epoch: _Epoch, start: int) -> NDArray[np.int64]:
        """S+1 tokens from place `start` of the epoch."""
        tokens = np.empty(self.sequence_length + 1, dtype=np.int64)
        filled = 0
        position = int(np.searchsorted(epoch.starts, start, side="right")) - 1
        skip = start - int(epoch.starts[position])
        while filled < len(tokens):
            begin = int(self.dataset.document_offsets[epoch.documents[position]]) + skip
            length = int(epoch.starts[position + 1] - epoch.starts[position]) - skip
            taken = min(length, len(tokens) - filled)
            tokens[filled : filled + taken] = self.dataset.tokens(begin, begin + taken)
            filled += taken
            position += 1
            skip = 0
        return tokens

    def _epoch(self, number: int) -> _Epoch:
        if number in self._epochs:
            return self._epochs[number]
        if len(self._epochs) >= _CACHED_EPOCHS:
            self._epochs.popitem(last=False)
        self._epochs[number] = self._make_epoch(number)
        return self._epochs[number]

    def _make_epoch(self, number: int) -> _Epoch:
        if not self.shuffled:
            return _Epoch(self._documents, _starts(self._lengths), None)
        order = shuffled_order(len(self._documents), self.seed, f"documents/{self.split}/{number}")
        windows = shuffled_order(self.samples_per_epoch, self.seed, f"samples/{self.split}/{number}")
        return _Epoch(self._documents[order], _starts(self._lengths[order]), windows)


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(lengths, dtype=np.int64)))


def shuffled_order(count: int, seed: int, stream: str) -> NDArray[np.int64]:
    """A permutation of 0 … count-1 from the random stream (seed, name).

    Sorts raw Philox output: NumPy promises that a bit generator's raw output stays the same over its versions, but not
    what Generator.permutation makes of it. Equal keys (probability count² / 2^65) keep their order.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed}/{stream}".encode()).digest()[:16], "little")
    return np.argsort(np.random.Philox(key=key).random_raw(count), kind="stable")
