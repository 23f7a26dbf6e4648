"""Batches for one rank. In: samples and a step's place in their order. Out: micro-batches as torch tensors.

A batch is a pure function of (samples, step, data rank, context rank): nothing is remembered between calls,
so a resumed run needs only its step number.
"""

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from megagpt.data.batch import Batch, context_part


class SampleSource(Protocol):
    """Samples by number, as SampleIndex and BlendedSamples give them."""

    @property
    def samples_per_epoch(self) -> int:
        """Samples until all has been read once."""

    def tokens_of_many(self, samples: NDArray[np.int64]) -> NDArray[np.int64]:
        """The S+1 tokens of each of some samples, [n, S+1]."""


class StepSlice(Protocol):
    """The place of a step's global batch in the order of samples, and how each rank cuts its share."""

    @property
    def first_sample(self) -> int:
        """Number of the first sample of the global batch."""

    @property
    def num_sequences(self) -> int:
        """Samples in the global batch."""

    @property
    def micro_batch_size(self) -> int:
        """Sequences in a micro-batch."""

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of each data rank."""


class BatchStream:
    """The batches of data rank `data_rank` of `data_ranks`, and of each sequence context rank `context_rank`'s part."""

    def __init__(
        self,
        samples: SampleSource,
        sequence_length: int,
        eod_id: int,
        separate_documents: bool,
        data_rank: int,
        data_ranks: int,
        context_rank: int = 0,
        context_ranks: int = 1,
    ) -> None:
        assert 0 <= data_rank < data_ranks, (data_rank, data_ranks)
        assert 0 <= context_rank < context_ranks, (context_rank, context_ranks)
        self.samples = samples
        self.sequence_length = sequence_length
        self.eod_id = eod_id
        self.separate_documents = separate_documents
        self.data_rank = data_rank
        self.data_ranks = data_ranks
        self.context_rank = context_rank
        self.context_ranks = context_ranks

    def micro_batches(self, step: StepSlice) -> list[Batch]:
        """This rank's micro-batches of a step: its part of the global batch, cut in order."""
        return cut(self.whole_batch(step), step.micro_batch_size)

    def whole_batch(self, step: StepSlice) -> Batch:
        """This rank's part of a step's global batch, which is a contiguous block of it, in one piece."""
        block = step.num_sequences // self.data_ranks
        assert block * self.data_ranks == step.num_sequences, (step.num_sequences, self.data_ranks)
        assert block == step.micro_batch_size * step.num_micro_batches, (block, step)
        first = step.first_sample + self.data_rank * block
        return self._batch(np.arange(first, first + block))  # at once: few calls, few and large blocks of memory

    def num_evaluation_micro_batches(self, max_sequences: int, micro_batch_size: int) -> int:
        """Micro-batches that `evaluation_batches` gives on each rank."""
        sequences = min(max_sequences, self.samples.samples_per_epoch)
        return -(-sequences // (self.data_ranks * micro_batch_size))

    def evaluation_batches(self, max_sequences: int, micro_batch_size: int) -> Iterator[Batch]:
        """This rank's part of the first `max_sequences` samples (all, where there are fewer), each exactly once.

        Every rank gives the same number of micro-batches of the same shape; where samples run out, the rest of a
        micro-batch repeats the first sample with loss_mask 0, so sums of loss and of tokens are those of the samples.
        """
        sequences = min(max_sequences, self.samples.samples_per_epoch)
        block = self.num_evaluation_micro_batches(max_sequences, micro_batch_size) * micro_batch_size
        first = self.data_rank * block
        for start in range(first, first + block, micro_batch_size):
            numbers = np.arange(start, max(start, min(start + micro_batch_size, sequences)))
            filled = np.append(numbers, np.zeros(micro_batch_size - len(numbers), dtype=np.int64))
            batch = self._batch(filled)
            if len(numbers) < micro_batch_size:
                batch.loss_mask[len(numbers) :] = 0
            yield batch

    def _batch(self, numbers: NDArray[np.int64]) -> Batch:
        """The samples `numbers`."""
        rows = self.samples.tokens_of_many(numbers)
        assert rows.shape == (len(numbers), self.sequence_length + 1), rows.shape
        batch = make_batch(rows, self.eod_id if self.separate_documents else None)
        return context_part(batch, self.context_rank, self.context_ranks)


def cut(batch: Batch, size: int) -> list[Batch]:
    """Micro-batches of `size` sequences, in order; the memory is shared."""
    return [rows_of(batch, start, start + size) for start in range(0, len(batch.tokens), size)]


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """The sequences `start` to `stop` of a batch; the memory is shared."""
    return Batch(*(None if part is None else part[start:stop] for part in batch))  # type: ignore[arg-type]


def make_batch(rows: NDArray[np.int64], separate_documents_eod_id: int | None) -> Batch:
    """A batch from `rows` [B, S+1].

    With `separate_documents_eod_id`, positions restart and the document number rises after each end of document, and
    the label of an end-of-document input, which is the first token of another document, does not count.
    """
    tokens = rows[:, :-1]
    pair = np.empty((2, *tokens.shape), dtype=np.int64)
    pair[0], pair[1] = tokens, rows[:, 1:]
    inputs, labels = torch.from_numpy(pair)
    loss_mask = torch.ones(tokens.shape, dtype=torch.float32)
    if separate_documents_eod_id is None:
        positions = torch.arange(tokens.shape[1]).expand(tokens.shape)
        return Batch(inputs, labels, loss_mask, positions, None)
    ends = tokens == separate_documents_eod_id
    begins = np.zeros_like(ends)
    begins[:, 1:] = ends[:, :-1]
    documents = np.cumsum(begins, axis=1, dtype=np.int32)
    places = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int64), tokens.shape)
    places = places - np.maximum.accumulate(np.where(begins, places, 0), axis=1)
    loss_mask[torch.from_numpy(ends)] = 0
    return Batch(inputs, labels, loss_mask, torch.from_numpy(places), torch.from_numpy(documents))
