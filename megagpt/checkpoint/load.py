"""Coming back from a checkpoint: is there one, does it belong to this run, and each rank's part of it.

The checks against the run need no process group, so that they happen before one starts.
"""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from megagpt.checkpoint.manifest import LATEST_NAME, CheckpointLayout, Manifest, check_file, optimizer_file
from megagpt.checkpoint.read import find_checkpoint, read_manifest, read_shard
from megagpt.errors import CheckpointError
from megagpt.model.spec import ModelSpec


class RunIdentity(NamedTuple):
    """What must be the same for a run to continue from a checkpoint."""

    spec: ModelSpec
    layout: CheckpointLayout
    precision: str
    seed: int
    tokenizer_fingerprint: str | None


class RankState(NamedTuple):
    """One rank's part of a checkpoint."""

    model: dict[str, Tensor]
    optimizer: dict[str, Any]


def latest_checkpoint(checkpoints: Path) -> Path | None:
    """The newest whole checkpoint of a run, or None where it has none yet."""
    return find_checkpoint(checkpoints) if (checkpoints / LATEST_NAME).is_file() else None


def check_belongs(folder: Path, run: RunIdentity) -> Manifest:
    """The manifest of a checkpoint that this run can continue from. Raises CheckpointError listing every difference."""
    manifest = read_manifest(folder)
    problems = [
        *_differences("model.", manifest.spec, run.spec),
        *_differences("parallel.", manifest.layout, run.layout),
    ]
    for name in ("precision", "seed", "tokenizer_fingerprint"):
        saved, now = getattr(manifest, name), getattr(run, name)
        if saved != now:
            problems.append(f"{name} is {saved} there and {now} in this run")
    if problems:
        raise CheckpointError(
            f"the run cannot continue from {folder}: " + "; ".join(problems) + ". "
            "Restore these values, or choose another run.folder to start anew"
        )
    return manifest


def load_rank(folder: Path, manifest: Manifest, rank: int, tensor_rank: int, pipeline_rank: int) -> RankState:
    """One rank's weights and optimizer state, hashes verified. Raises CheckpointError naming a damaged file."""
    name = optimizer_file(rank)
    if name not in manifest.files:
        raise CheckpointError(f"{folder} holds no {name}; it is not whole")
    model = read_shard(folder, manifest, tensor_rank, pipeline_rank, verify=True)
    check_file(folder, name, manifest.files[name], verify_hash=True)
    return RankState(model, torch.load(folder / name, map_location="cpu", weights_only=True))


def _differences(prefix: str, saved: Any, now: Any) -> list[str]:
    return [
        f"{prefix}{name} is {value} there and {getattr(now, name)} in this run"
        for name, value in vars(saved).items()
        if value != getattr(now, name)
    ]
