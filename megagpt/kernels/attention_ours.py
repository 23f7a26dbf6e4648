"""Causal attention by our Triton kernels as one differentiable operation. Imports Triton; no result is from a GPU yet.

What it saves over torch's fused forms: tiles of other documents are not read, the output lies as the next projection
reads it, [S, B, N, D], and gradients of a projection's queries, keys and values lie as its backward pass reads them.
Its results are the same bits every time.

Legend: B micro-batch, N heads, S positions, D head dim.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megagpt.kernels.attention_documents import Bounds
from megagpt.kernels.attention_packing import projection_like
from megagpt.kernels.attention_triton import forward_kernel
from megagpt.kernels.attention_triton_backward import delta_kernel, key_value_kernel, query_kernel

_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MOST_COLUMNS = 128


class Launch(NamedTuple):
    """How one kernel runs: queries and keys of a tile, warps of a program, tiles loaded ahead."""

    queries: int
    keys: int
    num_warps: int
    num_stages: int


class Launches(NamedTuple):
    """How the three kernels of products run."""

    forward: Launch
    key_value: Launch
    query: Launch


def refusal(query: Tensor, key: Tensor) -> str | None:
    """Why these kernels cannot run on such tensors; None where they can."""
    if query.dtype not in _DTYPES:
        return f"numbers are {query.dtype}, and the kernels know fp16, bf16 and fp32"
    if query.shape[-1] > _MOST_COLUMNS:
        return f"heads are {query.shape[-1]} wide, and the kernels hold at most {_MOST_COLUMNS}"
    if query.shape[2] != key.shape[2]:
        return "there are more keys than queries"
    return None


def launches(dtype: torch.dtype, head_dim: int) -> Launches:
    """Tiles by number format and width, one table for sm_80 and sm_90: what fits in registers and shared memory.

    Speed unmeasured. Not tuned at run time: all ranks and all runs must compute the same bits.
    """
    if dtype == torch.float32:  # true fp32 products, without tensor cores
        return Launches(Launch(32, 32, 4, 1), Launch(32, 32, 4, 1), Launch(32, 32, 4, 1))
    if head_dim <= 64:
        return Launches(Launch(128, 64, 4, 3), Launch(64, 128, 8, 2), Launch(128, 64, 8, 2))
    return Launches(Launch(128, 64, 8, 2), Launch(64, 128, 8, 2), Launch(128, 64, 8, 2))


def columns(head_dim: int) -> tuple[int, int]:
    """The power of two and the rest into which a head's columns are cut; the kernels' WIDTH and REST.

    The rest is at least 16 columns, the least that a product of tensor cores takes, or nothing.
    """
    width = max(16, 1 << (head_dim.bit_length() - 1))
    rest = max(0, head_dim - width)
    rest = 0 if rest == 0 else max(16, 1 << (rest - 1).bit_length())
    return (width, rest) if rest < width else (2 * width, 0)


def own_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: Bounds | None = None,
    dropout: float = 0.0,
    dropout_seed: int | None = None,
    tiles: Launches | None = None,
) -> Tensor:
    """Causal attention within documents. query [B, N, S, D]; key and value [B, N / g, S, D] with g = 1, 2, ….

    Query head n reads key head n // g. Returns [B, N, S, D], which lies in memory as [S, B, N, D]. `dropout_seed` None
    means no dropout; a seed gives the same mask whatever the tiles are.
    """
    reason = refusal(query, key)
    assert reason is None, reason
    assert query.shape[1] % key.shape[1] == 0, (query.shape, key.shape)
    probability = 0.0 if dropout_seed is None else dropout
    query, key, value = (part if part.stride(-1) == 1 else part.contiguous() for part in (query, key, value))
    tiles = tiles or launches(query.dtype, query.shape[-1])
    starts, ends = documents or (None, None)
    result: Tensor = _Attention.apply(query, key, value, starts, ends, probability, dropout_seed or 0, tiles)
    return result


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        starts: Tensor | None,
        ends: Tensor | None,
        probability: float,
        seed: int,
        tiles: Launches,
    ) -> Tensor:
        batch, num_heads, length, head_dim = query.shape
        output = query.new_empty(length, batch, num_heads, head_dim).permute(1, 2, 0, 3)
        log_sums = query.new_empty(batch, num_heads, length, dtype=torch.float32)
        tile = tiles.forward
        forward_kernel[(-(-length // tile.queries), batch * num_heads)](
            *(query, key, value, output, log_sums, log_sums if starts is None else starts),
            *(*_strides(query), *_strides(key), *_strides(value), *_strides(output)),
            *(num_heads, length, math.log2(math.e) / math.sqrt(head_dim)),
            *(seed, probability, 1.0 / (1.0 - probability)),
            **_constants(query, key, tile, starts is not None, probability),
        )
        ctx.save_for_backward(query, key, value, output, log_sums, starts, ends)
        ctx.probability, ctx.seed, ctx.tiles = probability, seed, tiles
        return output

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, output, log_sums, starts, ends = ctx.saved_tensors
        batch, num_heads, length, head_dim = query.shape
        if upstream.stride(-1) != 1:
            upstream = upstream.contiguous()
        query_grad, key_grad, value_grad = projection_like(query, key, value)
        deltas = _deltas(output, upstream)
        softmax_scale = 1.0 / math.sqrt(head_dim)
        sizes = (num_heads, length, math.log2(math.e) * softmax_scale, softmax_scale)
        numbers = (*sizes, ctx.seed, ctx.probability, 1.0 / (1.0 - ctx.probability))
        apart = starts is not None
        inputs = (query, key, value, upstream, log_sums, deltas, starts if apart else log_sums)
        strides = (*_strides(query), *_strides(key), *_strides(value), *_strides(upstream))
        tile = ctx.tiles.key_value
        key_value_kernel[(-(-length // tile.keys), batch * key.shape[1])](
            *(*inputs, ends if apart else log_sums, key_grad, value_grad),
            *(*strides, *_strides(key_grad), *_strides(value_grad), *numbers),
            **_constants(query, key, tile, apart, ctx.probability),
        )
        tile = ctx.tiles.query
        query_kernel[(-(-length // tile.queries), batch * num_heads)](
            *(*inputs, query_grad, *strides, *_strides(query_grad), *numbers),
            **_constants(query, key, tile, apart, ctx.probability),
        )
        return query_grad, key_grad, value_grad, None, None, None, None, None


def _deltas(output: Tensor, upstream: Tensor) -> Tensor:
    """Σ over D of output times its gradient, [B, N, S] fp32."""
    batch, num_heads, length, head_dim = output.shape
    deltas = output.new_empty(batch, num_heads, length, dtype=torch.float32)
    rows = 64
    delta_kernel[(-(-length // rows), batch * num_heads)](
        *(output, upstream, deltas, *_strides(output), *_strides(upstream), num_heads, length),
        COLUMNS=max(16, 1 << (head_dim - 1).bit_length()),
        HEAD_DIM=head_dim,
        M=rows,
        EVEN=length % rows == 0,
        num_warps=4,
    )
    return deltas


def _strides(heads: Tensor) -> tuple[int, int, int]:
    """Of batch, head and position."""
    batch, head, position, column = heads.stride()
    assert column == 1, heads.stride()
    return batch, head, position


def _constants(query: Tensor, key: Tensor, tile: Launch, apart: bool, probability: float) -> dict[str, Any]:
    """The kernels' compile-time values."""
    length, head_dim = query.shape[2:]
    width, rest = columns(head_dim)
    return {
        "WIDTH": width,
        "REST": rest,
        "HEAD_DIM": head_dim,
        "GROUP": query.shape[1] // key.shape[1],
        "M": tile.queries,
        "N": tile.keys,
        "EVEN": length % tile.queries == 0 and length % tile.keys == 0,
        "DOCUMENTS": apart,
        "DROPOUT": probability > 0.0,
        "PRECISION": "ieee" if query.dtype == torch.float32 else "tf32",  # of fp32 products; others have but one
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }
