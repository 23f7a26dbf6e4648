"""Bias and GELU (tanh form) on CPUs with AVX-512 and bfloat16 instructions: native/pointwise.cpp as a torch operator.

One read and one write a direction, in float32 throughout. Knows nothing of ranks or layers.
"""

from typing import Any

import torch
from torch import Tensor

try:
    from megagpt.native import _pointwise
except ImportError:  # no compiler when it was installed
    _pointwise = None  # type: ignore[assignment]

_LEAST_A_THREAD = 1 << 16  # values: 0.06 ms of work; unmeasured


def native_bias_gelu_fits(values: Tensor, bias: Tensor, form: str) -> bool:
    """Whether `native_bias_gelu` can run: float32 or bfloat16 on a CPU that has the instructions, width of 16."""
    if _pointwise is None or values.device.type != "cpu" or form != "gelu_tanh":
        return False
    dtype_fits = values.dtype == bias.dtype and values.dtype in (torch.float32, torch.bfloat16)
    return dtype_fits and values.numel() > 0 and values.shape[-1] % 16 == 0 and _pointwise.is_usable()


def native_bias_gelu(values: Tensor, bias: Tensor) -> Tensor:
    """GELU of values + bias, tanh form; values [..., F], bias [F]. The sum is not rounded before the GELU."""
    output: Tensor = _forward(values, bias)
    return output


@torch.library.custom_op("megagpt::cpu_bias_gelu", mutates_args=(), device_types="cpu")
def _forward(values: Tensor, bias: Tensor) -> Tensor:
    values, bias = values.contiguous(), bias.contiguous()
    out = torch.empty_like(values)
    _pointwise.gelu_forward(_call(values), values.data_ptr(), bias.data_ptr(), out.data_ptr())
    return out


@torch.library.custom_op("megagpt::cpu_bias_gelu_backward", mutates_args=(), device_types="cpu")
def _backward(grad: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of values and of bias, the latter summed in float32 by each thread over its rows, then over threads."""
    grad, values, bias = grad.contiguous(), values.contiguous(), bias.contiguous()
    grad_values, call = torch.empty_like(values), _call(values)
    sums = torch.zeros(call[1], values.shape[-1], dtype=torch.float32)
    tensors = (grad, values, bias, grad_values, sums)
    _pointwise.gelu_backward(call, *(tensor.data_ptr() for tensor in tensors))
    return grad_values, sums.sum(0).to(bias.dtype)


@_forward.register_fake
def _(values: Tensor, bias: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


@_backward.register_fake
def _(grad: Tensor, values: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(values, memory_format=torch.contiguous_format), torch.empty_like(bias)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
    return _backward(grad, *ctx.saved_tensors)


_forward.register_autograd(_differentiate, setup_context=_save)


def _call(values: Tensor) -> tuple[bool, int, int, int]:
    width = values.shape[-1]
    num_threads = max(1, min(torch.get_num_threads(), values.numel() // _LEAST_A_THREAD))
    return values.dtype == torch.bfloat16, num_threads, values.numel() // width, width
