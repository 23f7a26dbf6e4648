"""A kernel in Triton's interpreter beside the plain formula in float64: outputs and every gradient."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from megagpt.kernels.triton_use import has_triton, is_interpreted

NEEDS_INTERPRETER = pytest.mark.skipif(
    not (has_triton() and is_interpreted()), reason="needs Triton with TRITON_INTERPRET=1"
)

# of a rounding to the dtype, relative to a tensor's largest value; float32: a few sums and functions in float32
ROUNDING = {torch.float32: 2**-19, torch.bfloat16: 2**-7, torch.float16: 2**-10}


def fresh_seed() -> int:
    """A seed that no earlier run had, printed so that a failure can be repeated."""
    seed = int(torch.seed()) % 2**31
    print(f"seed {seed}")
    return seed


def normal(seed: int, *shapes: tuple[int, ...]) -> list[Tensor]:
    """Tensors of these shapes, N(0, 1), float64."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def largest_difference(
    kernel: Callable[..., tuple[Tensor, ...]],
    formula: Callable[..., tuple[Tensor, ...]],
    inputs: list[Tensor],
    dtype: torch.dtype,
    device: str = "cpu",
) -> float:
    """Over outputs and gradients, relative to the largest value of each; both start from inputs rounded to `dtype`."""
    given = [value.to(device, dtype).requires_grad_() for value in inputs]
    exact = [value.detach().double().cpu().requires_grad_() for value in given]
    found, wanted = kernel(*given), formula(*exact)
    upstream = normal(7, *(tuple(value.shape) for value in wanted))
    rounded = [value.to(device, dtype) for value in upstream]
    found += torch.autograd.grad(found, given, rounded)
    wanted += torch.autograd.grad(wanted, exact, [value.double().cpu() for value in rounded])
    worst = 0.0
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == dtype
        assert one.shape == other.shape
        difference = (one.detach().double().cpu() - other.detach()).abs().max() / other.detach().abs().max()
        worst = max(worst, float(difference))
    return worst
