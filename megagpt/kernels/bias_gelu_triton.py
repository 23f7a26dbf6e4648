"""Bias and GELU as one Triton kernel a direction: one read and one write of the wide activations.

In: values [T, F] without bias and bias [F]; the gradient of the output in the backward pass. Out: GELU(values + bias);
the gradient of values, and that of the bias summed over rows in float32, tile by tile in a fixed order.
Everything is computed in float32. tanh form: 0.5 · (1 + tanh u) = sigmoid(2 u), which needs one exponential.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _COLUMNS = 8, 256  # of a tile: 2048 values for 4 warps, 16 a thread; unmeasured
_ROW_GROUPS = (
    64  # programs along the rows in the backward pass, each with its own sum of the bias's gradient; unmeasured
)

# u = sqrt(2 / pi) (x + 0.044715 x^3) and 2 u = x (_LINEAR + _CUBIC x^2); the normal density is _DENSITY exp(-x^2 / 2)
_LINEAR = tl.constexpr(2 * math.sqrt(2 / math.pi))
_CUBIC = tl.constexpr(2 * math.sqrt(2 / math.pi) * 0.044715)
_ROOT_HALF = tl.constexpr(math.sqrt(0.5))
_DENSITY = tl.constexpr(1 / math.sqrt(2 * math.pi))


@triton.jit
def gelu_forward(  # type: ignore[no-untyped-def]
    values,
    bias,
    output,
    num_rows,
    width,
    ERF: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One tile [ROWS, COLUMNS] a program."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    offsets = row.to(tl.int64) * width + column[None, :]
    inside = (row < num_rows) & (column < width)[None, :]
    shift = tl.load(bias + column, column < width, other=0).to(tl.float32)
    x = tl.load(values + offsets, inside, other=0).to(tl.float32) + shift[None, :]
    if ERF:
        share = 0.5 + 0.5 * tl.erf(x * _ROOT_HALF)
    else:
        share = tl.sigmoid(x * (_LINEAR + _CUBIC * x * x))
    tl.store(output + offsets, (x * share).to(output.dtype.element_ty), inside)


@triton.jit
def gelu_backward(  # type: ignore[no-untyped-def]
    grad_output,
    values,
    bias,
    grad_values,
    bias_sums,
    num_rows,
    width,
    ERF: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """COLUMNS columns and STEPS times ROWS rows a program; bias_sums [programs along rows, F]."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    shift = tl.load(bias + column, column < width, other=0).to(tl.float32)
    total = tl.zeros([COLUMNS], tl.float32)
    for step in range(STEPS):
        row = (tl.program_id(0) * STEPS + step) * ROWS + tl.arange(0, ROWS)[:, None]
        offsets = row.to(tl.int64) * width + column[None, :]
        inside = (row < num_rows) & (column < width)[None, :]
        x = tl.load(values + offsets, inside, other=0).to(tl.float32) + shift[None, :]
        upstream = tl.load(grad_output + offsets, inside, other=0).to(tl.float32)
        if ERF:
            share = 0.5 + 0.5 * tl.erf(x * _ROOT_HALF)
            slope = share + x * _DENSITY * tl.exp(-0.5 * x * x)
        else:
            share = tl.sigmoid(x * (_LINEAR + _CUBIC * x * x))
            slope = share + x * share * (1.0 - share) * (_LINEAR + 3 * _CUBIC * x * x)
        gradient = (upstream * slope).to(grad_values.dtype.element_ty)
        tl.store(grad_values + offsets, gradient, inside)
        total += tl.sum(gradient.to(tl.float32), axis=0)
    tl.store(bias_sums + tl.program_id(0).to(tl.int64) * width + column, total, column < width)


class BiasGelu(torch.autograd.Function):
    """GELU(values + bias) for values [..., F] and bias [F]; keeps the values without bias for the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor, form: str) -> Tensor:
        values = values.contiguous()
        width = values.shape[-1]
        num_rows = values.numel() // width
        output = torch.empty_like(values)
        grid = (triton.cdiv(num_rows, _ROWS), triton.cdiv(width, _COLUMNS))
        gelu_forward[grid](values, bias, output, num_rows, width, form == "gelu_erf", _ROWS, _COLUMNS)
        ctx.save_for_backward(values, bias)
        ctx.form = form
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        values, bias = ctx.saved_tensors
        width = values.shape[-1]
        num_rows = values.numel() // width
        steps = triton.cdiv(num_rows, _ROW_GROUPS * _ROWS)
        grid = (triton.cdiv(num_rows, steps * _ROWS), triton.cdiv(width, _COLUMNS))
        grad_values = torch.empty_like(values)
        bias_sums = torch.empty(grid[0], width, dtype=torch.float32, device=values.device)
        gelu_backward[grid](
            grad_output.contiguous(),
            values,
            bias,
            grad_values,
            bias_sums,
            num_rows,
            width,
            ctx.form == "gelu_erf",
            steps,
            _ROWS,
            _COLUMNS,
        )
        return grad_values, bias_sums.sum(0).to(bias.dtype), None
