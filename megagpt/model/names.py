"""Global, layout-free names of every parameter, with shapes and how tensor parallelism splits them.

Initialisation, parameter groups, checkpoints and export all go by these names. Pure functions of the ModelSpec.
Legend: V padded vocabulary, H hidden size, F feed-forward size, S sequence length.
"""

from typing import NamedTuple

from megagpt.model.spec import ModelSpec


class ParameterInfo(NamedTuple):
    """One parameter of the whole model."""

    shape: tuple[int, ...]
    split_dim: int | None  # dim cut into equal contiguous slices over tensor ranks; None: every rank holds all of it
    decay: bool  # weight decay applies (matrices); biases and norms have none
    residual: bool  # a projection into the residual stream, initialised with std / sqrt(2 * num_layers)


TOKEN_EMBEDDING = "embedding.tokens.weight"
POSITION_EMBEDDING = "embedding.positions.weight"


def layer_shapes(spec: ModelSpec) -> dict[str, ParameterInfo]:
    """Parameters of one decoder layer, by the name within the layer.

    Rows of `attention.qkv` are ordered [head][q|k|v][head_dim] as in Megatron-LM, so that a contiguous slice holds
    whole heads. All linears are [out, in].
    """
    h, f = spec.hidden_size, spec.ffn_hidden_size
    return {
        "attention_norm.weight": ParameterInfo((h,), None, False, False),
        "attention_norm.bias": ParameterInfo((h,), None, False, False),
        "attention.qkv.weight": ParameterInfo((3 * h, h), 0, True, False),
        "attention.qkv.bias": ParameterInfo((3 * h,), 0, False, False),
        "attention.output.weight": ParameterInfo((h, h), 1, True, True),
        "attention.output.bias": ParameterInfo((h,), None, False, False),
        "mlp_norm.weight": ParameterInfo((h,), None, False, False),
        "mlp_norm.bias": ParameterInfo((h,), None, False, False),
        "mlp.up.weight": ParameterInfo((f, h), 0, True, False),
        "mlp.up.bias": ParameterInfo((f,), 0, False, False),
        "mlp.down.weight": ParameterInfo((h, f), 1, True, True),
        "mlp.down.bias": ParameterInfo((h,), None, False, False),
    }


def embedding_shapes(spec: ModelSpec) -> dict[str, ParameterInfo]:
    """Token and position tables; the output head is tied to the token table."""
    return {
        TOKEN_EMBEDDING: ParameterInfo((spec.padded_vocab_size, spec.hidden_size), 0, True, False),
        POSITION_EMBEDDING: ParameterInfo((spec.sequence_length, spec.hidden_size), None, True, False),
    }


def final_norm_shapes(spec: ModelSpec) -> dict[str, ParameterInfo]:
    """The LayerNorm before the output head."""
    return {
        "final_norm.weight": ParameterInfo((spec.hidden_size,), None, False, False),
        "final_norm.bias": ParameterInfo((spec.hidden_size,), None, False, False),
    }


def parameter_shapes(spec: ModelSpec) -> dict[str, ParameterInfo]:
    """Every parameter of the whole model by its global name, in the order of the forward pass."""
    shapes = embedding_shapes(spec)
    for layer in range(spec.num_layers):
        shapes |= {f"layers.{layer}.{name}": info for name, info in layer_shapes(spec).items()}
    return shapes | final_norm_shapes(spec)


def local_shape(info: ParameterInfo, tensor_ranks: int) -> tuple[int, ...]:
    """Shape of one tensor rank's part."""
    if info.split_dim is None:
        return info.shape
    size = info.shape[info.split_dim]
    assert size % tensor_ranks == 0, f"{info.shape} does not split over {tensor_ranks} tensor ranks"
    return tuple(n // tensor_ranks if dim == info.split_dim else n for dim, n in enumerate(info.shape))
