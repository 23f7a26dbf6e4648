"""Cross-entropy of a chunk of logits over a vocabulary that is cut over tensor ranks, and its gradient in their place.

In: logits [T, V_local], this rank's columns. Out: losses [T]; where weights are given the logits have become the
gradient of the weighted losses. Columns that pad the vocabulary are left out of the softmax. One small all-gather where
there are several tensor ranks. Follows Shoeybi et al. 2019 (Megatron-LM), §3. Runs as a Triton kernel on CUDA
(cross_entropy_triton.py), as ours on CPUs with AVX-512 (cross_entropy_native.py: 2 ms where torch's operations take 17,
256 rows of 32,000 in bf16 on one core), else as torch operations on a few rows at a time, which stay in the cache.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

from megagpt.kernels.collectives import gather_tensor
from megagpt.kernels.cross_entropy_native import native_rows, native_rows_fit
from megagpt.kernels.triton_use import runs_triton

# values computed in float32 at a time: 512 KiB, half of a common second-level cache; on a GPU without Triton 64 MiB
_BLOCK_VALUES = {"cpu": 1 << 17, "cuda": 1 << 24}


Form = Literal["torch", "native", "triton"]


class VocabColumns(NamedTuple):
    """Which columns of the padded vocabulary this tensor rank has: an equal run of them, by rank."""

    vocab_size: int  # without padding
    tensor_rank: int
    tensor_group: ProcessGroup

    def first(self, width: int) -> int:
        """Id of this rank's first of `width` columns."""
        return self.tensor_rank * width

    def num_valid(self, width: int) -> int:
        """How many of this rank's `width` columns are no padding: the first ones."""
        return min(max(self.vocab_size - self.first(width), 0), width)


def reference_cross_entropy(logits: Tensor, labels: Tensor, vocab_size: int) -> Tensor:
    """The same on whole logits: [..., Vp] and [...] int64 give [...] losses in float32 (float64 stays float64)."""
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_probabilities = torch.log_softmax(logits[..., :vocab_size].to(wide), dim=-1)
    return -log_probabilities.gather(-1, labels[..., None]).squeeze(-1)


def cross_entropy_in_place(
    logits_local: Tensor,
    labels: Tensor,
    columns: VocabColumns,
    weights: Tensor | None = None,
    form: Form | None = None,
) -> Tensor:
    """Loss of each token, in nats: [T] in float32 at least. Gathers over the tensor group; every rank of it calls.

    logits_local [T, V_local], rows contiguous; labels [T] int64, the same on every tensor rank, all below the
    vocabulary's size. With `weights` [T] (in the losses' dtype) the logits are overwritten by the gradient of
    Σ weights x losses; padding gets 0. Records nothing for autograd. `form` None: the one for device and dtype.
    """
    rows = {"torch": _torch_rows, "native": _native_rows, "triton": _triton_rows}[form or _choose_form(logits_local)]
    if columns.tensor_group.size() == 1:
        log_sum_exp, label_score = rows(logits_local, labels, columns, weights)
        return log_sum_exp - label_score
    local_sum, local_score = rows(logits_local, labels, columns, None)
    log_sum_exp, label_score = _gather_sums(local_sum, local_score, columns.tensor_group)
    if weights is not None:
        rows(logits_local, labels, columns, weights, (log_sum_exp, label_score))
    return log_sum_exp - label_score


def _gather_sums(log_sum_exp: Tensor, label_score: Tensor, group: ProcessGroup) -> tuple[Tensor, Tensor]:
    """Of all columns from those of each rank, equal on every rank to the bit: all add in the order of ranks."""
    mine = torch.stack([log_sum_exp, label_score])
    sums, scores = gather_tensor(mine, group).view(group.size(), 2, -1).unbind(1)
    return torch.logsumexp(sums, dim=0), scores.sum(dim=0)


def _choose_form(logits: Tensor) -> Form:
    if runs_triton(logits) and logits.dtype != torch.float64:
        return "triton"
    return "native" if native_rows_fit(logits) else "torch"


def _native_rows(
    logits: Tensor,
    labels: Tensor,
    columns: VocabColumns,
    weights: Tensor | None,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    width = logits.shape[-1]
    return native_rows(logits, labels, columns.first(width), columns.num_valid(width), weights, known)


def _triton_rows(
    logits: Tensor,
    labels: Tensor,
    columns: VocabColumns,
    weights: Tensor | None,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    from megagpt.kernels.cross_entropy_triton import softmax_rows

    width = logits.shape[-1]
    return softmax_rows(logits, labels, columns.first(width), columns.num_valid(width), weights, known)


def _torch_rows(
    logits: Tensor,
    labels: Tensor,
    columns: VocabColumns,
    weights: Tensor | None,
    known: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp [T] over this rank's columns and the label's score [T], 0 where another rank has it.

    With `known`, the two over all ranks, those are returned. With `weights` the logits become the gradient.
    """
    width = logits.shape[-1]
    first, num_valid = columns.first(width), columns.num_valid(width)
    scores = logits[:, :num_valid]
    here = (labels >= first) & (labels < first + num_valid)
    column = torch.where(here, labels - first, 0)
    wide = torch.promote_types(logits.dtype, torch.float32)
    if known is None:
        log_sum_exp = torch.full(labels.shape, float("-inf"), dtype=wide, device=logits.device)
        label_score = torch.zeros(labels.shape, dtype=wide, device=logits.device)
    else:
        log_sum_exp, label_score = known
    if num_valid:  # else all of this rank's columns pad the vocabulary
        for rows in _row_blocks(scores):
            values = scores[rows].to(wide, copy=True)
            if known is None:
                label = values.gather(-1, column[rows, None]).squeeze(-1)
                label_score[rows] = torch.where(here[rows], label, 0)
                largest = values.amax(dim=-1, keepdim=True)
                total = values.sub_(largest).exp_().sum(dim=-1, keepdim=True)
                log_sum_exp[rows] = (largest + total.log()).squeeze(-1)
            elif weights is not None:
                values.sub_(log_sum_exp[rows, None]).exp_()
                total = torch.ones_like(log_sum_exp[rows, None])
            if weights is not None:
                scores[rows] = values.mul_(weights[rows, None] / total)
    if weights is not None:
        logits[:, num_valid:] = 0
        if num_valid:
            # d loss / d label's logit = exp(-loss) - 1; expm1 keeps the small difference of a sure prediction
            at_label = (torch.expm1(label_score - log_sum_exp) * weights).to(logits.dtype)
            at = (torch.arange(len(labels), device=logits.device), column)
            logits[at] = torch.where(here, at_label, logits[at])
    return log_sum_exp, label_score


def _row_blocks(values: Tensor) -> list[slice]:
    """Rows of [T, V], a block at a time."""
    num_rows, width = values.shape
    step = max(1, _BLOCK_VALUES[values.device.type] // max(1, width))
    return [slice(start, start + step) for start in range(0, num_rows, step)]
