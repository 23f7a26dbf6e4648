"""The softmax of a chunk of logits and its gradient in place, as a Triton kernel: one program a row.

A row that fits in registers is read once and written once. A longer one is read in blocks twice, the second time from
the GPU's second-level cache where it still lies (100 kB a row of 50,000 in bf16, times the rows at work).
Block sizes and warps are unmeasured. Imported only where it is used: it imports Triton.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_MOST_IN_REGISTERS = 16384  # columns: at 16 warps 32 float32 values a thread
_BLOCK = 8192  # columns at a time of a longer row


def softmax_rows(
    logits: Tensor,
    labels: Tensor,
    first: int,
    num_valid: int,
    weights: Tensor | None,
    known: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp [T] over the first `num_valid` of this rank's columns and the label's score [T], both float32.

    logits [T, V_local], whose first column is id `first`; a label of another rank has the score 0. With `known`, the
    two over all ranks, those are used and returned. With `weights` [T] float32 the logits become the gradient of
    Σ weights x losses; columns from `num_valid` on become 0.
    """
    num_rows, width = logits.shape
    assert logits.stride(1) == 1, logits.stride()
    assert logits.dtype in (torch.float32, torch.bfloat16, torch.float16), logits.dtype
    assert known is None or weights is not None
    if known is None:
        log_sum_exp = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
        label_score = torch.empty_like(log_sum_exp)
    else:
        log_sum_exp, label_score = known[0].contiguous(), known[1].contiguous()
    block, num_warps = row_block(width)
    _softmax_rows[(num_rows,)](
        logits,
        labels.contiguous(),
        log_sum_exp,
        log_sum_exp if weights is None else weights.contiguous(),  # not read without weights, but must be a tensor
        label_score,
        logits.stride(0),
        width,
        num_valid,
        first,
        BLOCK=block,
        NUM_BLOCKS=triton.cdiv(width, block),
        IS_KNOWN=known is not None,
        WRITES=weights is not None,
        num_warps=num_warps,
    )
    return log_sum_exp, label_score


def row_block(width: int) -> tuple[int, int]:
    """Columns at a time and warps for a row of `width`."""
    block = triton.next_power_of_2(width) if width <= _MOST_IN_REGISTERS else _BLOCK
    return max(block, 16), min(16, max(4, block // 1024))


@triton.jit
def _gradient(values, columns, column, log_sum_exp, label_score, weight, num_valid):  # type: ignore[no-untyped-def]
    """weight x (softmax - 1 at the label) of some columns; exp(-loss) - 1 by its series where it is small."""
    gradient = tl.exp(values - log_sum_exp)
    u = label_score - log_sum_exp
    series = u * (1.0 + u * (0.5 + u * (1.0 / 6.0 + u * (1.0 / 24.0))))
    at_label = tl.where(u > -0.03, series, tl.exp(u) - 1.0)
    gradient = tl.where(columns == column, at_label, gradient)
    return tl.where(columns < num_valid, gradient * weight, 0.0)


@triton.jit
def _softmax_rows(  # type: ignore[no-untyped-def]
    logits_pointer,
    labels_pointer,
    sums_pointer,
    weights_pointer,
    scores_pointer,
    row_stride,
    width,
    num_valid,
    first,
    BLOCK: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    IS_KNOWN: tl.constexpr,
    WRITES: tl.constexpr,
):
    row = tl.program_id(0)
    logits = logits_pointer + row.to(tl.int64) * row_stride
    offsets = tl.arange(0, BLOCK)
    column = tl.load(labels_pointer + row) - first
    here = (column >= 0) & (column < num_valid)
    column = tl.where(here, column, -1)
    if NUM_BLOCKS == 1:
        values = tl.load(logits + offsets, mask=offsets < num_valid, other=float("-inf")).to(tl.float32)
    if IS_KNOWN:
        log_sum_exp = tl.load(sums_pointer + row)
        label_score = tl.load(scores_pointer + row)
    else:
        label_score = tl.load(logits + column, mask=here, other=0.0).to(tl.float32)
        if NUM_BLOCKS == 1:
            largest = tl.max(values, axis=0)
            # where all columns are padding the largest is -inf, and so is the log-sum-exp
            total = tl.sum(tl.exp(values - tl.where(largest == float("-inf"), 0.0, largest)), axis=0)
        else:
            # each lane keeps its own maximum and sum, so that a block costs no reduction
            most = tl.full((BLOCK,), float("-inf"), tl.float32)
            sums = tl.zeros((BLOCK,), tl.float32)
            for step in range(NUM_BLOCKS):
                columns = step * BLOCK + offsets
                block = tl.load(logits + columns, mask=columns < num_valid, other=float("-inf")).to(tl.float32)
                larger = tl.maximum(most, block)
                shift = tl.where(larger == float("-inf"), 0.0, larger)
                sums = sums * tl.exp(most - shift) + tl.exp(block - shift)
                most = larger
            largest = tl.max(most, axis=0)
            total = tl.sum(sums * tl.exp(most - tl.where(largest == float("-inf"), 0.0, largest)), axis=0)
        log_sum_exp = largest + tl.log(total)
        tl.store(sums_pointer + row, log_sum_exp)
        tl.store(scores_pointer + row, label_score)
    if WRITES:
        weight = tl.load(weights_pointer + row)
        if NUM_BLOCKS == 1:
            gradient = _gradient(values, offsets, column, log_sum_exp, label_score, weight, num_valid)
            tl.store(logits + offsets, gradient.to(logits_pointer.dtype.element_ty), mask=offsets < width)
        else:
            for step in range(NUM_BLOCKS):
                columns = step * BLOCK + offsets
                block = tl.load(logits + columns, mask=columns < num_valid, other=float("-inf")).to(tl.float32)
                gradient = _gradient(block, columns, column, log_sum_exp, label_score, weight, num_valid)
                tl.store(logits + columns, gradient.to(logits_pointer.dtype.element_ty), mask=columns < width)
