"""Queries, keys and values as the parts of one projection's output, without a copy on the way there or back.

The projection gives each head's query, key and value side by side; attention takes them as three views. Their
gradients must come back side by side: an attention that knows (`projection_like`) writes them there, from any other
they are copied once. Autograd's own backward pass of the three views stacks them and then copies the stack.

Legend: S positions, B micro-batch, N heads, D head dim.
"""

from typing import Any

import torch
from torch import Tensor


def split_projection(heads: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value, each [B, N, S, D], of `heads` [S, B, N, 3 * D]: views of it."""
    query, key, value = _Split.apply(heads, head_dim)
    return query, key, value


def projection_like(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Empty tensors in the shapes of the three; parts of one projection if they are."""
    whole = _whole(query, key, value)
    if whole is None:
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    return _parts(torch.empty(whole, dtype=query.dtype, device=query.device), query.shape[-1])


class _Split(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, heads: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.head_dim, ctx.shape = head_dim, heads.shape
        return _parts(heads, head_dim)

    @staticmethod
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        if _whole(query, key, value) == ctx.shape:
            strides = torch.empty(ctx.shape, device="meta").stride()
            return query.as_strided(ctx.shape, strides), None
        grad = torch.empty(ctx.shape, dtype=query.dtype, device=query.device)
        for part, found in zip(_parts(grad, ctx.head_dim), (query, key, value), strict=True):
            part.copy_(found)
        return grad, None


def _parts(heads: Tensor, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = heads.unflatten(-1, (3, head_dim)).permute(3, 1, 2, 0, 4)
    return query, key, value


def _whole(query: Tensor, key: Tensor, value: Tensor) -> torch.Size | None:
    """Shape of the contiguous [S, B, N, 3 * D] of which the three are the parts; None where there is none such."""
    batch, num_heads, length, head_dim = query.shape
    side_by_side = (num_heads * 3 * head_dim, 3 * head_dim, batch * num_heads * 3 * head_dim, 1)
    first = query.storage_offset()
    for number, part in enumerate((query, key, value)):
        if part.shape != query.shape or part.stride() != side_by_side:
            return None
        if part.untyped_storage()._cdata != query.untyped_storage()._cdata:
            return None
        if part.storage_offset() != first + number * head_dim:
            return None
    return torch.Size((length, batch, num_heads, 3 * head_dim))
