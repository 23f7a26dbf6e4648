"""A trained model ready to predict. In: a checkpoint of any layout. Out: the whole model in this one process.

Knows nothing of sampling or of text; `generate.py` asks it for the logits of the next token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from megagpt.checkpoint.manifest import Manifest
from megagpt.checkpoint.read import LoadedModel, read_model
from megagpt.errors import CheckpointError
from megagpt.model.context import LayerCache, StageBuild
from megagpt.model.gpt import GPTChunk
from megagpt.model.spec import ModelSpec
from megagpt.parallel.mcore_config import make_mcore_config
from megagpt.parallel.mesh import Mesh, build_mesh
from megagpt.plan import StagePlan
from megagpt.tokenizer import Tokenizer, load_tokenizer

Precision = Literal["fp32", "bf16"]
Caches = dict[str, LayerCache]


@dataclass(frozen=True)
class InferenceModel:
    """A whole model in evaluation mode, with the tokenizer it was trained with."""

    chunk: GPTChunk
    spec: ModelSpec
    manifest: Manifest
    tokenizer: Tokenizer | None  # None: the run was trained on ids without a tokenizer
    folder: Path  # the checkpoint

    @property
    def device(self) -> torch.device:
        """Where tokens must lie."""
        return self.chunk.build.mesh.device

    @property
    def num_ids(self) -> int:
        """Ids below this exist: the vocabulary can be larger than the tokenizer's, and is padded beyond both."""
        if self.tokenizer is None:
            return self.spec.vocab_size
        return min(self.spec.vocab_size, self.tokenizer.vocab_size)

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


def load_for_inference(path: str | Path, mesh: Mesh | None = None, precision: Precision = "fp32") -> InferenceModel:
    """The model of a checkpoint folder, or of the latest checkpoint of a run folder.

    `mesh` is a mesh of one rank; without one it is built here, and stays until `destroy_mesh()`. Raises CheckpointError
    where the checkpoint is missing or damaged, or holds another tokenizer than it says; DataError for a damaged
    tokenizer.
    """
    loaded = read_model(path)
    tokenizer = load_own_tokenizer(loaded.folder, loaded.manifest)
    return make_inference_model(loaded, tokenizer, mesh or build_mesh(1, 1), precision)


def make_inference_model(
    loaded: LoadedModel, tokenizer: Tokenizer | None, mesh: Mesh, precision: Precision
) -> InferenceModel:
    """A model already read, ready to predict. Raises CheckpointError where its parameters are not the model's."""
    chunk = _build_chunk(loaded, mesh, precision)
    return InferenceModel(chunk, loaded.manifest.spec, loaded.manifest, tokenizer, loaded.folder)


def load_own_tokenizer(folder: Path, manifest: Manifest) -> Tokenizer | None:
    """The copy of the tokenizer in a checkpoint folder, None where the run had none.

    Raises CheckpointError where it is missing or another one, DataError where it is damaged.
    """
    if manifest.tokenizer_file is None:
        return None
    file = folder / manifest.tokenizer_file
    if not file.is_file():
        raise CheckpointError(f"{file} is missing; the checkpoint is not whole, use another one")
    tokenizer = load_tokenizer(file, manifest.tokenizer_kind)
    if tokenizer.fingerprint != manifest.tokenizer_fingerprint:
        raise CheckpointError(
            f"{file} is not the tokenizer that the model was trained with: its fingerprint is {tokenizer.fingerprint}, "
            f"the manifest says {manifest.tokenizer_fingerprint}; put the run's tokenizer file there"
        )
    return tokenizer


def _build_chunk(loaded: LoadedModel, mesh: Mesh, precision: Precision) -> GPTChunk:
    """The whole decoder as one chunk in evaluation mode, weights copied by global name. Raises CheckpointError."""
    assert mesh.tensor_size == mesh.pipeline_size == 1, (mesh.tensor_size, mesh.pipeline_size)
    spec = loaded.manifest.spec
    build = StageBuild(spec, mesh, make_mcore_config(spec, mesh, precision, sequence_parallel=False, virtual_stages=1))
    chunk = GPTChunk(build, StagePlan(0, 0, 0, spec.num_layers, has_embedding=True, has_head=True))
    wanted = dict(chunk.named_parameters())
    missing, unknown = sorted(set(wanted) - set(loaded.parameters)), sorted(set(loaded.parameters) - set(wanted))
    if missing or unknown:
        raise CheckpointError(
            f"{loaded.folder} does not hold the parameters of its model: missing {missing}, unknown {unknown}; "
            "use another checkpoint"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(loaded.parameters[name])
    return chunk.requires_grad_(False).eval()
