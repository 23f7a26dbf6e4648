"""The ways of attending, one function each, all with one signature; and which of them work on a device here.

Each takes query [B, N, S, D], key and value [B, N / g, S, D], the packed documents (None: causal), the probability of
dropout and the seed of its mask (None: no dropout), and returns [B, N, S, D]. Libraries are imported where they are
used. Nothing here has been run on a GPU yet but torch's own.

Legend: B micro-batch, N heads, S positions, D head dim, T = B * S.
"""

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from megagpt.errors import ConfigError
from megagpt.kernels.attention_documents import Lengths, PackedDocuments, Piece
from megagpt.kernels.attention_names import ABILITIES
from megagpt.kernels.attention_native import native_attention, native_attention_fits
from megagpt.kernels.triton_use import has_triton, is_interpreted

Attend = Callable[[Tensor, Tensor, Tensor, PackedDocuments | None, float, int | None], Tensor]


def sdpa(
    query: Tensor, key: Tensor, value: Tensor, documents: PackedDocuments | None, dropout: float, seed: int | None
) -> Tensor:
    """torch's fused attention. On the CPU documents are attended to piece by piece, elsewhere under a mask."""
    shared = query.shape[1] != key.shape[1]
    if seed is None or dropout == 0.0:
        if documents is not None and query.device.type == "cpu":
            return _by_pieces(query, key, value, documents)
        mask = None if documents is None else documents.mask
        return _fused(query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=shared)
    mask = None if documents is None else documents.mask
    with seeded(seed, query.device):
        return _fused(query, key, value, attn_mask=mask, is_causal=mask is None, enable_gqa=shared, dropout_p=dropout)


_fused = F.scaled_dot_product_attention


def _by_pieces(query: Tensor, key: Tensor, value: Tensor, documents: PackedDocuments) -> Tensor:
    """Only pairs of a piece of neighbouring documents are computed: measured on one core, at 1024 tokens in documents
    of 100, forward and backward take half of the time under the whole mask (bf16 and fp32)."""
    rows = []
    for number, pieces in enumerate(documents.pieces):
        sizes = [piece.end - piece.begin for piece in pieces]
        parts = zip(pieces, *(heads[number : number + 1].split(sizes, 2) for heads in (query, key, value)), strict=True)
        mixed = [_piece(piece, number, documents, *heads) for piece, *heads in parts]
        rows.append(torch.cat(mixed, 2) if len(mixed) > 1 else mixed[0])
    return torch.cat(rows) if len(rows) > 1 else rows[0]


def _piece(piece: Piece, row: int, documents: PackedDocuments, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    shared, whole = query.shape[1] != key.shape[1], piece.num_documents == 1
    inside = slice(piece.begin, piece.end)
    mask = None if whole else documents.mask[row : row + 1, :, inside, inside]
    return _fused(query, key, value, attn_mask=mask, is_causal=whole, enable_gqa=shared)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, the default generator, from which libraries take their dropout, starts from this seed."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _sdpa_by(form: SDPBackend) -> Attend:
    def attend(
        query: Tensor, key: Tensor, value: Tensor, documents: PackedDocuments | None, dropout: float, seed: int | None
    ) -> Tensor:
        with sdpa_kernel(form):
            return sdpa(query, key, value, documents, dropout, seed)

    return attend


def _varlen(
    query: Tensor, key: Tensor, value: Tensor, documents: PackedDocuments | None, dropout: float, seed: int | None
) -> Tensor:
    varlen_attn = importlib.import_module("torch.nn.attention.varlen").varlen_attn

    lengths = documents.lengths if documents else _whole_lengths(query.shape[0], query.shape[2], query.device)
    flat = [_tokens_first(heads) for heads in (query, key, value)]
    if query.shape[1] != key.shape[1]:
        varlen_attn = partial(varlen_attn, enable_gqa=True)  # torch 2.10 does not know the word
    has_window = "window_size" in inspect.signature(varlen_attn).parameters  # torch 2.10 has `is_causal` instead
    causal: dict[str, Any] = {"window_size": (-1, 0)} if has_window else {"is_causal": True}
    mixed: Tensor = varlen_attn(*flat, lengths.bounds, lengths.bounds, lengths.longest, lengths.longest, **causal)
    return mixed.unflatten(0, (query.shape[0], -1)).transpose(1, 2)


def _flash_attn(
    query: Tensor, key: Tensor, value: Tensor, documents: PackedDocuments | None, dropout: float, seed: int | None
) -> Tensor:
    import flash_attn

    def attend(probability: float) -> Tensor:
        if documents is None:
            heads = (part.transpose(1, 2) for part in (query, key, value))
            return flash_attn.flash_attn_func(*heads, dropout_p=probability, causal=True).transpose(1, 2)
        bounds, longest = documents.lengths
        flat = (_tokens_first(part) for part in (query, key, value))
        mixed = flash_attn.flash_attn_varlen_func(
            *flat, bounds, bounds, longest, longest, dropout_p=probability, causal=True
        )
        return mixed.unflatten(0, (query.shape[0], -1)).transpose(1, 2)

    if seed is None or dropout == 0.0:
        return attend(0.0)
    with seeded(seed, query.device):
        return attend(dropout)


def _transformer_engine(
    query: Tensor, key: Tensor, value: Tensor, documents: PackedDocuments | None, dropout: float, seed: int | None
) -> Tensor:
    batch, num_heads, _, head_dim = query.shape
    core = _transformer_engine_core(num_heads, key.shape[1], head_dim)
    if documents is None:
        heads = (part.permute(2, 0, 1, 3) for part in (query, key, value))  # [S, B, N, D], as they lie
        mixed = core(*heads, qkv_format="sbhd", attn_mask_type="causal")
        return mixed.unflatten(-1, (num_heads, head_dim)).permute(1, 2, 0, 3)
    bounds, longest = documents.lengths
    mixed = core(
        *(_tokens_first(part) for part in (query, key, value)),
        qkv_format="thd",
        attn_mask_type="padding_causal",
        cu_seqlens_q=bounds,
        cu_seqlens_kv=bounds,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )
    return mixed.reshape(batch, -1, num_heads, head_dim).transpose(1, 2)


@cache
def _transformer_engine_core(num_heads: int, num_key_heads: int, head_dim: int) -> Any:
    from transformer_engine.pytorch import DotProductAttention

    return DotProductAttention(num_heads, head_dim, num_gqa_groups=num_key_heads, attention_dropout=0.0)


def _flex(
    query: Tensor, key: Tensor, value: Tensor, documents: PackedDocuments | None, dropout: float, seed: int | None
) -> Tensor:
    blocks = _causal_blocks(query.shape[2], query.device) if documents is None else documents.flex_blocks
    return _compiled_flex(query.is_cuda)(
        query, key, value, block_mask=blocks, enable_gqa=query.shape[1] != key.shape[1]
    )


@cache
def _compiled_flex(compiled: bool) -> Any:
    """Compiled it is one kernel. On the CPU torch has no backward pass of it (2.13)."""
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False) if compiled else flex_attention


@cache
def _causal_blocks(length: int, device: torch.device) -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, n, query, key: key <= query, None, None, length, length, device=device)


def _native(
    query: Tensor, key: Tensor, value: Tensor, documents: PackedDocuments | None, dropout: float, seed: int | None
) -> Tensor:
    if not native_attention_fits(query, key, value):
        shape = f"{query.dtype} on {query.device.type}, {query.shape[2]} tokens and heads of {query.shape[3]}"
        raise ConfigError(
            f'train.attention_backend = "native" does not work with {shape}: it takes fp32 and bf16 on a CPU, '
            "multiples of 64 tokens and heads of multiples of 16; use auto or sdpa"
        )
    return native_attention(query, key, value, None if documents is None else documents.bounds.starts)


def _triton(
    query: Tensor, key: Tensor, value: Tensor, documents: PackedDocuments | None, dropout: float, seed: int | None
) -> Tensor:
    from megagpt.kernels.attention_ours import own_attention, refusal

    reason = refusal(query, key)
    if reason is not None:
        raise ConfigError(f'train.attention_backend = "triton" does not work here: {reason}; use auto or sdpa')
    bounds = None if documents is None else documents.bounds
    return own_attention(query, key, value, bounds, dropout, seed)


@cache
def _whole_lengths(batch: int, length: int, device: torch.device) -> Lengths:
    """Every sequence as one document; made once, not in every layer."""
    return Lengths(torch.arange(batch + 1, dtype=torch.int32, device=device) * length, length)


def _tokens_first(heads: Tensor) -> Tensor:
    """[B, N, S, D] to [T, N, D], sequence by sequence."""
    return heads.transpose(1, 2).flatten(0, 1)


BACKENDS: dict[str, Attend] = {
    "native": _native,
    "sdpa": sdpa,
    "sdpa_flash": _sdpa_by(SDPBackend.FLASH_ATTENTION),
    "sdpa_cudnn": _sdpa_by(SDPBackend.CUDNN_ATTENTION),
    "sdpa_efficient": _sdpa_by(SDPBackend.EFFICIENT_ATTENTION),
    "varlen": _varlen,
    "flex": _flex,
    "flash_attn": _flash_attn,
    "transformer_engine": _transformer_engine,
    "triton": _triton,
}
assert list(BACKENDS) == list(ABILITIES), "every way of attending has a name and a function"


@cache
def missing(name: str, device: torch.device) -> str | None:
    """What a way of attending lacks on this device and in this installation; None where it works."""
    on_cpu = device.type == "cpu"
    modules = {"varlen": "torch.nn.attention.varlen", "flex": "torch.nn.attention.flex_attention"}
    module = modules.get(name, name)
    if name in ("varlen", "flex", "flash_attn", "transformer_engine") and importlib.util.find_spec(module) is None:
        return f"{module} is not installed"
    if name == "native":
        fits = on_cpu and native_attention_fits(*torch.zeros(3, 1, 1, 64, 16).unbind())
        return None if fits else "it needs a CPU with AVX-512 and bfloat16, and a compiler when megagpt was installed"
    if name == "triton" and not has_triton():
        return "triton is not installed"
    runs_on_cpu = name == "sdpa" or (name == "triton" and is_interpreted())
    return f"it needs a GPU, and this is {device.type}" if on_cpu and not runs_on_cpu else None


def check_backend(name: str, device: torch.device) -> None:
    """Raises ConfigError where `train.attention_backend` names what does not work here."""
    lacks = None if name == "auto" else missing(name, device)
    if lacks is not None:
        working = ", ".join(other for other in BACKENDS if missing(other, device) is None)
        raise ConfigError(
            f'train.attention_backend = "{name}" does not work here: {lacks}; use auto, or one of these: {working}'
        )
