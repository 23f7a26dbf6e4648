"""The sums of one step over all ranks, reduced once and divided once."""

import hashlib
import math
from typing import NamedTuple

import torch
import torch.distributed as dist

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


def reduce_num_loss_tokens(micro_batches: list[Batch], mesh: Mesh) -> int:
    """Tokens of the global batch that count in the loss. Reduces over the gradient group."""
    total = torch.stack([batch.loss_mask.sum(dtype=torch.float64) for batch in micro_batches]).sum().to(mesh.device)
    dist.all_reduce(total, group=mesh.gradient_group)
    return int(total)


def losses_finite(losses: list[TokenLoss]) -> bool:
    """Whether every micro-batch's loss on this rank is finite."""
    return all(bool(torch.isfinite(loss.sum)) for loss in losses)


def reduce_losses(losses: list[TokenLoss], mesh: Mesh) -> StepTotals:
    """Sum of micro-batch losses and their tokens. Reduces over all ranks; tensor ranks hold copies, one counts."""
    total = torch.zeros(2, dtype=torch.float64)
    if mesh.tensor_rank == 0:
        for loss in losses:
            total += torch.tensor([float(loss.sum), float(loss.num_tokens)], dtype=torch.float64)
    total = total.to(mesh.device)
    dist.all_reduce(total)
    return StepTotals(float(total[0]), int(total[1]))
