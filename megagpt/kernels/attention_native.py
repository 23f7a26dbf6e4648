"""Causal attention on CPUs with AVX-512 and its bfloat16 instructions: native/attention.cpp as a torch operator.

Scores stay in the processor's cache, keys that a query does not see are left out in blocks of 64, sums are in float32.
torch's own CPU kernel takes several times as long (benchmarks/cpu_train.py). Knows nothing of ranks or layers.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

try:
    from megagpt.native import _attention
except ImportError:  # no compiler when it was installed
    _attention = None  # type: ignore[assignment]

_BLOCK = 64  # queries, and keys


def native_attention_fits(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether `native_attention` can run: [B, N, S, D] float32 or bfloat16 on a CPU that has the instructions.

    S a multiple of 64 and the same for all, D of 16; query heads a multiple of key heads.
    """
    if _attention is None or query.device.type != "cpu" or query.dtype not in (torch.float32, torch.bfloat16):
        return False
    length, width = query.shape[2:]
    same = key.shape == value.shape and key.dtype == value.dtype == query.dtype and key.shape[2:] == query.shape[2:]
    fits = length > 0 and length % _BLOCK == 0 and width % 16 == 0 and query.shape[1] % key.shape[1] == 0
    return same and fits and _attention.is_usable()


def native_attention(query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None = None) -> Tensor:
    """Attention of each query to the keys from `starts` (0 where None) up to its own place.

    query [B, N, S, D], key and value [B, N_key, S, D], any strides with whole rows; starts [B, S] int32, the first key
    of each query's document. Returns [B, N, S, D], which lies in memory as [S, B, N, D].
    """
    out, _ = _forward(query, key, value, starts)
    return out


@torch.library.custom_op("megagpt::cpu_attention", mutates_args=(), device_types="cpu")
def _forward(query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    """Also the base-2 logarithms of the sums of powers, [B, N, S], which the backward pass starts from."""
    query, key, value = _rows(query), _rows(key), _rows(value)
    out, log_sums = _empty_like_hidden(query), query.new_empty(query.shape[:3], dtype=torch.float32)
    tensors = (_place(query), _place(key), _place(value), _place(out))
    _attention.forward(_call(query, key, starts), *tensors, log_sums.data_ptr())
    return out, log_sums


@torch.library.custom_op("megagpt::cpu_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, out: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    query, key, value, grad = _rows(query), _rows(key), _rows(value), _rows(grad)
    grads = _empty_like_hidden(query), _empty_like_hidden(key), _empty_like_hidden(value)
    tensors = (_place(query), _place(key), _place(value), _place(out), _place(grad))
    _attention.backward(_call(query, key, starts), *tensors, log_sums.data_ptr(), *map(_place, grads))
    return grads


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None) -> tuple[Tensor, Tensor]:
    return _empty_like_hidden(query), query.new_empty(query.shape[:3], dtype=torch.float32)


@_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, starts: Tensor | None, out: Tensor, log_sums: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_like_hidden(query), _empty_like_hidden(key), _empty_like_hidden(value)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    query, key, value, starts, out, log_sums = ctx.saved_tensors
    return *_backward(grad, query, key, value, starts, out, log_sums), None


_forward.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.megagpt.cpu_attention)
def _forward_flops(query: torch.Size, key: torch.Size, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """As torch counts attention: two products over the whole square."""
    batch, heads, length, width = query
    return 4 * batch * heads * length * length * width


@register_flop_formula(torch.ops.megagpt.cpu_attention_backward)
def _backward_flops(grad: torch.Size, query: torch.Size, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    """As torch counts it: five products, one of which does the scores again."""
    batch, heads, length, width = query
    return 10 * batch * heads * length * length * width


def _call(query: Tensor, key: Tensor, starts: Tensor | None) -> tuple[Any, ...]:
    batch, heads, length, width = query.shape
    if starts is not None:
        assert starts.shape == (batch, length), (starts.shape, query.shape)
        assert starts.dtype == torch.int32, starts.dtype
        assert starts.is_contiguous(), starts.stride()
    return (
        query.dtype == torch.bfloat16,
        torch.get_num_threads(),
        batch,
        heads,
        key.shape[1],
        length,
        width,
        1 / math.sqrt(width),
        0 if starts is None else starts.data_ptr(),
    )


def _place(values: Tensor) -> tuple[int, ...]:
    return values.data_ptr(), *values.stride()[:3]


def _rows(values: Tensor) -> Tensor:
    """The same with each row in one piece that begins at a whole 32-bit word."""
    words = all(stride % 2 == 0 for stride in values.stride()[:3]) and values.data_ptr() % 4 == 0
    return values if values.stride(3) == 1 and words else values.contiguous()


def _empty_like_hidden(values: Tensor) -> Tensor:
    """[B, N, S, D] that lies in memory as hidden states do, [S, B, N, D]."""
    batch, heads, length, width = values.shape
    return values.new_empty((length, batch, heads, width)).permute(1, 2, 0, 3)
