"""What every rank tells all others once a step: is its loss finite, are its gradients, must it stop, how long it took.

One sum over all ranks carries it, before the update, so that every rank decides the same.
"""

import signal
from typing import NamedTuple

import torch
import torch.distributed as dist

from megagpt.errors import TrainingError
from megagpt.parallel.mesh import Mesh


class RankSigns(NamedTuple):
    """The signs of one rank in one step."""

    loss_finite: bool
    gradients_finite: bool
    stop_signal: int = 0  # number of the signal that asked this rank to stop
    seconds: float = 0.0  # in reading its data and in its passes (slow_ranks.py)


def gather_signs(signs: RankSigns, mesh: Mesh) -> list[RankSigns]:
    """The signs of every rank, in the order of ranks. Gathers over all ranks."""
    gathered = torch.zeros(mesh.world_size, len(signs), device=mesh.device)
    gathered[mesh.rank] = torch.tensor([float(value) for value in signs])
    dist.all_reduce(gathered)
    rows = gathered.tolist()
    return [RankSigns(bool(loss), bool(gradients), int(stop), seconds) for loss, gradients, stop, seconds in rows]


def stop_asked(signs: list[RankSigns]) -> str | None:
    """Name of the signal that asked a rank to stop, the lowest rank's of several; None: no rank was asked."""
    return next((signal.Signals(sign.stop_signal).name for sign in signs if sign.stop_signal), None)


def describe_not_finite(signs: list[RankSigns], of: str = "") -> str | None:
    """`the loss is not finite on rank 1, 3`, of losses before gradients; None where all is finite."""
    bad_losses = [rank for rank, sign in enumerate(signs) if not sign.loss_finite]
    bad_gradients = [rank for rank, sign in enumerate(signs) if not sign.gradients_finite]
    for what, ranks in (("loss", bad_losses), ("gradient", bad_gradients)):
        if ranks:
            return f"the {what}{of} is not finite on rank {', '.join(map(str, ranks))}"
    return None


def check_finite(signs: list[RankSigns], step: int) -> None:
    """Raise TrainingError, naming the ranks, where a loss or gradient is not finite. `step` counts from 0."""
    trouble = describe_not_finite(signs, f" of step {step + 1}")
    if trouble is not None:
        raise TrainingError(
            f"{trouble}; training stopped before the update. Lower "
            "train.lr, lengthen train.warmup_tokens, look at the data of this step with `megagpt data show RUN --step "
            f'{step}`, train in bf16 or fp32, or leave such updates out with faults.not_finite = "skip"'
        )
