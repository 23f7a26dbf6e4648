"""Cross-entropy over a vocabulary that is cut over tensor ranks: each rank sees only its own columns of the logits.

One autograd function, two small reductions in the forward pass, none in the backward. Follows Shoeybi et al. 2019
(Megatron-LM), §3, with the columns that pad the vocabulary left out of the softmax.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

# values computed in float32 at a time: 1 MiB, half of a common second-level cache; on a GPU 256 MiB
_BLOCK_VALUES = {"cpu": 1 << 18, "cuda": 1 << 26}


def reference_cross_entropy(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """The same on whole logits: [..., Vp] and [...] int64 give [...] losses in float32 (float64 stays float64)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_probabilities = torch.log_softmax(logits[..., :vocab_size].to(wide), dim=-1)
    return -log_probabilities.gather(-1, labels[..., None]).squeeze(-1)


def vocab_parallel_cross_entropy(
    logits_local: Tensor, labels: Tensor, vocab_size: int, tensor_rank: int, tensor_group: ProcessGroup
) -> Tensor:
    """Loss of each token, in nats. Called by every tensor rank of the last stage; reduces over the tensor group.

    logits_local [..., V_local]: this rank's contiguous columns of the padded vocabulary;
    labels [...] int64, the same on every tensor rank, all below `vocab_size`. Returns [...] in float32 at least.
    """
    return _VocabParallelCrossEntropy.apply(logits_local, labels, vocab_size, tensor_rank, tensor_group)


class _VocabParallelCrossEntropy(torch.autograd.Function):
    """Each rank takes the softmax of its own columns; only its log-sum-exp is shared.

    The softmax over all columns is the local one times exp(local log-sum-exp - global log-sum-exp), one number a token.
    The local one is kept in the logits' dtype, as the gradient is rounded to it anyway, but for the label's column,
    whose 1 is subtracted before rounding.
    """

    @staticmethod
    def forward(
        ctx: Any, logits_local: Tensor, labels: Tensor, vocab_size: int, tensor_rank: int, tensor_group: ProcessGroup
    ) -> Tensor:
        width = logits_local.shape[-1]
        first = tensor_rank * width
        num_valid = min(max(vocab_size - first, 0), width)
        here = (labels >= first) & (labels < first + num_valid)
        column = torch.where(here, labels - first, 0)
        softmax, log_sum_exp, label_score = _local_softmax(
            logits_local.reshape(-1, width)[:, :num_valid], column.reshape(-1), here.reshape(-1)
        )
        log_sum_exp, label_score = log_sum_exp.view_as(labels), label_score.view_as(labels)
        whole = log_sum_exp
        if tensor_group.size() > 1:
            largest = log_sum_exp.clone()
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=tensor_group)
            sums = torch.stack([label_score, (log_sum_exp - largest).exp()])
            dist.all_reduce(sums, group=tensor_group)
            label_score, total = sums.unbind(0)
            whole = largest + total.log()
        losses = whole - label_score
        ctx.save_for_backward(softmax, column, here, (log_sum_exp - whole).exp(), losses)
        ctx.width = width
        return losses

    @staticmethod
    def backward(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        softmax, column, here, share, losses = ctx.saved_tensors
        num_tokens, num_valid = softmax.shape
        grad = torch.empty((num_tokens, ctx.width), dtype=softmax.dtype, device=softmax.device)
        grad[:, num_valid:] = 0
        factor = (share * grad_losses).reshape(-1, 1)
        for rows in _row_blocks(softmax):
            grad[rows, :num_valid] = softmax[rows].to(factor.dtype) * factor[rows]
        # d loss / d label's logit = exp(-loss) - 1; expm1 keeps the small difference of a sure prediction
        if num_valid:
            at = (torch.arange(num_tokens, device=grad.device), column.reshape(-1))
            at_label = (torch.expm1(-losses) * grad_losses).reshape(-1).to(grad.dtype)
            grad[at] = torch.where(here.reshape(-1), at_label, grad[at])
        return grad.view(*losses.shape, ctx.width), None, None, None, None


def _local_softmax(scores: Tensor, column: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Softmax over this rank's columns [T, V], its log-sum-exp [T], the label's score [T] (0 where not `here`).

    A few rows at a time, so that the passes over the float32 values stay in the processor's cache.
    """
    wide = torch.promote_types(scores.dtype, torch.float32)
    softmax = torch.empty(scores.shape, dtype=scores.dtype, device=scores.device)
    log_sum_exp = torch.full(column.shape, float("-inf"), dtype=wide, device=scores.device)
    label_score = torch.zeros(column.shape, dtype=wide, device=scores.device)
    if scores.shape[-1] == 0:  # all of this rank's columns pad the vocabulary
        return softmax, log_sum_exp, label_score
    for rows in _row_blocks(scores):
        values = scores[rows].to(wide, copy=True)
        label = values.gather(-1, column[rows, None]).squeeze(-1)
        label_score[rows] = torch.where(here[rows], label, 0)
        largest = values.amax(dim=-1, keepdim=True)
        total = values.sub_(largest).exp_().sum(dim=-1, keepdim=True)
        log_sum_exp[rows] = (largest + total.log()).squeeze(-1)
        softmax[rows] = values.div_(total)
    return softmax, log_sum_exp, label_score


def _row_blocks(values: Tensor) -> list[slice]:
    """Rows of [T, V], a block at a time."""
    num_rows, width = values.shape
    step = max(1, _BLOCK_VALUES[values.device.type] // max(1, width))
    return [slice(start, start + step) for start in range(0, num_rows, step)]
