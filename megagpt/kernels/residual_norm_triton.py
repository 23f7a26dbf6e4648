"""Bias, dropout, residual sum and LayerNorm as one Triton kernel a direction.

In: rows of the residual stream and of a branch's output [T, H], the branch's bias [H], the norm's weight and bias [H].
Out: the new residual stream and its normed form. A row is read once and written once in each direction; the gradients
of the three vectors are summed in float32 over each program's rows, then over programs, in a fixed order.

The dropout mask is Philox's (Salmon et al. 2011) of the seed, the row and the column: nothing of it is kept for the
backward pass. Everything is computed in float32; the norm is that of the residual stream as rounded to its dtype.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_WAVES = 4  # programs of the backward pass for each multiprocessor; unmeasured
_PROGRAMS_INTERPRETED = 3


@triton.jit
def _kept(seed, row, threshold, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Which of BLOCK columns of a row dropout keeps: a draw of 32 bits each, four of a call of Philox."""
    fours = tl.arange(0, BLOCK // 4)
    rows = fours * 0 + row
    first, second, third, fourth = tl.philox(seed, fours, rows, fours * 0, fours * 0)
    draws = tl.interleave(tl.interleave(first, third), tl.interleave(second, fourth))
    return draws.to(tl.int64) >= threshold


@triton.jit(do_not_specialize=["seed", "threshold"])
def add_forward(  # type: ignore[no-untyped-def]
    residual,
    branch,
    bias,
    weight,
    norm_bias,
    summed,
    normed,
    means,
    scales,
    width,
    epsilon,
    seed: tl.int64,
    threshold: tl.int64,
    keep_scale,
    DROPS: tl.constexpr,
    NORMS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row a program. scales: 1 / standard deviation."""
    row = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    inside = column < width
    offsets = row.to(tl.int64) * width + column
    added = tl.load(branch + offsets, inside, other=0).to(tl.float32)
    added += tl.load(bias + column, inside, other=0).to(tl.float32)
    if DROPS:
        added = tl.where(_kept(seed, row, threshold, BLOCK), added * keep_scale, 0.0)
    total = (tl.load(residual + offsets, inside, other=0).to(tl.float32) + added).to(summed.dtype.element_ty)
    tl.store(summed + offsets, total, inside)
    if NORMS:
        x = total.to(tl.float32)
        mean = tl.sum(x, axis=0) / width
        centred = tl.where(inside, x - mean, 0.0)
        scale = 1.0 / tl.sqrt(tl.sum(centred * centred, axis=0) / width + epsilon)
        gain = tl.load(weight + column, inside, other=0).to(tl.float32)
        shift = tl.load(norm_bias + column, inside, other=0).to(tl.float32)
        tl.store(normed + offsets, (centred * scale * gain + shift).to(normed.dtype.element_ty), inside)
        tl.store(means + row, mean)
        tl.store(scales + row, scale)


@triton.jit(do_not_specialize=["seed", "threshold"])
def add_backward(  # type: ignore[no-untyped-def]
    grad_summed,
    grad_normed,
    summed,
    weight,
    means,
    scales,
    grad_residual,
    grad_branch,
    vector_sums,
    num_rows,
    width,
    seed: tl.int64,
    threshold: tl.int64,
    keep_scale,
    DROPS: tl.constexpr,
    NORMS: tl.constexpr,
    STEPS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Every n-th row a program. vector_sums [programs, 3, H]: gradients of bias, weight and norm_bias.

    Without dropout the branch's gradient is the residual's and is not written; without norm that one is grad_summed.
    """
    program, num_programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    bias_sum = tl.zeros([BLOCK], tl.float32)
    weight_sum = tl.zeros([BLOCK], tl.float32)
    norm_bias_sum = tl.zeros([BLOCK], tl.float32)
    for step in range(STEPS):
        row = program + step * num_programs
        inside = (column < width) & (row < num_rows)
        offsets = row.to(tl.int64) * width + column
        gradient = tl.load(grad_summed + offsets, inside, other=0).to(tl.float32)
        if NORMS:
            upstream = tl.load(grad_normed + offsets, inside, other=0).to(tl.float32)
            x = tl.load(summed + offsets, inside, other=0).to(tl.float32)
            scale = tl.load(scales + row, row < num_rows, other=0)
            mean = tl.load(means + row, row < num_rows, other=0)
            normal = tl.where(inside, (x - mean) * scale, 0.0)
            weight_sum += upstream * normal
            norm_bias_sum += upstream
            upstream *= tl.load(weight + column, inside, other=0).to(tl.float32)
            along = tl.sum(upstream * normal, axis=0) / width
            gradient += scale * (upstream - tl.sum(upstream, axis=0) / width - normal * along)
            tl.store(grad_residual + offsets, gradient.to(grad_residual.dtype.element_ty), inside)
        if DROPS:
            gradient = tl.where(_kept(seed, row, threshold, BLOCK), gradient * keep_scale, 0.0)
            tl.store(grad_branch + offsets, gradient.to(grad_branch.dtype.element_ty), inside)
        bias_sum += gradient
    sums = vector_sums + program.to(tl.int64) * 3 * width + column
    inside = column < width
    tl.store(sums, bias_sum, inside)
    if NORMS:
        tl.store(sums + width, weight_sum, inside)
        tl.store(sums + 2 * width, norm_bias_sum, inside)


class AddNorm(torch.autograd.Function):
    """(residual + dropout(branch + bias), its LayerNorm) for [..., H]; `weight` None: the sum alone, and None.

    Keeps the sum, two numbers a row and the seed for the backward pass; without norm the seed alone.
    """

    @staticmethod
    def forward(
        ctx: Any,
        residual: Tensor,
        branch: Tensor,
        bias: Tensor,
        weight: Tensor | None,
        norm_bias: Tensor | None,
        epsilon: float,
        probability: float,
        seed: int | None,
    ) -> tuple[Tensor, Tensor | None]:
        residual, branch = residual.contiguous(), branch.contiguous()
        width = residual.shape[-1]
        num_rows = residual.numel() // width
        summed = torch.empty_like(residual)
        normed = means = scales = None
        if weight is not None:
            normed = torch.empty_like(residual)
            means, scales = torch.empty(2, num_rows, dtype=torch.float32, device=residual.device)
        ctx.drops = seed is not None and probability > 0.0
        # seed, a draw of 32 bits at or above which a value is kept, the factor of what is kept
        ctx.dropout = (seed, round(probability * 2**32), 1.0 / (1.0 - probability)) if ctx.drops else (0, 0, 1.0)
        block, num_warps = _block(width)
        add_forward[(num_rows,)](
            residual,
            branch,
            bias,
            weight,
            norm_bias,
            summed,
            normed,
            means,
            scales,
            width,
            epsilon,
            *ctx.dropout,
            ctx.drops,
            weight is not None,
            block,
            num_warps=num_warps,
        )
        ctx.bias_dtype = bias.dtype
        ctx.save_for_backward(None if weight is None else summed, weight, means, scales)
        return summed, normed

    @staticmethod
    def backward(ctx: Any, grad_summed: Tensor, grad_normed: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        summed, weight, means, scales = ctx.saved_tensors
        width = grad_summed.shape[-1]
        if weight is None and not ctx.drops:
            grad_bias = grad_summed.reshape(-1, width).sum(0)
            return grad_summed, grad_summed, grad_bias.to(ctx.bias_dtype), None, None, None, None, None
        grad_summed = grad_summed.contiguous()
        grad_normed = None if weight is None else grad_normed.contiguous()  # type: ignore[union-attr]
        grad_residual = grad_summed if weight is None else torch.empty_like(grad_summed)
        grad_branch = torch.empty_like(grad_summed) if ctx.drops else grad_residual
        num_rows = grad_summed.numel() // width
        num_programs = min(num_rows, _num_programs(grad_summed.device))
        sums = torch.empty(num_programs, 3, width, dtype=torch.float32, device=grad_summed.device)
        block, num_warps = _block(width)
        add_backward[(num_programs,)](
            grad_summed,
            grad_normed,
            summed,
            weight,
            means,
            scales,
            grad_residual,
            grad_branch,
            sums,
            num_rows,
            width,
            *ctx.dropout,
            ctx.drops,
            weight is not None,
            triton.cdiv(num_rows, num_programs),
            block,
            num_warps=num_warps,
        )
        if weight is None:
            return grad_residual, grad_branch, sums[:, 0].sum(0).to(ctx.bias_dtype), None, None, None, None, None
        grad_bias, grad_weight, grad_norm_bias = sums.sum(0)
        vectors = grad_bias.to(ctx.bias_dtype), grad_weight.to(weight.dtype), grad_norm_bias.to(weight.dtype)
        return grad_residual, grad_branch, *vectors, None, None, None


def _block(width: int) -> tuple[int, int]:
    """Columns of a row's block, a power of two, and its warps: 8 values a thread, 16 past 8192; unmeasured."""
    block = max(4, triton.next_power_of_2(width))
    return block, min(max(block // 256, 1), 32)


def _num_programs(device: torch.device) -> int:
    """Programs that share the rows of a backward pass."""
    if device.type != "cuda":
        return _PROGRAMS_INTERPRETED
    return _WAVES * torch.cuda.get_device_properties(device).multi_processor_count
