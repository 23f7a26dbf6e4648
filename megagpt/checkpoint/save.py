"""Writes a checkpoint whole or not at all: temporary folder, fsync, manifest, rename, `latest` moved last.

A crash at any moment leaves `latest` at a whole checkpoint. Every rank calls `save_checkpoint`; each writes the pieces
that it owns, rank 0 the rest.
"""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from megagpt.checkpoint.commit import WRITING, commit_folder, start_folder
from megagpt.checkpoint.index import INDEX_NAME, Index, Place, check_index, file_of, tensor_key
from megagpt.checkpoint.manifest import (
    CONFIG_NAME,
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    file_record,
    step_folder,
    write_durably,
)
from megagpt.checkpoint.pieces import KINDS, Piece
from megagpt.checkpoint.retention import removable_steps, remove_steps, saved_steps
from megagpt.errors import CheckpointError
from megagpt.model.names import parameter_shapes
from megagpt.parallel.mesh import Mesh

_SPARE_BYTES = 16 << 20  # manifest, config, tokenizer and the file system's own needs


@dataclass(frozen=True)
class CheckpointContents:
    """What one rank has to save. The manifest's `files` are filled in by the save."""

    manifest: Manifest
    config_toml: str
    tokenizer_path: Path | None
    pieces: list[Piece]  # that this rank owns: over all ranks each element once


def save_checkpoint(
    checkpoints: Path, contents: CheckpointContents, mesh: Mesh, keep: int, keep_every_steps: int = 0
) -> Path:
    """Save into `checkpoints`/step-…, move `latest` there, and remove old ones. Every rank calls it.

    The `keep` newest stay, and those of multiples of `keep_every_steps` (0: none).
    Returns the checkpoint's folder. Raises CheckpointError on every rank if any rank could not write; earlier
    checkpoints and `latest` are then as before.
    """
    target = checkpoints / step_folder(contents.manifest.step)
    temporary = target.with_name(target.name + WRITING)
    _run_on_rank_0(mesh, lambda: start_folder(target), temporary)
    try:
        _check_space(checkpoints, contents, mesh)
        records = _write_rank_files(temporary, contents, mesh)
        index = _gather_index(contents, mesh)
        manifest = replace(contents.manifest, files=records)
        _run_on_rank_0(mesh, lambda: _commit(temporary, target, contents, manifest, index), target)
        _run_on_rank_0(mesh, lambda: _prune(checkpoints, manifest.step, keep, keep_every_steps), checkpoints)
    except CheckpointError:
        if mesh.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _check_space(checkpoints: Path, contents: CheckpointContents, mesh: Mesh) -> None:
    """Refuse before writing what cannot fit. Reduces over all ranks."""
    tensors = (piece.tensor(kind) for piece in contents.pieces for kind in KINDS)
    needed = torch.tensor([sum(tensor.nbytes for tensor in tensors)], dtype=torch.int64, device=mesh.device)
    dist.all_reduce(needed)
    needed_bytes, free_bytes = int(needed) + _SPARE_BYTES, shutil.disk_usage(checkpoints).free
    all_fit = torch.tensor([int(free_bytes >= needed_bytes)], device=mesh.device)
    dist.all_reduce(all_fit, op=dist.ReduceOp.MIN)
    if not int(all_fit):
        raise CheckpointError(
            f"a checkpoint needs {needed_bytes / 2**20:,.0f} MiB and {checkpoints} has {free_bytes / 2**20:,.0f} MiB "
            "free; free space, or move run.folder; earlier checkpoints are untouched"
        )


def _write_rank_files(folder: Path, contents: CheckpointContents, mesh: Mesh) -> dict[str, FileRecord]:
    """Write this rank's files; gathers the records of all ranks' files, or raises on all if any rank failed."""
    records: dict[str, FileRecord] = {}
    error = None
    try:
        files: dict[str, dict[str, Tensor]] = {}
        for piece in contents.pieces:
            for kind in KINDS:
                held = files.setdefault(file_of(mesh.rank, kind), {})
                held[tensor_key(piece.name, kind)] = piece.tensor(kind).cpu()
        for name, tensors in files.items():
            save_file(tensors, folder / name)
            records[name] = _sync_and_record(folder / name)
    except (OSError, RuntimeError, SafetensorError) as failure:  # a full disk can be any of them
        error = f"rank {mesh.rank} could not write {folder}: {failure}"
    gathered: list[Any] = [None] * mesh.world_size
    dist.all_gather_object(gathered, (error, records))
    _raise_first([failure for failure, _ in gathered])
    return {name: record for _, rank_records in gathered for name, record in rank_records.items()}


def _gather_index(contents: CheckpointContents, mesh: Mesh) -> Index:
    """Which rank wrote what. Gathers over all ranks to rank 0; empty on the others."""
    mine = [(piece.name, piece.tensor_slice, piece.start, piece.stop) for piece in contents.pieces]
    gathered: list[Any] | None = [None] * mesh.world_size if mesh.rank == 0 else None
    dist.gather_object(mine, gathered, dst=0)
    pieces: dict[str, list[Place]] = {}
    for rank, held in enumerate(gathered or ()):
        for name, *place in held:
            pieces.setdefault(name, []).append(Place(rank, *place))
    return Index(contents.manifest.layout.tensor, pieces)


def _sync_and_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_record(path)


def _commit(
    temporary: Path,
    target: Path,
    contents: CheckpointContents,
    manifest: Manifest,
    index: Index,
) -> None:
    """Rank 0: the small files, the manifest last; then the rename that makes the checkpoint exist, then `latest`."""
    check_index(index, parameter_shapes(manifest.spec), temporary)  # what we made ourselves
    files = dict(manifest.files)
    (temporary / INDEX_NAME).write_text(index.to_json(), encoding="utf-8")
    files[INDEX_NAME] = _sync_and_record(temporary / INDEX_NAME)
    (temporary / CONFIG_NAME).write_text(contents.config_toml, encoding="utf-8")
    files[CONFIG_NAME] = _sync_and_record(temporary / CONFIG_NAME)
    if contents.tokenizer_path is not None:
        name = manifest.tokenizer_file
        assert name is not None
        shutil.copyfile(contents.tokenizer_path, temporary / name)
        files[name] = _sync_and_record(temporary / name)
    write_durably(temporary / MANIFEST_NAME, replace(manifest, files=dict(sorted(files.items()))).to_json())
    commit_folder(temporary, target)


def _prune(checkpoints: Path, written: int, keep: int, keep_every_steps: int) -> None:
    """Remove old checkpoints, never the one just written."""
    remove_steps(checkpoints, removable_steps(saved_steps(checkpoints), keep, keep_every_steps, written))


def _run_on_rank_0(mesh: Mesh, action: Any, where: Path) -> None:
    """Run something on rank 0 alone and tell every rank how it went. Broadcasts from rank 0."""
    outcome: list[str | None] = [None]
    if mesh.rank == 0:
        try:
            action()
        except (OSError, CheckpointError) as failure:
            outcome = [f"rank 0 could not write {where}: {failure}"]
    dist.broadcast_object_list(outcome, src=0)
    _raise_first(outcome)


def _raise_first(errors: list[str | None]) -> None:
    found = [error for error in errors if error is not None]
    if found:
        raise CheckpointError(f"{found[0]}; free space or give rights to run.folder; earlier checkpoints are untouched")
