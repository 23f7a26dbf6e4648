"""Dropout whose mask is a pure function of a seed, so that recomputation, resumption and layouts can repeat it.

A seed is one integer; `mix` derives the seed of a layer or site from it (splitmix64, Steele et al. 2014).
"""

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1


def mix(seed: int, value: int) -> int:
    """A new 63-bit seed from a seed and a number; different numbers give unrelated seeds."""
    z = (seed * 0x9E3779B97F4A7C15 + value + 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return (z ^ (z >> 31)) >> 1


def dropout(values: Tensor, probability: float, seed: int | None) -> Tensor:
    """Zero each value with this probability and scale the rest by 1 / (1 - probability).

    values: any shape. `seed` None means no dropout (evaluation). The same seed, shape and device give the same mask.
    """
    if seed is None or probability == 0.0:
        return values
    # last: half precision would round the scale itself
    return (values * keep_mask(values, probability, seed)).mul_(1.0 / (1.0 - probability))


def keep_mask(values: Tensor, probability: float, seed: int) -> Tensor:
    """1 where `dropout` keeps a value and 0 elsewhere, like `values` in shape, dtype and device."""
    generator = torch.Generator(values.device).manual_seed(seed)
    return torch.empty_like(values).bernoulli_(1.0 - probability, generator=generator)
