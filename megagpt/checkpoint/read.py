"""Finding a checkpoint and reading its model in one process, whatever layout wrote it: for export and inference."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from megagpt.checkpoint.manifest import LATEST_NAME, MANIFEST_NAME, Manifest, check_file, model_file
from megagpt.errors import CheckpointError
from megagpt.model.names import local_shape, parameter_shapes


@dataclass(frozen=True)
class LoadedModel:
    """A whole model: parameters by global name, float32 on the CPU."""

    folder: Path
    manifest: Manifest
    parameters: dict[str, Tensor]


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint folder meant by a checkpoint folder, a run folder, or a run's `checkpoints` folder.

    The last two follow `latest`. Raises CheckpointError saying what was looked for.
    """
    path = Path(path)
    if (path / MANIFEST_NAME).is_file():
        return path
    for folder in (path / "checkpoints", path):
        latest = folder / LATEST_NAME
        if latest.is_file():
            found = folder / latest.read_text(encoding="utf-8").strip()
            if not (found / MANIFEST_NAME).is_file():
                raise CheckpointError(
                    f"{latest} names {found.name}, which has no {MANIFEST_NAME}; name a checkpoint folder"
                )
            return found
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a run folder or a checkpoint folder")
    raise CheckpointError(
        f"no checkpoint in {path}: looked for {MANIFEST_NAME}, checkpoints/{LATEST_NAME} and {LATEST_NAME}; "
        "give a run folder or a checkpoint folder"
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder. Raises CheckpointError where it is missing or damaged."""
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: {folder} is not a whole checkpoint")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not a checkpoint manifest ({error}); use another checkpoint") from None
    return Manifest.from_json(text, path)


def read_model(path: str | Path, verify: bool = True) -> LoadedModel:
    """The whole model of a checkpoint, its shards joined. `verify` checks file hashes. Raises CheckpointError."""
    folder = find_checkpoint(path)
    manifest = read_manifest(folder)
    spec, layout = manifest.spec, manifest.layout
    infos = parameter_shapes(spec)
    parts: dict[str, list[Tensor]] = {name: [] for name in infos}
    for pipeline_rank in range(layout.pipeline):
        for tensor_rank in range(layout.tensor):
            shard = read_shard(folder, manifest, tensor_rank, pipeline_rank, verify)
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
    return LoadedModel(folder, manifest, parameters)


def read_shard(
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
