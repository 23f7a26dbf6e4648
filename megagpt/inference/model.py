"""A trained model ready to predict. In: a model of any source. Out: the whole model in this one process.

Knows nothing of sampling or of text; `generate.py` asks it for the logits of the next token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from megagpt.errors import CheckpointError
from megagpt.formats.open_source import open_source
from megagpt.formats.source import ModelSource
from megagpt.model.context import LayerCache, StageBuild
from megagpt.model.gpt import GPTChunk
from megagpt.model.spec import ModelSpec
from megagpt.parallel.mcore_config import make_mcore_config
from megagpt.parallel.mesh import Mesh, build_mesh
from megagpt.plan import StagePlan
from megagpt.tokenizer import Tokenizer

Precision = Literal["fp32", "bf16"]
Caches = dict[str, LayerCache]


@dataclass(frozen=True)
class InferenceModel:
    """A whole model in evaluation mode, and where it comes from."""

    chunk: GPTChunk
    source: ModelSource

    @property
    def spec(self) -> ModelSpec:
        """The model's shape."""
        return self.source.spec

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The one it was trained with; None: it was trained on ids without a tokenizer."""
        return self.source.tokenizer

    @property
    def folder(self) -> Path:
        """Its files."""
        return self.source.folder

    @property
    def device(self) -> torch.device:
        """Where tokens must lie."""
        return self.chunk.build.mesh.device

    @property
    def num_ids(self) -> int:
        """Ids below this exist: the vocabulary can be larger than the tokenizer's, and is padded beyond both."""
        return self.source.num_ids

    @torch.inference_mode()
    def logits(self, tokens: Tensor, first_position: int = 0, caches: Caches | None = None) -> Tensor:
        """tokens [B, S] int64 at positions `first_position` … to logits [B, S, vocab_size] in float32.

        With `caches` the tokens continue those already cached there, `first_position` of them.
        """
        positions = torch.arange(first_position, first_position + tokens.shape[1], device=tokens.device)
        return self.chunk.logits(tokens, positions.expand_as(tokens), caches).float()

    def make_caches(self, batch_size: int, num_positions: int) -> Caches:
        """Empty key and value caches, one for each layer, of this many positions each."""
        spec = self.spec
        shape = (batch_size, spec.num_heads, num_positions, spec.head_dim)
        options = {"dtype": self.chunk.build.mcore.params_dtype, "device": self.device}
        return {
            str(number): LayerCache(torch.empty(shape, **options), torch.empty(shape, **options))
            for number in range(spec.num_layers)
        }


def load_for_inference(
    path: str | Path | ModelSource, mesh: Mesh | None = None, precision: Precision = "fp32"
) -> InferenceModel:
    """The model of a source, or of a folder that `open_source` knows.

    `mesh` is a mesh of one rank; without one it is built here, and stays until `destroy_mesh()`. Raises CheckpointError
    where the model is missing or damaged, or holds another tokenizer than it says; DataError for a damaged tokenizer.
    """
    source = path if isinstance(path, ModelSource) else open_source(path)
    mesh = mesh or build_mesh(1, 1)
    assert mesh.tensor_size == mesh.pipeline_size == 1, (mesh.tensor_size, mesh.pipeline_size)
    spec = source.spec
    build = StageBuild(spec, mesh, make_mcore_config(spec, mesh, precision, sequence_parallel=False, virtual_stages=1))
    chunk = GPTChunk(build, StagePlan(0, 0, 0, spec.num_layers, has_embedding=True, has_head=True))
    with torch.no_grad():
        for name, parameter in chunk.named_parameters():
            value = source.read(name)
            if value.shape != parameter.shape:
                raise CheckpointError(
                    f"{name} in {source.folder} has shape {tuple(value.shape)}, its model needs "
                    f"{tuple(parameter.shape)}; use another checkpoint"
                )
            parameter.copy_(value)
    return InferenceModel(chunk.requires_grad_(False).eval(), source)
