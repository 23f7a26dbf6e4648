"""Bias and GELU in one step: what follows the feed-forward layer's first matrix. Knows nothing of ranks.

Plain formula, torch's own operations, our Triton kernel (one read and one write), and the one dispatch between them.
"""

from typing import Literal

from torch import Tensor

from megagpt.kernels.gelu import gelu, reference_gelu
from megagpt.kernels.triton_use import runs_triton


def reference_bias_gelu(values: Tensor, bias: Tensor, form: Literal["gelu_tanh", "gelu_erf"]) -> Tensor:
    """GELU of values + bias; values [..., F], bias [F]."""
    return reference_gelu(values + bias, form)


def bias_gelu(values: Tensor, bias: Tensor, form: Literal["gelu_tanh", "gelu_erf"]) -> Tensor:
    """GELU of values + bias; values [..., F], bias [F]. On CUDA the sum is not rounded before the GELU."""
    if runs_triton(values):
        from megagpt.kernels.bias_gelu_triton import BiasGelu

        output: Tensor = BiasGelu.apply(values, bias, form)
        return output
    return gelu(values + bias, form)
