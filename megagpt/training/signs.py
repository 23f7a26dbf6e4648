"""What every rank tells all others once a step: its loss, are its gradients finite, must it stop, how long it took.

One sum over all ranks carries it, before the update, so that every rank decides the same. It is made on the device and
read by the host once: the only place of a step, but for the norm that the update clips by, where the host waits for the
device.
"""

import math
import signal
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.errors import TrainingError
from megagpt.parallel.mesh import Mesh
from megagpt.training.totals import StepTotals


class RankSigns(NamedTuple):
    """The signs of one rank in one step."""

    loss_finite: bool
    gradients_finite: bool
    stop_signal: int = 0  # number of the signal that asked this rank to stop
    seconds: float = 0.0  # of its own work (own_seconds.py)
    loss: StepTotals = StepTotals(0.0, 0)  # of the step's micro-batches; tensor ranks hold copies of it


class OwnSigns(NamedTuple):
    """What one rank tells, on its device, where the host has not read it."""

    losses: Tensor  # [2] float64: sum of the losses of its micro-batches, and their tokens
    gradients_finite: Tensor  # [] bool
    stop_signal: int = 0
    seconds: float = 0.0


def no_signs(stop_signal: int, mesh: Mesh) -> OwnSigns:
    """Of a rank that has done nothing yet."""
    nothing = torch.zeros(2, dtype=torch.float64, device=mesh.device)
    return OwnSigns(nothing, torch.ones((), dtype=torch.bool, device=mesh.device), stop_signal)


def gather_signs(own: OwnSigns, mesh: Mesh) -> list[RankSigns]:
    """The signs of every rank, in the order of ranks. Gathers over all ranks; the host waits for the device here."""
    of_host = torch.tensor([own.stop_signal, own.seconds], dtype=torch.float64)
    if mesh.device.type == "cuda":  # a copy from memory that is not pinned would wait for the device
        of_host = of_host.pin_memory().to(mesh.device, non_blocking=True)
    gathered = torch.zeros(mesh.world_size, 5, dtype=torch.float64, device=mesh.device)
    gathered[mesh.rank] = torch.cat([own.losses, own.gradients_finite.reshape(1), of_host])
    dist.all_reduce(gathered)
    return [_signs_of(row) for row in read_from_device(gathered)]


def read_from_device(values: Tensor) -> list[list[float]]:
    """A matrix as rows of numbers. The host waits until the device has made it."""
    rows: list[list[float]] = values.tolist()
    return rows


def total_loss(signs: list[RankSigns], mesh: Mesh) -> StepTotals:
    """The loss of the global batch: the sum over ranks, of which one of each tensor group counts."""
    counted = [sign.loss for sign in signs[:: mesh.tensor_size]]  # mesh.py: tensor ranks are neighbours
    return StepTotals(sum(loss.loss_sum for loss in counted), sum(loss.num_tokens for loss in counted))


def _signs_of(row: list[float]) -> RankSigns:
    loss_sum, num_tokens, gradients, stop, seconds = row
    # a sum of fp32 losses in fp64 does not overflow: it is finite if each of them is
    return RankSigns(
        math.isfinite(loss_sum), bool(gradients), int(stop), seconds, StepTotals(loss_sum, int(num_tokens))
    )


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
