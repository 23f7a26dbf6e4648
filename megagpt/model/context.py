"""What the parts of a stage share: how they are built, and what one forward pass tells every layer."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from megagpt.kernels.attention_documents import PackedDocuments
from megagpt.kernels.dropout import mix
from megagpt.model.spec import ModelSpec
from megagpt.parallel.mcore_config import McoreConfig
from megagpt.parallel.mesh import Mesh


def no_init(tensor: Tensor) -> Tensor:
    """Leaves a parameter as it is: `model/init.py` fills every parameter by its global name."""
    return tensor


@dataclass(frozen=True)
class StageBuild:
    """What every part of a stage is built from."""

    spec: ModelSpec
    mesh: Mesh
    mcore: McoreConfig
    recompute: str = "none"  # none, selective (attention core) or full (whole layers)
    recompute_every: int = 1  # with full: layers 0, n, 2n, …
    float8: bool = False  # matrix products of the layers in float8
    compiles: bool = False  # in training, what lies between matrix products is torch.compile's code
    attention_backend: str = "auto"  # or a name of kernels/attention_names.py

    @property
    def sequence_parallel(self) -> bool:
        """Hidden states between layers are cut along the sequence over tensor ranks."""
        return self.mcore.sequence_parallel

    def hidden_dropout_seed(self, seed: int | None) -> int | None:
        """Seed of dropout on hidden states: equal on ranks that hold copies, different where they hold parts."""
        if seed is None:
            return None
        if self.mesh.context_size > 1:
            seed = mix(seed, 100_000 + self.mesh.context_rank)
        return mix(seed, self.mesh.tensor_rank + 1) if self.sequence_parallel else seed

    def recomputes(self, layer: int) -> bool:
        """Whether a whole layer's activations are recomputed in the backward pass."""
        return self.recompute == "full" and layer % self.recompute_every == 0


class LayerContext(NamedTuple):
    """What one forward pass of one micro-batch tells every layer."""

    documents: PackedDocuments | None = None  # kept apart; None: causal
    dropout_seed: int | None = None  # None: no dropout


class LayerCache:
    """Keys and values of one layer during generation; grows in place up to the model's context.

    Buffers are [B, N_local, S_max, D]; `length` positions are filled.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values, self.length = keys, values, 0

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, N_local, Q, D] of the newest positions; returns all filled so far, [B, N_local, length, D]."""
        end = self.length + key.shape[2]
        assert end <= self.keys.shape[2], f"cache of {self.keys.shape[2]} positions cannot hold {end}"
        self.keys[:, :, self.length : end] = key
        self.values[:, :, self.length : end] = value
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]
