"""Causal attention: the plain form, the fused form (torch SDPA), and the one dispatch between them.

Legend: B micro-batch, N heads, Q query positions, K key positions, D head dim. Knows nothing of ranks or layers.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from megagpt.kernels.attention_native import native_attention, native_attention_fits


def document_mask(documents: Tensor) -> Tensor:
    """Which keys each query may see when packed documents are kept apart.

    documents [B, S] int: number of the document each token belongs to. Returns [B, 1, S, S] bool, True where the key
    is of the query's document and not later than it.
    """
    same = documents[:, :, None] == documents[:, None, :]
    return (same & causal_mask(documents.shape[1], documents.shape[1], documents.device))[:, None]


def causal_mask(num_queries: int, num_keys: int, device: torch.device) -> Tensor:
    """[Q, K] bool, True where the key is not later than the query; the last query is the last key."""
    ones = torch.ones(num_queries, num_keys, dtype=torch.bool, device=device)
    return ones.tril(diagonal=num_keys - num_queries)


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
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float, dropout_seed: int | None
) -> Tensor:
    """Fused causal attention; equals `reference_attention` where dropout is 0.

    query [B, N, Q, D], key and value [B, N, K, D] with K ≥ Q (K > Q: earlier keys come from a cache); mask [B or 1, 1,
    Q, K] bool, or None for causal. `dropout_seed` gives the dropout mask; None means no dropout. Returns [B, N, Q, D].
    """
    num_queries, num_keys = query.shape[2], key.shape[2]
    causal = mask is None and num_queries == num_keys
    if mask is None and 1 < num_queries < num_keys:
        mask = causal_mask(num_queries, num_keys, query.device)
    if dropout_seed is None or dropout == 0.0:
        if causal and native_attention_fits(query, key, value):
            return native_attention(query, key, value)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    # torch's fused attention takes its dropout mask from the default generator alone: seed it for this call only
    devices = [query.device] if query.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(dropout_seed)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal)
