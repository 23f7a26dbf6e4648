"""Cross-entropy over a vocabulary that is cut over tensor ranks: each rank sees only its own columns of the logits.

One autograd function, two small reductions in the forward pass, none in the backward. Follows Shoeybi et al. 2019
(Megatron-LM), §3, with the columns that pad the vocabulary left out of the softmax.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


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
    @staticmethod
    def forward(
        ctx: Any, logits_local: Tensor, labels: Tensor, vocab_size: int, tensor_rank: int, tensor_group: ProcessGroup
    ) -> Tensor:
        split = tensor_group.size() > 1
        width = logits_local.shape[-1]
        first = tensor_rank * width
        num_valid = min(max(vocab_size - first, 0), width)
        wide = logits_local.to(torch.promote_types(logits_local.dtype, torch.float32))
        scores = wide[..., :num_valid]
        largest = scores.amax(dim=-1) if num_valid else wide.new_full(wide.shape[:-1], float("-inf"))
        if split:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=tensor_group)
        scores = scores - largest[..., None]

        here = (labels >= first) & (labels < first + num_valid)
        column = torch.where(here, labels - first, 0)
        label_score = largest.new_zeros(largest.shape)
        if num_valid:
            label_score = torch.where(here, scores.gather(-1, column[..., None]).squeeze(-1), label_score)
        scores = scores.exp_()
        total = scores.sum(dim=-1)
        if split:
            both = torch.stack([label_score, total])
            dist.all_reduce(both, group=tensor_group)
            label_score, total = both.unbind(0)
        ctx.save_for_backward(scores.div_(total[..., None]), column, here)
        ctx.width, ctx.dtype = width, logits_local.dtype
        return total.log() - label_score

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        probabilities, column, here = ctx.saved_tensors
        if probabilities.shape[-1]:
            probabilities.scatter_add_(-1, column[..., None], -here[..., None].to(probabilities.dtype))
        grad = (probabilities.mul_(grad_loss[..., None])).to(ctx.dtype)
        padding = ctx.width - grad.shape[-1]
        if padding:
            grad = torch.nn.functional.pad(grad, (0, padding))
        return grad, None, None, None, None
