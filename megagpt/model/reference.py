"""A plain single-process GPT-3 in torch: the truth that every other form of the model must equal.

Written to be checked against the paper by eye: no parallelism, no fused kernels, no caches. Parameters go by the global
names of `names.py`. Runs in any float dtype; parity tests use float32 and float64.
"""

import torch
from torch import Tensor

from megagpt.data.batch import Batch
from megagpt.kernels.attention import reference_attention
from megagpt.kernels.attention_documents import document_mask
from megagpt.kernels.cross_entropy import reference_cross_entropy
from megagpt.kernels.gelu import reference_gelu
from megagpt.kernels.layer_norm import reference_layer_norm
from megagpt.model.init import initial_parameter
from megagpt.model.names import parameter_shapes
from megagpt.model.spec import ModelSpec


def initial_parameters(spec: ModelSpec, seed: int) -> dict[str, Tensor]:
    """Every parameter by global name, float32, ready for autograd."""
    return {
        name: initial_parameter(spec, seed, name, info).requires_grad_()
        for name, info in parameter_shapes(spec).items()
    }


def reference_logits(parameters: dict[str, Tensor], spec: ModelSpec, batch: Batch) -> Tensor:
    """Logits [B, S, vocab_size] of a micro-batch, without dropout."""

    def norm(values: Tensor, name: str) -> Tensor:
        weight, bias = parameters[f"{name}.weight"], parameters[f"{name}.bias"]
        return reference_layer_norm(values, weight, bias, spec.layer_norm_epsilon)

    def linear(values: Tensor, name: str) -> Tensor:
        return values @ parameters[f"{name}.weight"].T + parameters[f"{name}.bias"]

    table = parameters["embedding.tokens.weight"]
    hidden = table[batch.tokens] + parameters["embedding.positions.weight"][batch.positions]  # [B, S, H]
    mask = None if batch.documents is None else document_mask(batch.documents)
    for number in range(spec.num_layers):
        layer = f"layers.{number}"
        qkv = linear(norm(hidden, f"{layer}.attention_norm"), f"{layer}.attention.qkv")
        query, key, value = qkv.unflatten(-1, (spec.num_heads, 3, spec.head_dim)).permute(3, 0, 2, 1, 4)
        mixed = reference_attention(query, key, value, mask).transpose(1, 2).flatten(-2)  # [B, S, H]
        hidden = hidden + linear(mixed, f"{layer}.attention.output")
        wide = reference_gelu(linear(norm(hidden, f"{layer}.mlp_norm"), f"{layer}.mlp.up"), spec.activation)
        hidden = hidden + linear(wide, f"{layer}.mlp.down")
    return norm(hidden, "final_norm") @ table[: spec.vocab_size].T


def reference_loss(parameters: dict[str, Tensor], spec: ModelSpec, batches: list[Batch]) -> Tensor:
    """Σ loss / Σ tokens over micro-batches, in nats."""
    total, count = torch.zeros(()), torch.zeros(())
    for batch in batches:
        losses = reference_cross_entropy(reference_logits(parameters, spec, batch), batch.labels, spec.vocab_size)
        total = total + (losses * batch.loss_mask).sum()
        count = count + batch.loss_mask.sum()
    return total / count
