"""Initial weights, each a pure function of (seed, global name): the same model on every layout.

N(0, init_std) for matrices and tables, with residual projections divided by sqrt(2 * num_layers) (Radford et al. 2019,
§2.3; Brown et al. 2020); ones and zeros for norms; zeros for biases.
"""

import hashlib
import math

import torch
from torch import Tensor

from megagpt.model.names import ParameterInfo, parameter_shapes
from megagpt.model.spec import ModelSpec


def initial_parameter(spec: ModelSpec, seed: int, name: str, info: ParameterInfo) -> Tensor:
    """The whole parameter `name` in float32 on the CPU, whose generator is the same on every machine."""
    if name.endswith("norm.weight"):
        return torch.ones(info.shape)
    if name.endswith(".bias"):
        return torch.zeros(info.shape)
    std = spec.init_std / math.sqrt(2 * spec.num_layers) if info.residual else spec.init_std
    digest = hashlib.sha256(f"init/{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(info.shape).normal_(0.0, std, generator=generator)


def local_slice(parameter: Tensor, info: ParameterInfo, tensor_rank: int, tensor_size: int) -> Tensor:
    """The part of a whole parameter that one tensor rank holds."""
    if info.split_dim is None:
        return parameter
    return parameter.chunk(tensor_size, dim=info.split_dim)[tensor_rank]


@torch.no_grad()
def initialise(module: torch.nn.Module, spec: ModelSpec, seed: int, tensor_rank: int, tensor_size: int) -> None:
    """Fill every parameter of a chunk (whose parameters go by their global names) in place; no communication."""
    infos = parameter_shapes(spec)
    for name, parameter in module.named_parameters():
        whole = initial_parameter(spec, seed, name, infos[name])
        parameter.copy_(local_slice(whole, infos[name], tensor_rank, tensor_size))
