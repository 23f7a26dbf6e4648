"""What a model costs: exact parameter counts, FLOPs of training. Pure functions of the ModelSpec.

Legend: L layers, H hidden, F feed-forward, S sequence, V padded vocabulary. Knows nothing of layouts or of torch.
"""

from dataclasses import dataclass
from math import prod

from megagpt.model.names import ParameterInfo, embedding_shapes, final_norm_shapes, layer_shapes, local_shape
from megagpt.model.spec import ModelSpec


@dataclass(frozen=True)
class FlopsPerToken:
    """Floating-point operations of one training token, forward and backward; a multiply-add counts as two.

    layers     GEMMs of all decoder layers
    attention  scores and weighted values of all layers, over the full S x S matrix: the causal half that a kernel may
               skip is counted too, as is the custom (Narayanan et al. 2021; Chowdhery et al. 2022, appendix B)
    head       logits over the padded vocabulary, as executed
    palm       the usual estimate 6 N + 12 L H S (Chowdhery et al. 2022, appendix B), N parameters without padding
    """

    layers: int
    attention: int
    head: int
    palm: int

    @property
    def total(self) -> int:
        """Model FLOPs a token: the count that TFLOP/s and MFU are stated in. Recomputation is not counted."""
        return self.layers + self.attention + self.head


def flops_per_token(spec: ModelSpec) -> FlopsPerToken:
    """Training FLOPs a token: forward GEMMs times three, as the backward pass has two GEMMs for each forward one."""
    h, f, s = spec.hidden_size, spec.ffn_hidden_size, spec.sequence_length
    layer_gemms = 2 * (3 * h * h + h * h + 2 * h * f)
    attention = 2 * (2 * s * h)
    return FlopsPerToken(
        layers=3 * spec.num_layers * layer_gemms,
        attention=3 * spec.num_layers * attention,
        head=3 * 2 * h * spec.padded_vocab_size,
        palm=6 * count_parameters(spec, padded=False) + 12 * spec.num_layers * h * s,
    )


def head_cost_in_layers(spec: ModelSpec) -> float:
    """FLOPs of the output head in units of one decoder layer, attention included."""
    flops = flops_per_token(spec)
    return flops.head * spec.num_layers / (flops.layers + flops.attention)


def count_parameters(spec: ModelSpec, padded: bool = True) -> int:
    """Parameters of the whole model; `padded` False leaves out the embedding rows beyond the vocabulary."""
    total = (
        _count(embedding_shapes(spec)) + spec.num_layers * _count(layer_shapes(spec)) + _count(final_norm_shapes(spec))
    )
    return total if padded else total - (spec.padded_vocab_size - spec.vocab_size) * spec.hidden_size


def count_layer_parameters(spec: ModelSpec, tensor_ranks: int) -> int:
    """Parameters of one decoder layer on one tensor rank."""
    return _count(layer_shapes(spec), tensor_ranks)


def count_embedding_parameters(spec: ModelSpec, tensor_ranks: int) -> int:
    """Parameters of the token and position tables on one tensor rank."""
    return _count(embedding_shapes(spec), tensor_ranks)


def count_head_parameters(spec: ModelSpec, tensor_ranks: int, has_embedding: bool) -> int:
    """Parameters of the final norm, and of the tied token table where the rank does not hold it as its embedding."""
    tied_copy = 0 if has_embedding else spec.padded_vocab_size // tensor_ranks * spec.hidden_size
    return _count(final_norm_shapes(spec), tensor_ranks) + tied_copy


def _count(shapes: dict[str, ParameterInfo], tensor_ranks: int = 1) -> int:
    return sum(prod(local_shape(info, tensor_ranks)) for info in shapes.values())
