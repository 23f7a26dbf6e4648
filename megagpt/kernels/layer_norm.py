"""LayerNorm: the plain form and torch's fused one. Ba et al. 2016. Knows nothing of ranks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def reference_layer_norm(values: Tensor, weight: Tensor, bias: Tensor, epsilon: float) -> Tensor:
    """(x - mean) / sqrt(variance + ε) · weight + bias over the last dim, in float32 at least."""
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    mean = wide.mean(dim=-1, keepdim=True)
    variance = (wide - mean).square().mean(dim=-1, keepdim=True)
    return ((wide - mean) / torch.sqrt(variance + epsilon) * weight + bias).to(values.dtype)


class LayerNorm(nn.Module):
    """LayerNorm over the last dim (H). megatron-core's own wrapper refuses sequence parallelism without apex or
    Transformer Engine; this one runs on any device. torch's kernel computes in float32 whatever the input's dtype.
    """

    def __init__(self, hidden_size: int, epsilon: float, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(hidden_size, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.empty(hidden_size, dtype=dtype, device=device))
        self.epsilon = epsilon

    def forward(self, values: Tensor) -> Tensor:
        """[..., H] to [..., H]."""
        return F.layer_norm(values, self.weight.shape, self.weight, self.bias, self.epsilon)
