"""Context parallelism: each context rank holds a part of every sequence, and whole sequences of some heads to attend.

DeepSpeed-Ulysses (Jacobs et al. 2023): one all-to-all before attention turns parts of sequences into parts of heads,
one after it turns them back, so attention itself sees whole sequences with any mask. Knows nothing of layers.

Legend: S sequence, c context ranks, B micro-batch, N_local heads on this tensor rank, X values of one head.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup


def gather_sequence(heads: Tensor, group: ProcessGroup) -> Tensor:
    """[S / c, B, N_local, X] to [S, B, N_local / c, X]: whole sequences of this rank's share of the heads.

    All-to-all over the context group, and the reverse one in the backward pass. Context rank r gets the r-th
    contiguous block of heads.
    """
    return heads if group.size() == 1 else _GatherSequence.apply(heads, group)


def scatter_sequence(heads: Tensor, group: ProcessGroup) -> Tensor:
    """[S, B, N_local / c, X] to [S / c, B, N_local, X]: the reverse of `gather_sequence`."""
    return heads if group.size() == 1 else _ScatterSequence.apply(heads, group)


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _to_sequences(heads, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _to_heads(grad, ctx.group), None


class _ScatterSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, group: ProcessGroup) -> Tensor:
        ctx.group = group
        return _to_heads(heads, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        return _to_sequences(grad, ctx.group), None


def _to_sequences(heads: Tensor, group: ProcessGroup) -> Tensor:
    length, batch, num_heads, width = heads.shape
    blocks = heads.view(length, batch, group.size(), num_heads // group.size(), width)
    sent = blocks.permute(2, 0, 1, 3, 4).contiguous()  # [head block, S / c, B, N_local / c, X]
    received = torch.empty_like(sent)  # [part of the sequence, S / c, …]
    dist.all_to_all_single(received, sent, group=group)
    return received.flatten(0, 1)


def _to_heads(heads: Tensor, group: ProcessGroup) -> Tensor:
    length, batch, num_heads, width = heads.shape
    sent = heads.contiguous().view(group.size(), length // group.size(), batch, num_heads, width)
    received = torch.empty_like(sent)  # [head block, S / c, B, N_local / c, X]
    dist.all_to_all_single(received, sent, group=group)
    return received.permute(1, 2, 0, 3, 4).flatten(2, 3)
