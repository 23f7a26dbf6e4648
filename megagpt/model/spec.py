"""The shape of a model: all that the model's code, its checkpoints and its exports need to know of a run.

Made by `plan.py` from the config and the tokenizer; knows nothing of layouts, batches or files.
"""

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from megagpt.errors import CheckpointError


@dataclass(frozen=True)
class ModelSpec:
    """A GPT-3 decoder: learned positions, pre-LayerNorm, GELU, biases everywhere, output head tied to the embedding.

    `vocab_size` counts token ids that exist; the table has `padded_vocab_size` rows, and ids between the two are
    never predicted (the loss and the samplers leave their logits out).
    """

    name: str
    num_layers: int
    num_heads: int
    hidden_size: int
    ffn_hidden_size: int
    sequence_length: int
    vocab_size: int
    padded_vocab_size: int
    activation: Literal["gelu_tanh", "gelu_erf"]
    layer_norm_epsilon: float
    hidden_dropout: float
    attention_dropout: float
    init_std: float

    def __post_init__(self) -> None:
        assert self.hidden_size % self.num_heads == 0, (self.hidden_size, self.num_heads)
        assert self.padded_vocab_size >= self.vocab_size, (self.padded_vocab_size, self.vocab_size)

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden_size // self.num_heads

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """The spec that `to_dict` wrote. Raises CheckpointError naming missing or unknown keys."""
        names = {field.name for field in fields(cls)}
        if set(values) != names:
            missing, unknown = sorted(names - set(values)), sorted(set(values) - names)
            raise CheckpointError(f"model description has missing keys {missing} and unknown keys {unknown}")
        return cls(**values)
