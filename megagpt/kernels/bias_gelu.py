"""Bias and GELU in one step: what follows the feed-forward layer's first matrix. Knows nothing of ranks.

The plain form adds the bias, then applies `kernels/gelu.py`.
"""

from typing import Literal

from torch import Tensor

from megagpt.kernels.gelu import gelu, reference_gelu


def reference_bias_gelu(values: Tensor, bias: Tensor, form: Literal["gelu_tanh", "gelu_erf"]) -> Tensor:
    """GELU of values + bias; values [..., F], bias [F]."""
    return reference_gelu(values + bias, form)


def bias_gelu(values: Tensor, bias: Tensor, form: Literal["gelu_tanh", "gelu_erf"]) -> Tensor:
    """GELU of values + bias; values [..., F], bias [F]."""
    return gelu(values + bias, form)
