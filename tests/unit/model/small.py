"""A small model in one process for tests: its shape, its weights all random, its batches."""

import torch
from torch import Tensor

from megagpt.data.batch import Batch
from megagpt.model.context import StageBuild
from megagpt.model.gpt import GPTChunk
from megagpt.model.names import parameter_shapes
from megagpt.model.spec import ModelSpec
from megagpt.parallel.mcore_config import make_mcore_config
from megagpt.parallel.mesh import Mesh
from megagpt.plan import StagePlan

DEFAULTS = {
    "name": "small",
    "num_layers": 3,
    "num_heads": 4,
    "hidden_size": 32,
    "ffn_hidden_size": 80,
    "sequence_length": 24,
    "vocab_size": 100,
    "padded_vocab_size": 128,
    "activation": "gelu_tanh",
    "layer_norm_epsilon": 1e-5,
    "hidden_dropout": 0.0,
    "attention_dropout": 0.0,
    "init_std": 0.02,
}


def small_spec(**values) -> ModelSpec:
    return ModelSpec(**(DEFAULTS | values))


def random_parameters(spec: ModelSpec, seed: int = 0) -> dict[str, Tensor]:
    """Every parameter N(0, 0.2), norms around 1, so that no bias is zero and no norm does nothing."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(info.shape, generator=generator) * 0.2 + name.endswith("norm.weight")).requires_grad_()
        for name, info in parameter_shapes(spec).items()
    }


def whole_chunk(
    spec: ModelSpec, mesh: Mesh, parameters: dict[str, Tensor], recompute: str = "none", compiles: bool = False
) -> GPTChunk:
    """The whole model as one chunk in fp32 with these weights, in training mode."""
    mcore = make_mcore_config(spec, mesh, "fp32", sequence_parallel=False, virtual_stages=1)
    build = StageBuild(spec, mesh, mcore, recompute, compiles=compiles)
    chunk = GPTChunk(build, StagePlan(0, 0, 0, spec.num_layers, has_embedding=True, has_head=True))
    with torch.no_grad():
        for name, parameter in chunk.named_parameters():
            parameter.copy_(parameters[name])
    return chunk.train()


def random_batch(spec: ModelSpec, seed: int, size: int = 3, length: int | None = None) -> Batch:
    """Random tokens at positions 0 …, a fifth of whose labels do not count."""
    length = length or spec.sequence_length
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, spec.vocab_size, (size, length + 1), generator=generator)
    mask = (torch.rand(size, length, generator=generator) > 0.2).float()
    positions = torch.arange(length).expand(size, length).contiguous()
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask, positions, None)
