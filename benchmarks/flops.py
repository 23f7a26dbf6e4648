"""Floating-point operations that a piece of code really does, counted by torch as each operator runs.

In: code that runs within `CountedFlops`. Out: their number. Attention counts as in model/cost.py: over the whole S x S
matrix, and in its backward pass without the scores that a fused kernel makes anew.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

import megagpt.kernels.attention_native  # noqa: F401  defines torch.ops.megagpt.cpu_attention

aten = torch.ops.aten


def _forward(query: Any, key: Any, value: Any, *others: Any, out_shape: Any = None, **options: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _backward(gradient: Any, query: Any, key: Any, value: Any, *others: Any, **options: Any) -> int:
    """Two products for each of the forward pass; torch's own count has a fifth, which makes the scores anew."""
    return 2 * int(sdpa_flop_count(query, key, value))


# torch's fused attention of the CPU is not in its table (2.13); ours has put itself there
_OF_CPU: dict[Any, Callable[..., int]] = {
    torch.ops.megagpt.cpu_attention_backward: _backward,
    aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}
_OF_CUDA: dict[Any, Callable[..., int]] = {
    aten._scaled_dot_product_flash_attention_backward: _backward,
    aten._scaled_dot_product_efficient_attention_backward: _backward,
    aten._scaled_dot_product_cudnn_attention_backward: _backward,
}


class CountedFlops(FlopCounterMode):
    """Counts within `with`; `get_total_flops()` is the number."""

    def __init__(self) -> None:
        super().__init__(display=False, custom_mapping=_OF_CPU | _OF_CUDA)
