"""The model of a checkpoint of format 1: a file of weights for each tensor and pipeline rank, by global name.

Its optimizer state was DeepSpeed's own and bound to the layout: no run continues from it.
"""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megagpt.checkpoint.file_record import check_file
from megagpt.checkpoint.manifest import Manifest
from megagpt.errors import CheckpointError
from megagpt.model.names import local_shape, parameter_shapes


def model_file(tensor_rank: int, pipeline_rank: int) -> str:
    """Name of the weights of one tensor and pipeline rank."""
    return f"model-t{tensor_rank:02d}-p{pipeline_rank:02d}.safetensors"


def read_parameters(folder: Path, manifest: Manifest, verify: bool) -> dict[str, Tensor]:
    """Every parameter by its global name, float32 on the CPU, its shards joined. Raises CheckpointError."""
    spec, layout = manifest.spec, manifest.layout
    infos = parameter_shapes(spec)
    parts: dict[str, list[Tensor]] = {name: [] for name in infos}
    for pipeline_rank in range(layout.pipeline):
        for tensor_rank in range(layout.tensor):
            shard = _read_shard(folder, manifest, tensor_rank, pipeline_rank, verify)
            for name, tensor in shard.items():
                if name not in infos:
                    raise CheckpointError(
                        f"{folder} holds an unknown parameter {name}; was it written by a newer megagpt?"
                    )
                _check_shape(
                    folder,
                    model_file(tensor_rank, pipeline_rank),
                    name,
                    tensor,
                    local_shape(infos[name], layout.tensor),
                )
                if len(parts[name]) == tensor_rank:  # the tied table is on both ends of a pipeline: keep the first
                    parts[name].append(tensor.float())
    parameters = {}
    for name, info in infos.items():
        if len(parts[name]) != layout.tensor:
            raise CheckpointError(
                f"{folder} holds {len(parts[name])} of {layout.tensor} parts of {name}; it is not whole"
            )
        parameters[name] = parts[name][0] if info.split_dim is None else torch.cat(parts[name], dim=info.split_dim)
    return parameters


def _read_shard(
    folder: Path, manifest: Manifest, tensor_rank: int, pipeline_rank: int, verify: bool
) -> dict[str, Tensor]:
    """The weights of one tensor and pipeline rank, by global name, in the dtype they were trained in."""
    name = model_file(tensor_rank, pipeline_rank)
    if name not in manifest.files:
        raise CheckpointError(f"{folder} holds no {name}; it is not whole")
    check_file(folder, name, manifest.files[name], verify)
    try:
        return load_file(folder / name)
    except SafetensorError as error:
        raise CheckpointError(f"{folder / name} is damaged: {error}; use another checkpoint") from None


def _check_shape(folder: Path, file: str, name: str, tensor: Tensor, wanted: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != wanted:
        raise CheckpointError(
            f"{name} in {folder / file} has shape {tuple(tensor.shape)}, its model needs {wanted}; "
            "use another checkpoint"
        )
