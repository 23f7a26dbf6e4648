"""Writes a checkpoint whole or not at all: temporary folder, fsync, manifest, rename, `latest` moved last.

A crash at any moment leaves `latest` at a whole checkpoint. Every rank calls `save_checkpoint`; each writes the pieces
that it owns, rank 0 the rest.
"""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from megagpt.checkpoint.commit import WRITING, commit_folder, start_folder
from megagpt.checkpoint.file_record import FileRecord, file_record
from megagpt.checkpoint.index import INDEX_NAME, Index, Place, check_index, file_of, tensor_key
from megagpt.checkpoint.manifest import CONFIG_NAME, MANIFEST_NAME, Manifest, step_folder, write_durably
from megagpt.checkpoint.pieces import KINDS, Piece
from megagpt.checkpoint.retention import removable_steps, remove_steps, saved_steps
from megagpt.checkpoint.tensor_file import write_tensors
from megagpt.errors import CheckpointError
from megagpt.model.names import parameter_shapes
from megagpt.parallel.mesh import Mesh

Gathered = TypeVar("Gathered")

_SPARE_BYTES = 16 << 20  # manifest, config, tokenizer and the file system's own needs


@dataclass(frozen=True)
class CheckpointContents:
    """What one rank has to save. The manifest's `files` are filled in by the save."""

    manifest: Manifest
    config_toml: str
    tokenizer_path: Path | None
    pieces: list[Piece]  # that this rank owns: over all ranks each element once


def save_checkpoint(
    checkpoints: Path,
    contents: CheckpointContents,
    mesh: Mesh,
    keep: int,
    keep_every_steps: int = 0,
    group: ProcessGroup | None = None,
    trouble: str | None = None,
) -> Path:
    """Save into `checkpoints`/step-…, move `latest` there, and remove old ones. Every rank calls it.

    The `keep` newest stay, and those of multiples of `keep_every_steps` (0: none). Ranks agree over `group` (None: the
    default one), which holds all of them. `trouble`: why this rank's contents are of no use; the save then fails.
    Returns the checkpoint's folder. Raises CheckpointError on every rank if any rank could not write; earlier
    checkpoints and `latest` are then as before.
    """
    ranks = _Ranks(mesh.rank, mesh.world_size, group)
    target = checkpoints / step_folder(contents.manifest.step)
    temporary = target.with_name(target.name + WRITING)
    ranks.run_on_first(lambda: start_folder(target), temporary)
    try:
        _check_space(checkpoints, contents, trouble, ranks)
        written = _write_rank_files(temporary, contents, ranks)
        ranks.run_on_first(lambda: _commit(temporary, target, contents, written), target)
        step = contents.manifest.step
        ranks.run_on_first(lambda: _prune(checkpoints, step, keep, keep_every_steps), checkpoints)
    except CheckpointError:
        if mesh.rank == 0:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


class _Ranks(NamedTuple):
    """How the ranks that save tell each other what they did."""

    rank: int
    world_size: int
    group: ProcessGroup | None

    def gather(self, mine: Gathered) -> list[Gathered]:
        """What every rank gave, in the order of ranks. Gathers over the group."""
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, mine, group=self.group)
        return gathered

    def run_on_first(self, action: Callable[[], object], where: Path) -> None:
        """Run something on rank 0 alone and tell every rank how it went. Broadcasts from rank 0 over the group."""
        outcome: list[str | None] = [None]
        if self.rank == 0:
            try:
                action()
            except (OSError, CheckpointError) as failure:
                outcome = [f"rank 0 could not write {where}: {failure}"]
        dist.broadcast_object_list(outcome, src=0, group=self.group)
        _raise_first(outcome)


class _Written(NamedTuple):
    """What the ranks have written."""

    files: dict[str, FileRecord]
    places: Index


def _check_space(checkpoints: Path, contents: CheckpointContents, trouble: str | None, ranks: _Ranks) -> None:
    """Refuse before writing what cannot fit, or what a rank does not have."""
    needed = sum(piece.tensor(kind).nbytes for piece in contents.pieces for kind in KINDS)
    free = 0
    try:
        free = shutil.disk_usage(checkpoints).free
    except OSError as failure:
        trouble = trouble or f"rank {ranks.rank} finds no {checkpoints}: {failure}"
    gathered = ranks.gather((trouble, needed, free))
    _raise_first([failure for failure, _, _ in gathered])
    needed_bytes = sum(rank_needed for _, rank_needed, _ in gathered) + _SPARE_BYTES
    free_bytes = min(free for _, _, free in gathered)
    if free_bytes < needed_bytes:
        raise CheckpointError(
            f"a checkpoint needs {needed_bytes / 2**20:,.0f} MiB and {checkpoints} has {free_bytes / 2**20:,.0f} MiB "
            "free; free space, or move run.folder; earlier checkpoints are untouched"
        )


def _write_rank_files(folder: Path, contents: CheckpointContents, ranks: _Ranks) -> _Written:
    """Write this rank's files; gathers what all ranks wrote, or raises on all if any rank failed."""
    files: dict[str, dict[str, Tensor]] = {}
    for piece in contents.pieces:
        for kind in KINDS:
            files.setdefault(file_of(ranks.rank, kind), {})[tensor_key(piece.name, kind)] = piece.tensor(kind)
    records: dict[str, FileRecord] = {}
    error = None
    with ThreadPoolExecutor(max_workers=len(files) or 1) as threads:  # one file fills no disk
        jobs = {name: threads.submit(write_tensors, folder / name, tensors) for name, tensors in files.items()}
    for name, job in jobs.items():
        try:
            records[name] = job.result()
        except (OSError, RuntimeError, MemoryError) as failure:
            error = error or f"rank {ranks.rank} could not write {folder / name}: {failure}"
    mine = [(piece.name, piece.tensor_slice, piece.start, piece.stop) for piece in contents.pieces]
    gathered = ranks.gather((error, records, mine))
    _raise_first([failure for failure, _, _ in gathered])
    pieces: dict[str, list[Place]] = {}
    for rank, (_, _, held) in enumerate(gathered):
        for name, *place in held:
            pieces.setdefault(name, []).append(Place(rank, *place))
    all_records = {name: record for _, rank_records, _ in gathered for name, record in rank_records.items()}
    return _Written(all_records, Index(contents.manifest.layout.tensor, pieces))


def _sync_and_record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return file_record(path)


def _commit(temporary: Path, target: Path, contents: CheckpointContents, written: _Written) -> None:
    """Rank 0: the small files, the manifest last; then the rename that makes the checkpoint exist, then `latest`."""
    manifest = contents.manifest
    check_index(written.places, parameter_shapes(manifest.spec), temporary)  # what we made ourselves
    files = dict(written.files)
    (temporary / INDEX_NAME).write_text(written.places.to_json(), encoding="utf-8")
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


def _raise_first(errors: list[str | None]) -> None:
    found = [error for error in errors if error is not None]
    if found:
        raise CheckpointError(f"{found[0]}; free space or give rights to run.folder; earlier checkpoints are untouched")
