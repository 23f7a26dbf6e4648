"""One micro-batch of token ids as it crosses from the data to the model. Knows no datasets or process groups."""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """A micro-batch; B sequences of S tokens. `documents` is None where packed documents are not kept apart.

    With c context ranks all but `documents` are this rank's part, [B, S / c]: attention sees whole sequences.
    """

    tokens: Tensor  # [B, S] int64, inputs
    labels: Tensor  # [B, S] int64, the token after each input
    loss_mask: Tensor  # [B, S] float32, 0 where the label does not count
    positions: Tensor  # [B, S] int64, index into the learned positions
    documents: Tensor | None  # [B, S] int32, number of the document within the sequence, rising from 0

    def to(self, device: torch.device) -> "Batch":
        """The same micro-batch on another device."""
        tokens, labels, loss_mask, positions = (part.to(device, non_blocking=True) for part in self[:4])
        documents = None if self.documents is None else self.documents.to(device, non_blocking=True)
        return Batch(tokens, labels, loss_mask, positions, documents)

    def pin_memory(self) -> "Batch":
        """The same micro-batch in pinned memory, from which a copy to a CUDA device does not hold up the host."""
        # positions may be one row for all sequences, which no copy can be written into
        tokens, labels, loss_mask, positions = (part.contiguous().pin_memory() for part in self[:4])
        return Batch(
            tokens, labels, loss_mask, positions, None if self.documents is None else self.documents.pin_memory()
        )


def context_part(batch: Batch, context_rank: int, context_size: int) -> Batch:
    """The contiguous part of every sequence that one context rank holds; `documents` stay whole."""
    if context_size == 1:
        return batch
    length = batch.tokens.shape[1] // context_size
    assert length * context_size == batch.tokens.shape[1], (batch.tokens.shape, context_size)
    part = slice(context_rank * length, (context_rank + 1) * length)
    tokens, labels, loss_mask, positions = (values[:, part].contiguous() for values in batch[:4])
    return Batch(tokens, labels, loss_mask, positions, batch.documents)
