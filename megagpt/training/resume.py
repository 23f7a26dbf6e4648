"""Continuing from a checkpoint that any layout wrote: each rank reads what it holds. Every rank calls it.

In: a prepared run and a new engine. Out: the engine filled, and the run as it is prepared for the checkpoint that was
whole: where one is found damaged as it is read, all ranks take the next.
"""

from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from megagpt.checkpoint.load import load_share
from megagpt.checkpoint.manifest import Manifest
from megagpt.errors import CheckpointError, DamagedCheckpointError
from megagpt.parallel.agree import on_every_rank
from megagpt.parallel.engine import Engine
from megagpt.parallel.mesh import Mesh
from megagpt.training.prepare import PreparedRun, without_checkpoint
from megagpt.training.resume_choice import PassedOver, describe_damage
from megagpt.training.snapshot import checkpoint_layout


def resume_run(prepared: PreparedRun, engine: Engine, console: Console) -> PreparedRun:
    """Fill a new engine from the checkpoint to continue from, if there is one. Gathers over all ranks.

    Returns the run, prepared for that checkpoint. Raises CheckpointError on every rank where none of them is whole, or,
    with checkpoint.resume = "latest", where that one is not.
    """
    mesh = engine.mesh
    prepared = _agreed(prepared, mesh, console)
    while prepared.resume_from:
        folder, manifest = prepared.resume_from
        try:
            load_engine(engine, folder, manifest)
            break
        except DamagedCheckpointError as error:
            if prepared.plan.config.checkpoint.resume == "latest":
                raise
            damaged = (*prepared.damaged, PassedOver(folder, str(error)))
        prepared = _without(prepared, damaged, mesh, console)
    return prepared


def load_engine(engine: Engine, folder: Path, manifest: Manifest) -> None:
    """Fill an engine's weights and optimizer state. Gathers over all ranks.

    Raises on every rank the first rank's CheckpointError where a file is missing or damaged; what the engine holds then
    is of no use.
    """
    mesh = engine.mesh
    pieces, rank, num_ranks = engine.held_pieces(), mesh.rank, mesh.world_size
    on_every_rank(lambda: load_share(folder, manifest, pieces, mesh.tensor_size, rank, num_ranks), mesh)
    assert manifest.optimizer is not None, "check_belongs refuses format 1"
    engine.continue_from(manifest.optimizer)


def describe_resume(prepared: PreparedRun, console: Console) -> None:
    """Says which checkpoints are damaged, and which one the run continues from."""
    for line in describe_damage(prepared.damaged):
        console.print(line, style="bold red", highlight=False, markup=False, soft_wrap=True)
    if prepared.resume_from:
        folder, manifest = prepared.resume_from
        same_layout = manifest.layout == checkpoint_layout(prepared.plan)
        console.print(
            f"continuing from {folder} (step {manifest.step:,} of {prepared.plan.num_steps:,}"
            f"{'' if same_layout else f'; saved on {manifest.layout.describe()}'})",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
    if prepared.changed:
        changes = "; ".join(difference.describe() for difference in prepared.changed)
        console.print(f"changed since the checkpoint: {changes}", highlight=False, markup=False, soft_wrap=True)


def _agreed(prepared: PreparedRun, mesh: Mesh, console: Console) -> PreparedRun:
    """The same checkpoint on every rank: what one rank found damaged, none uses. Gathers over all ranks."""
    found = _gather_choices(prepared, mesh)
    if all(choice == found[0] for choice in found):
        return prepared
    damaged = {passed.folder: passed for _, rank_damaged in found[::-1] for passed in rank_damaged}
    prepared = _without(prepared, tuple(damaged.values()), mesh, console)
    names = [name for name, _ in _gather_choices(prepared, mesh)]
    for rank, name in enumerate(names):
        if name != names[0]:
            raise CheckpointError(
                f"rank 0 would continue from {names[0] or 'no checkpoint'} in {prepared.checkpoints}, rank {rank} from "
                f"{name or 'no checkpoint'}; run.folder must be on a file system that all machines share"
            )
    return prepared


def _gather_choices(prepared: PreparedRun, mesh: Mesh) -> list[tuple[str | None, tuple[PassedOver, ...]]]:
    mine = prepared.resume_from[0].name if prepared.resume_from else None, prepared.damaged
    gathered: list[tuple[str | None, tuple[PassedOver, ...]]] = [mine] * mesh.world_size
    dist.all_gather_object(gathered, mine)
    return gathered


def _without(prepared: PreparedRun, damaged: tuple[PassedOver, ...], mesh: Mesh, console: Console) -> PreparedRun:
    prepared = on_every_rank(lambda: without_checkpoint(prepared, damaged), mesh)
    describe_resume(prepared, console)
    return prepared
