"""The output head and its cross-entropy in chunks of tokens: the logits of a whole sequence never exist.

In: hidden states, the token table, labels, a weight for each token. Out: Σ weights x losses. The forward pass makes
the gradients too, chunk by chunk, while the chunk's logits are there: three GEMMs a chunk, as many as a head has that
keeps its logits. The backward pass scales them by its single incoming number. So between the passes there are the
gradient of the hidden states, instead of the hidden states, and the table's gradient; logits of one chunk in the first.

Legend: S sequence, B micro-batch, T = S B tokens, H hidden, V_local this tensor rank's columns of the vocabulary.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup

from megagpt.kernels.collectives import gather_tensor, reduce_scatter_tensor
from megagpt.kernels.cross_entropy import VocabColumns, cross_entropy_in_place, reference_cross_entropy
from megagpt.kernels.head_chunks import HeadChunks, head_chunks
from megagpt.kernels.matmul import product, takes_onednn

# fp16 gradients are made this many times as large, as probabilities below 6e-8 would be zero; DeepSpeed's loss scale
# acts on the loss, after the forward pass that makes them
_FP16_SCALE = 1024.0
# values of a gradient scaled at a time where its format is not that of the scale: the CPU converts them in its cache
_BLOCK_VALUES = {"cpu": 1 << 17, "cuda": 1 << 62}
# CUDA's addmm takes a float32 sum beside half-precision factors (earlier: a sum of the factors' dtype alone)
_SUMS_IN_GEMM = tuple(int(part) for part in torch.__version__.split(".")[:2]) >= (2, 11)


def reference_head_loss(hidden: Tensor, table: Tensor, labels: Tensor, weights: Tensor, vocab_size: int) -> Tensor:
    """The same with whole logits, by one process: hidden [..., H], table [Vp, H], labels and weights [...]."""
    return (reference_cross_entropy(hidden @ table.t(), labels, vocab_size) * weights).sum()


def head_loss(
    hidden: Tensor,
    table: Tensor,
    labels: Tensor,
    weights: Tensor,
    columns: VocabColumns,
    sequence_parallel: bool = False,
    chunks: HeadChunks | None = None,
) -> Tensor:
    """Σ weights x losses in nats, [] float32 at least. Reduces over the tensor group; every rank of it calls.

    hidden [S, B, H], or with `sequence_parallel` this rank's [S / tensor ranks, B, H]; table [V_local, H]; labels
    [S, B] int64; weights [S, B] float, through which no gradient goes. `chunks` None: as `head_chunks` says.
    """
    if torch.is_grad_enabled() and (hidden.requires_grad or table.requires_grad):
        total: Tensor = _HeadLoss.apply(hidden, table, labels, weights, columns, sequence_parallel, chunks)
        return total
    losses = token_losses(hidden, table, labels, columns, sequence_parallel, chunks)
    return (losses * weights).sum()


@torch.no_grad()
def token_losses(
    hidden: Tensor,
    table: Tensor,
    labels: Tensor,
    columns: VocabColumns,
    sequence_parallel: bool = False,
    chunks: HeadChunks | None = None,
) -> Tensor:
    """Loss of each token, [S, B] in float32 at least, without gradients; else as `head_loss`."""
    hidden = _whole_hidden(hidden, columns.tensor_group, sequence_parallel)
    return _run_chunks(hidden, table, labels.reshape(-1), columns, chunks, None).view(labels.shape)


class _HeadLoss(torch.autograd.Function):
    """Gradients in the forward pass, scaled in the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        table: Tensor,
        labels: Tensor,
        weights: Tensor,
        columns: VocabColumns,
        sequence_parallel: bool,
        chunks: HeadChunks | None,
    ) -> Tensor:
        ctx.gradients = gradients = _Gradients(hidden, table, weights, ctx.needs_input_grad, sequence_parallel, columns)
        whole = _whole_hidden(hidden, columns.tensor_group, sequence_parallel)
        losses = _run_chunks(whole, table, labels.reshape(-1), columns, chunks, gradients)
        return (losses * weights.reshape(-1)).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the head's gradients were used up: it runs backward once, also with retain_graph")
        hidden, table = gradients.scaled(grad_total)
        return hidden, table, None, None, None, None, None


class _Gradients:
    """Gradients of hidden states and table, made chunk by chunk in `scale` times their size."""

    def __init__(
        self,
        hidden: Tensor,
        table: Tensor,
        weights: Tensor,
        wanted: tuple[bool, ...],
        sequence_parallel: bool,
        columns: VocabColumns,
    ) -> None:
        self.scale = _FP16_SCALE if table.dtype == torch.float16 else 1.0
        wide = torch.promote_types(table.dtype, torch.float32)
        self.weights = weights.reshape(-1).to(wide) * self.scale
        self._wants_hidden, self._wants_table = wanted[:2]
        self._shape, self._dtype = hidden.shape, table.dtype
        self._sequence_parallel, self._group = sequence_parallel, columns.tensor_group
        self._hidden: Tensor | None = None  # [T, H]; of this rank's part of the sequence once it is reduced
        self._table: Tensor | None = None

    def add(self, rows: slice, grad_logits: Tensor, hidden: Tensor, table: Tensor, chunks: HeadChunks) -> None:
        """One chunk: grad_logits [C, V_local], all hidden [T, H]. Reduces over the tensor group with the last."""
        reduction = None
        if self._wants_hidden:
            if self._hidden is None:
                self._hidden = torch.empty_like(hidden)
            into = self._hidden[rows]
            made = product(grad_logits, table, out=into)
            if made is not into:
                into.copy_(made)
            if rows.stop >= len(hidden):
                reduction = self._start_reduction()
        if self._wants_table:
            self._table = _add_product(self._table, grad_logits.t(), hidden[rows], chunks.wide_sum)
        if reduction is not None:  # it ran beside the last GEMM of the table's gradient
            reduction.wait()

    def scaled(self, grad_total: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of a loss whose derivative to the total is `grad_total` []; what is held is given away."""
        factor = grad_total.to(self.weights.dtype) / self.scale
        hidden, self._hidden = self._hidden, None
        table, self._table = self._table, None
        return (
            None if hidden is None else _scale(hidden, factor, self._dtype).view(self._shape),
            None if table is None else _scale(table, factor, self._dtype),
        )

    def _start_reduction(self) -> Any:
        """Sum the hidden states' gradient over the tensor group: each rank has seen its own columns only."""
        if self._group.size() == 1:
            return None
        assert self._hidden is not None
        if not self._sequence_parallel:
            return dist.all_reduce(self._hidden, group=self._group, async_op=True)
        self._hidden, work = reduce_scatter_tensor(self._hidden, self._group)
        return work


def _run_chunks(
    hidden: Tensor,
    table: Tensor,
    labels: Tensor,
    columns: VocabColumns,
    chunks: HeadChunks | None,
    gradients: _Gradients | None,
) -> Tensor:
    """Losses [T] of hidden [T, H]; every chunk's logits lie in the same buffer."""
    num_tokens, width = len(hidden), len(table)
    chunks = chunks or head_chunks(num_tokens, width, str(table.dtype).removeprefix("torch."), table.device.type)
    buffer = torch.empty((min(chunks.tokens, num_tokens), width), dtype=table.dtype, device=table.device)
    losses = []
    for start in range(0, num_tokens, chunks.tokens):
        rows = slice(start, min(start + chunks.tokens, num_tokens))
        logits = product(hidden[rows], table.t(), out=buffer[: rows.stop - start])
        weights = None if gradients is None else gradients.weights[rows]
        losses.append(cross_entropy_in_place(logits, labels[rows], columns, weights))
        if gradients is not None:
            gradients.add(rows, logits, hidden, table, chunks)
    return torch.cat(losses)


def _whole_hidden(hidden: Tensor, group: ProcessGroup, sequence_parallel: bool) -> Tensor:
    """[T, H] of the whole sequence: with `sequence_parallel`, gathered over the tensor group."""
    hidden = hidden.detach().reshape(-1, hidden.shape[-1])
    if not sequence_parallel or group.size() == 1:
        return hidden
    return gather_tensor(hidden, group)


def _add_product(total: Tensor | None, left: Tensor, right: Tensor, wide_sum: bool) -> Tensor:
    """total + left @ right, in place; `total` None is zero. With `wide_sum` it is summed in float32."""
    if not wide_sum:
        if takes_onednn(left.device, left.dtype):
            return product(left, right) if total is None else total.add_(product(left, right))
        return torch.mm(left, right) if total is None else total.addmm_(left, right)
    if left.is_cuda and _SUMS_IN_GEMM:
        if total is None:
            return torch.mm(left, right, out_dtype=torch.float32)
        return torch.addmm(total, left, right, out_dtype=torch.float32, out=total)
    if left.dtype == torch.float16:  # its products can be too large for fp16
        left, right = left.float(), right.float()
    summand = torch.mm(left, right)
    return summand.float() if total is None else total.add_(summand)


def _scale(values: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """values [T, H] x factor [], in place where they have `dtype`. The factor keeps its own precision."""
    if values.dtype == factor.dtype == dtype:
        return values.mul_(factor)
    out = values if values.dtype == dtype else torch.empty_like(values, dtype=dtype)
    step = max(1, _BLOCK_VALUES[values.device.type] // values.shape[1])
    for start in range(0, len(values), step):  # a factor with dims takes part in type promotion, one without does not
        torch.mul(values[start : start + step], factor.view(1, 1), out=out[start : start + step])
    return out
