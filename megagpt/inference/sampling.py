"""From logits to the next token: pure functions on logits [B, V] of B rows and V ids. Knows no model and no text.

Penalty, temperature, top-k and top-p mean what they mean in transformers, in its order, so that settings carry over.
"""

import math

import torch
from torch import Tensor

from megagpt.inference.settings import SamplingSettings


def make_generator(settings: SamplingSettings, device: torch.device) -> torch.Generator:
    """The random numbers of one generation; the same seed and device give the same tokens."""
    return torch.Generator(device).manual_seed(settings.seed)


def choose(logits: Tensor, previous: Tensor, settings: SamplingSettings, generator: torch.Generator) -> Tensor:
    """The next id of each row, [B] int64, from logits [B, V] float32 and the ids so far [B, T] int64."""
    logits = apply_repetition_penalty(logits, previous, settings.repetition_penalty)
    if settings.greedy:
        return logits.argmax(dim=-1)
    logits = keep_top_p(keep_top_k(logits / settings.temperature, settings.top_k), settings.top_p)
    return torch.multinomial(torch.softmax(logits, dim=-1), 1, generator=generator).squeeze(-1)


def apply_repetition_penalty(logits: Tensor, previous: Tensor, penalty: float) -> Tensor:
    """Positive logits of ids in `previous` [B, T] divided by `penalty`, negative ones multiplied; once for each id."""
    if penalty == 1.0:
        return logits
    seen = logits.gather(1, previous)
    return logits.scatter(1, previous, torch.where(seen < 0, seen * penalty, seen / penalty))


def keep_top_k(logits: Tensor, top_k: int) -> Tensor:
    """All but the `top_k` largest logits of a row set to -inf; those equal to the k-th stay. 0 keeps all."""
    if top_k == 0 or top_k >= logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(top_k, dim=-1).values[:, -1:]
    return logits.masked_fill(logits < smallest_kept, -math.inf)


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """The fewest most likely ids whose probabilities sum to at least `top_p`; the others set to -inf. 1 keeps all.

    Holtzman et al. 2020, §3.1. Summed from the least likely id up, as transformers does.
    """
    if top_p == 1.0:
        return logits
    ascending, order = logits.sort(dim=-1)
    removed = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    removed[:, -1] = False  # rounding must not remove the most likely id
    return logits.masked_fill(torch.zeros_like(removed).scatter(1, order, removed), -math.inf)
