"""One micro-batch of token ids as it crosses from the data to the model. Knows nothing of datasets or ranks."""

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """A micro-batch; B sequences of S tokens. `documents` is None where packed documents are not kept apart."""

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
