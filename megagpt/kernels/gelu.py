"""GELU in its two forms. Hendrycks & Gimpel 2016: the exact one with erf, and the tanh approximation of GPT-2."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_gelu(values: Tensor, form: Literal["gelu_tanh", "gelu_erf"]) -> Tensor:
    """The formula as written."""
    if form == "gelu_erf":
        return values * 0.5 * (1 + torch.erf(values / math.sqrt(2)))
    return values * 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (values + 0.044715 * values**3)))


def gelu(values: Tensor, form: Literal["gelu_tanh", "gelu_erf"]) -> Tensor:
    """torch's fused kernel; any shape."""
    return F.gelu(values, approximate="tanh" if form == "gelu_tanh" else "none")
