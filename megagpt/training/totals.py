"""The sums of one step over all ranks, reduced once and divided once."""

import hashlib
import math
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.data.batch import Batch
from megagpt.kernels.dropout import mix
from megagpt.parallel.mesh import Mesh
from megagpt.parallel.schedule import TokenLoss


class StepTotals(NamedTuple):
    """Loss of one global batch."""

    loss_sum: float  # nats
    num_tokens: int  # that count in the loss

    @property
    def loss(self) -> float:
        """Mean loss in nats a token."""
        return self.loss_sum / self.num_tokens if self.num_tokens else math.nan


def dropout_seed(seed: int, step: int, data_rank: int) -> int:
    """Seed of one step's dropout on one data rank: the named stream "dropout", then step, then rank."""
    stream = int.from_bytes(hashlib.sha256(f"dropout/{seed}".encode()).digest()[:7], "little")
    return mix(mix(stream, step), data_rank)


def reduce_num_loss_tokens(micro_batches: list[Batch], mesh: Mesh) -> Tensor:
    """Tokens of the global batch that count in the loss, [] float64 on the device. Reduces over the gradient group."""
    masks = torch.stack([batch.loss_mask for batch in micro_batches]).to(mesh.device)
    total = masks.sum(dtype=torch.float64)
    dist.all_reduce(total, group=mesh.gradient_group)
    return total


def sum_losses(losses: list[TokenLoss], device: torch.device) -> Tensor:
    """Sum of this rank's micro-batch losses and their tokens, [2] float64 on the device; zeros where it has none."""
    if not losses:
        return torch.zeros(2, dtype=torch.float64, device=device)
    sums = torch.stack([loss.sum for loss in losses]).sum(dtype=torch.float64)
    return torch.stack([sums, torch.stack([loss.num_tokens for loss in losses]).sum(dtype=torch.float64)])


def reduce_losses(losses: list[TokenLoss], mesh: Mesh) -> StepTotals:
    """Sum of micro-batch losses and their tokens. Reduces over all ranks; tensor ranks hold copies, one counts."""
    total = sum_losses(losses if mesh.tensor_rank == 0 else [], mesh.device)
    dist.all_reduce(total)
    loss_sum, num_tokens = total.tolist()
    return StepTotals(loss_sum, int(num_tokens))
