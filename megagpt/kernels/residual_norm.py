"""What stands between two branches of a decoder layer: bias and dropout of the one, the residual sum, the next norm.

Plain formula, torch's own operations, our Triton kernel (one read and one write of each row), and the one dispatch
between them. Knows nothing of ranks: under sequence parallelism the rows are this rank's and so is the seed.
"""

from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from megagpt.kernels.dropout import dropout
from megagpt.kernels.layer_norm import LayerNorm, reference_layer_norm
from megagpt.kernels.triton_use import runs_triton


class Branch(NamedTuple):
    """A branch's output before its bias is added, and the dropout that follows."""

    output: Tensor  # [..., H]
    bias: Tensor  # [H]
    dropout: float = 0.0
    seed: int | None = None  # None: no dropout


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
    if runs_triton(residual):
        from megagpt.kernels.residual_norm_triton import AddNorm

        summed: Tensor = AddNorm.apply(residual, *branch[:2], None, None, 0.0, *branch[2:])[0]
        return summed
    return residual + dropout(branch.output + branch.bias, branch.dropout, branch.seed)


def add_norm(
    residual: Tensor, branch: Branch, weight: Tensor, norm_bias: Tensor, epsilon: float
) -> tuple[Tensor, Tensor]:
    """(new residual stream, its LayerNorm): residual + dropout(output + bias), then the norm over the last dim.

    On the CPU torch's operations; the mask of dropout is then `kernels/dropout.py`'s, on CUDA the kernel's own.
    """
    if runs_triton(residual):
        from megagpt.kernels.residual_norm_triton import AddNorm

        both: tuple[Tensor, Tensor] = AddNorm.apply(residual, *branch[:2], weight, norm_bias, epsilon, *branch[2:])
        return both
    summed = add_branch(residual, branch)
    return summed, F.layer_norm(summed, weight.shape, weight, norm_bias, epsilon)


class ResidualNorm(LayerNorm):
    """LayerNorm of the residual stream after a branch is added to it; its parameters are LayerNorm's."""

    def forward(self, residual: Tensor, branch: Branch) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """[..., H] to the new residual stream and its norm, each [..., H]."""
        return add_norm(residual, branch, self.weight, self.bias, self.epsilon)
