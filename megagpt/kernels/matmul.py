"""Matrix products in float32 on CPUs on which the library that torch calls for them is not the fast one.

torch hands float32 products to MKL, which leaves AVX-512 unused on AMD's processors; oneDNN, which torch has too, takes
half the time there (an EPYC of family 26, one core). In bfloat16 torch calls oneDNN itself. On Intel's processors MKL
stays (unmeasured).

Legend: T tokens, K inputs, N outputs. Knows nothing of ranks.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

_CPU_INFO = Path("/proc/cpuinfo")


@cache
def prefers_onednn() -> bool:
    """Whether float32 products on this CPU are left to oneDNN: AMD with AVX-512."""
    if not torch.backends.mkldnn.is_available() or not _CPU_INFO.exists():
        return False
    lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines()
    found = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return found.get("vendor_id") == "AuthenticAMD" and "avx512f" in found.get("flags", "").split()


def takes_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `product` hands such tensors to oneDNN; `torch.matmul` serves all others best."""
    return device.type == "cpu" and dtype == torch.float32 and prefers_onednn()


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left [M, K] times right [K, N] to [M, N]; either may be turned. No gradient.

    `out` [M, N] is memory that the result may be in: oneDNN makes its own.
    """
    if takes_onednn(left.device, left.dtype) and type(left) is Tensor:  # a fake one has no oneDNN
        result: Tensor = torch.ops.mkldnn._linear_pointwise(left, right.t(), None, "none", [], "")
        return result
    return torch.mm(left, right) if out is None else torch.mm(left, right, out=out)


def _product_flops(values: torch.Size, weight: torch.Size, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """values [M, K], weight [N, K]; torch (2.13) leaves this operator out of its count."""
    return 2 * values[0] * values[1] * weight[0]


if torch.backends.mkldnn.is_available():
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_product_flops)


def fast_linear(values: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """values [..., K] times weight [N, K] transposed, plus bias [N], to [..., N]; by `product` in both passes."""
    output: Tensor = _Linear.apply(values.reshape(-1, values.shape[-1]), weight, bias)
    return output.view(*values.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(values, weight)
        ctx.has_bias = bias is not None
        output = product(values, weight.t())
        return output if bias is None else output.add_(bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, weight = ctx.saved_tensors
        needs_values, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            product(gradient, weight) if needs_values else None,
            product(gradient.t(), values) if needs_weight else None,
            gradient.sum(0) if ctx.has_bias and needs_bias else None,
        )
