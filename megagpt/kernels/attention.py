"""Causal attention: the plain form, and the one dispatch over its fused forms (`attention_backends.py`).

Legend: B micro-batch, N heads, Q query positions, K key positions, D head dim. Knows nothing of ranks or layers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from megagpt.kernels.attention_backends import BACKENDS, check_backend
from megagpt.kernels.attention_documents import PackedDocuments, causal_mask
from megagpt.kernels.attention_native import native_attention_fits
from megagpt.kernels.triton_use import runs_triton


def reference_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Attention as the paper writes it, with every score in memory. Vaswani et al. 2017, §3.2.1.

    query [B, N, Q, D], key and value [B, N, K, D]; mask [B or 1, 1, Q, K] bool or None for causal. Returns
    [B, N, Q, D]. Softmax in float32 at least.
    """
    if mask is None:
        mask = causal_mask(query.shape[2], key.shape[2], query.device)
    scores = query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask, float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax(scores, dim=-1, dtype=wide).to(value.dtype) @ value


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    documents: PackedDocuments | None,
    dropout: float,
    dropout_seed: int | None,
    backend: str = "auto",
) -> Tensor:
    """Fused causal attention; equals `reference_attention` where dropout is 0.

    query [B, N, Q, D], key and value [B, N, K, D] with K ≥ Q (K > Q: earlier keys come from a cache, without
    documents). N heads of keys may be fewer than of queries, which then share them in turn. `dropout_seed` gives the
    dropout mask; None means no dropout. `backend`: "auto" (`choose`) or a name of `attention_names.py`. Returns
    [B, N, Q, D]. Raises ConfigError for a backend that does not work here.
    """
    if query.shape[2] != key.shape[2]:
        assert documents is None, "keys from a cache are of one document"
        return _decode(query, key, value)
    name = backend
    if backend == "auto":
        name = choose(query, key, value, documents, dropout_seed is not None and dropout > 0.0)
    else:
        check_backend(backend, query.device)
    return BACKENDS[name](query, key, value, documents, dropout, dropout_seed)


def choose(query: Tensor, key: Tensor, value: Tensor, documents: PackedDocuments | None, dropped: bool) -> str:
    """What "auto" means for such tensors: the one table. GPU rows are unmeasured (benchmarks/gpu_attention.py).

    | device | documents | numbers    | choice                                                              |
    |--------|-----------|------------|---------------------------------------------------------------------|
    | CPU    | any       | fp32, bf16 | native, where the CPU and the shape are for it and nothing is dropped |
    | CPU    | any       | any        | sdpa, a few documents at a time where they are kept apart           |
    | GPU    | none      | any        | sdpa: torch chooses between cuDNN, flash, efficient and plain       |
    | GPU    | apart     | fp16, bf16 | triton: skips other documents, and does not wait for their lengths  |
    | GPU    | apart     | fp32       | sdpa under a mask                                                   |
    """
    if not dropped and native_attention_fits(query, key, value):
        return "native"
    if documents is None or not runs_triton(query) or query.dtype not in (torch.float16, torch.bfloat16):
        return "sdpa"
    return "triton" if query.shape[-1] <= 128 else "sdpa"


def _decode(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The newest queries over all keys of a cache."""
    num_queries, num_keys = query.shape[2], key.shape[2]
    assert num_queries < num_keys, (num_queries, num_keys)
    mask = causal_mask(num_queries, num_keys, query.device) if num_queries > 1 else None
    shared = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=shared)
