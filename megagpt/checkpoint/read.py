"""Finding a checkpoint and reading its model in one process, whatever layout wrote it: for export and inference."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from megagpt.checkpoint import version_1
from megagpt.checkpoint.commit import checkpoint_folder, read_latest
from megagpt.checkpoint.file_record import reading
from megagpt.checkpoint.manifest import LATEST_NAME, MANIFEST_NAME, Manifest
from megagpt.checkpoint.pieces import MASTER
from megagpt.checkpoint.state import StateReader
from megagpt.errors import CheckpointError, DamagedCheckpointError
from megagpt.model.names import parameter_shapes

_COMPUTED_IN = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
        name = read_latest(folder)
        if name is not None:
            found = checkpoint_folder(folder, name)
            if not (found / MANIFEST_NAME).is_file():
                raise DamagedCheckpointError(
                    f"{folder / LATEST_NAME} names {name}, which has no {MANIFEST_NAME}; name a checkpoint folder"
                )
            return found
    if not path.exists():
        raise CheckpointError(f"{path} does not exist; give a run folder or a checkpoint folder")
    raise CheckpointError(
        f"no checkpoint in {path}: looked for {MANIFEST_NAME}, checkpoints/{LATEST_NAME} and {LATEST_NAME}; "
        "give a run folder or a checkpoint folder"
    )


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The checkpoint that `latest` names, or None where a run has none yet. Raises CheckpointError."""
    return find_checkpoint(checkpoints) if (checkpoints / LATEST_NAME).is_file() else None


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a checkpoint folder. Raises DamagedCheckpointError where it is missing or damaged."""
    path = folder / MANIFEST_NAME
    try:
        with reading(path):
            if not path.is_file():
                raise DamagedCheckpointError(f"{path} is missing: {folder} is not a whole checkpoint")
            text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DamagedCheckpointError(f"{path} is not a checkpoint manifest ({error}); use another checkpoint") from None
    return Manifest.from_json(text, path)


def read_model(path: str | Path, verify: bool = True) -> LoadedModel:
    """The whole model of a checkpoint, whatever layout wrote it. `verify` checks file hashes. Raises CheckpointError.

    Weights are in float32, with the values that the run computed with: a 16-bit run's are rounded to its precision.
    """
    folder = find_checkpoint(path)
    manifest = read_manifest(folder)
    if manifest.format_version == 1:
        return LoadedModel(folder, manifest, version_1.read_parameters(folder, manifest, verify))
    reader = StateReader(folder, manifest)
    dtype = _COMPUTED_IN[manifest.precision]
    parameters = reader.whole(parameter_shapes(manifest.spec), MASTER, verify)
    for value in parameters.values():
        value.copy_(value.to(dtype))
    return LoadedModel(folder, manifest, parameters)
