"""Random inputs of attention and their truth in float64."""

import torch
from torch import Tensor

from megagpt.kernels.attention import reference_attention
from megagpt.kernels.attention_documents import PackedDocuments


def random_heads(
    seed: int, batch: int, heads: int, key_heads: int, length: int, width: int, dtype: torch.dtype
) -> list[Tensor]:
    """Query, key and value as parts of one projection where their heads are as many, else apart."""
    generator = torch.Generator().manual_seed(seed)
    if heads == key_heads:
        whole = torch.randn(length, batch, heads, 3, width, generator=generator, dtype=torch.float64).to(dtype)
        return [part.detach().requires_grad_() for part in whole.permute(3, 1, 2, 0, 4)]
    shapes = [(batch, count, length, width) for count in (heads, key_heads, key_heads)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


def random_documents(seed: int, batch: int, length: int, mean: float) -> Tensor:
    """[B, S] int32: a document ends after each token with probability 1 / mean."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(batch, length, generator=generator) < 1 / mean).cumsum(1).to(torch.int32)


def random_slopes(seed: int, like: Tensor) -> Tensor:
    """A gradient of the output, in its format."""
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(like.dtype)


def truth(
    heads: list[Tensor], slopes: Tensor, documents: PackedDocuments | None, weights: Tensor | None = None
) -> list[Tensor]:
    """Output and the three gradients in float64, on the CPU. `weights` multiply the probabilities (dropout)."""
    query, key, value = (part.detach().double().cpu().requires_grad_() for part in heads)
    group = query.shape[1] // key.shape[1]
    keys, values = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    mask = None if documents is None else documents.mask.cpu()
    if weights is None:
        output = reference_attention(query, keys, values, mask)
    else:
        one_hot = torch.eye(query.shape[2], dtype=torch.float64).expand(*query.shape[:2], -1, -1)
        output = (reference_attention(query, keys, one_hot, mask) * weights.double().cpu()) @ values
    return [output.detach(), *torch.autograd.grad(output, (query, key, value), slopes.double().cpu())]


def worst(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    """Largest difference of each pair, relative to the largest value, if that is over 1."""
    return [
        float((one.detach().double().cpu() - other).abs().max() / other.abs().max().clamp(min=1))
        for one, other in zip(found, wanted, strict=True)
    ]
