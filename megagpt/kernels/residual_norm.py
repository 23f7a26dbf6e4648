"""What stands between two branches of a decoder layer: bias and dropout of the one, the residual sum, the next norm.

Plain formula, torch's own operations, our Triton kernel (one read and one write of each row), torch.compile's, and the
one dispatch between them. Knows nothing of ranks: under sequence parallelism rows and seed are this rank's.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from megagpt.kernels.compiled import compiled
from megagpt.kernels.dropout import dropout, keep_mask
from megagpt.kernels.layer_norm import LayerNorm, reference_layer_norm
from megagpt.kernels.triton_use import runs_triton


class Branch(NamedTuple):
    """A branch's output before its bias is added, and the dropout that follows."""

    output: Tensor  # [..., H]
    bias: Tensor  # [H]
    dropout: float = 0.0
    seed: int | None = None  # None: no dropout
    compiles: bool = False  # torch.compile's code instead of our kernel


def reference_add(residual: Tensor, branch: Branch) -> Tensor:
    """The formula, without dropout."""
    return residual + (branch.output + branch.bias)


def reference_add_norm(
    residual: Tensor, branch: Branch, weight: Tensor, norm_bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """The formula, without dropout: (new residual stream, its LayerNorm)."""
    summed = reference_add(residual, branch)
    return summed, reference_layer_norm(summed, weight, norm_bias, epsilon)


def add_branch(residual: Tensor, branch: Branch) -> Tensor:
    """residual + dropout(output + bias), [..., H]."""
    if branch.compiles:
        return compiled(_add_region)(residual, branch.output, branch.bias, *_mask(branch))
    if runs_triton(residual):
        from megagpt.kernels.residual_norm_triton import AddNorm

        return AddNorm.apply(residual, branch.output, branch.bias, None, None, 0.0, branch.dropout, branch.seed)[0]
    return residual + dropout(branch.output + branch.bias, branch.dropout, branch.seed)


def add_norm(
    residual: Tensor, branch: Branch, weight: Tensor, norm_bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """(new residual stream, its LayerNorm): residual + dropout(output + bias), then the norm over the last dim.

    The mask of dropout is that of `kernels/dropout.py`, but on CUDA without torch.compile the kernel's own.
    """
    if branch.compiles:
        return compiled(_add_norm_region)(
            residual, branch.output, branch.bias, *_mask(branch), weight, norm_bias, epsilon
        )
    if runs_triton(residual):
        from megagpt.kernels.residual_norm_triton import AddNorm

        return AddNorm.apply(
            residual, branch.output, branch.bias, weight, norm_bias, epsilon, branch.dropout, branch.seed
        )
    summed = add_branch(residual, branch)
    return summed, F.layer_norm(summed, weight.shape, weight, norm_bias, epsilon)


def _mask(branch: Branch) -> tuple[Tensor | None, float]:
    """Which values dropout keeps, and the factor of what it keeps; drawn here, as a seed may not enter a region."""
    if branch.seed is None or branch.dropout == 0.0:
        return None, 1.0
    return keep_mask(branch.output, branch.dropout, branch.seed), 1.0 / (1.0 - branch.dropout)


def _add_region(residual: Tensor, output: Tensor, bias: Tensor, kept: Tensor | None, scale: float) -> Tensor:
    added = output + bias
    return residual + (added if kept is None else added * kept * scale)


def _add_norm_region(
    residual: Tensor,
    output: Tensor,
    bias: Tensor,
    kept: Tensor | None,
    scale: float,
    weight: Tensor,
    norm_bias: Tensor,
    epsilon: float,
) -> tuple[Tensor, Tensor]:
    summed = _add_region(residual, output, bias, kept, scale)
    return summed, F.layer_norm(summed, weight.shape, weight, norm_bias, epsilon)


class ResidualNorm(LayerNorm):
    """LayerNorm of the residual stream after a branch is added to it; its parameters are LayerNorm's."""

    def forward(self, residual: Tensor, branch: Branch) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """[..., H] to the new residual stream and its norm, each [..., H]."""
        return add_norm(residual, branch, self.weight, self.bias, self.epsilon)
