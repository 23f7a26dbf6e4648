"""Bias and GELU in one step: what follows the feed-forward layer's first matrix. Knows nothing of ranks.

Plain formula, torch's own operations, our kernels for GPUs (Triton) and CPUs (C++), torch.compile's code, and the one
dispatch between them.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from megagpt.kernels.bias_gelu_native import native_bias_gelu, native_bias_gelu_fits
from megagpt.kernels.compiled import compiled
from megagpt.kernels.gelu import gelu, reference_gelu
from megagpt.kernels.triton_use import runs_triton


def reference_bias_gelu(values: Tensor, bias: Tensor, form: Literal["gelu_tanh", "gelu_erf"]) -> Tensor:
    """GELU of values + bias; values [..., F], bias [F]."""
    return reference_gelu(values + bias, form)


def bias_gelu(values: Tensor, bias: Tensor, form: Literal["gelu_tanh", "gelu_erf"], compiles: bool = False) -> Tensor:
    """GELU of values + bias; values [..., F], bias [F]. With `compiles`, torch.compile of `_wide_form`."""
    if compiles:
        return compiled(_wide_form)(values, bias, form)
    if runs_triton(values):
        from megagpt.kernels.bias_gelu_triton import BiasGelu

        return BiasGelu.apply(values, bias, form)
    if native_bias_gelu_fits(values, bias, form):
        return native_bias_gelu(values, bias)
    return gelu(values + bias, form)


def _wide_form(values: Tensor, bias: Tensor, form: Literal["gelu_tanh", "gelu_erf"]) -> Tensor:
    """In float32 at least, without rounding the sum; 0.5 (1 + tanh u) = sigmoid(2 u), half of tanh's time on a CPU."""
    wide = torch.promote_types(values.dtype, torch.float32)
    shifted = values.to(wide) + bias.to(wide)
    if form == "gelu_erf":
        return gelu(shifted, form).to(values.dtype)
    twice = 2 * math.sqrt(2 / math.pi)
    return (shifted * torch.sigmoid(shifted * (twice + twice * 0.044715 * shifted * shifted))).to(values.dtype)
