"""Going back before a loss spike: to a checkpoint from before it, and on with samples from after it.

In: a run between two steps, and what its policies know of the spike. Out: the engine and all records as they were at
that checkpoint, whose manifest says which samples are left out: a run that is resumed from there reads the same.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist
from rich.console import Console

from megagpt.checkpoint.fault_history import FaultHistory
from megagpt.checkpoint.manifest import LATEST_NAME, MANIFEST_NAME, Manifest, step_folder, write_durably
from megagpt.checkpoint.retention import remove_steps, saved_steps
from megagpt.data.sample_skips import after_skips, go_on_at
from megagpt.errors import DamagedCheckpointError, TrainingError
from megagpt.parallel.agree import on_every_rank
from megagpt.parallel.engine import Engine
from megagpt.training.policies import Policies
from megagpt.training.prepare import PreparedRun, check_checkpoint
from megagpt.training.recorder import Recorder
from megagpt.training.resume import load_engine
from megagpt.training.spikes import loss_band


def rewind(
    prepared: PreparedRun, engine: Engine, policies: Policies, recorder: Recorder, console: Console, done: int
) -> int:
    """Go back from after `done` steps; returns the steps done then. Every rank calls it; gathers over all ranks.

    The checkpoint is the newest whole one from at least faults.rewind_steps before the spike; newer ones, of steps that
    are undone, are removed. Raises TrainingError where there is none, or the run has gone back too often.
    """
    faults, spiked = prepared.plan.config.faults, policies.history
    assert faults.spike_factor is not None
    band = loss_band(spiked.losses)
    first_spike = done - spiked.spiking_steps + 1
    what = (
        f"the loss of steps {first_spike} to {done} is above {band.limit(faults.spike_factor):.4f}, that is the median "
        f"{band.median:.4f} of the losses before and {faults.spike_factor:g} deviations of {band.deviation:.4f}"
    )
    if spiked.num_rewinds >= faults.most_rewinds:
        raise TrainingError(
            f"{what}; the run has gone back as often as it may (faults.most_rewinds = {faults.most_rewinds}), and "
            "training stopped. Lower train.lr, look at the data, or raise that limit"
        )
    folder, manifest = _load(prepared, engine, first_spike - 1 - faults.rewind_steps, what, console)
    history = _history_from(prepared, manifest, spiked, done + faults.skip_steps)
    on_every_rank(lambda: _undo(folder, manifest, history) if engine.mesh.rank == 0 else None, engine.mesh)
    recorder.rewind(manifest.step)
    policies.history = history
    first, last = (
        after_skips(prepared.plan.step_batch(manifest.step), skips).first_sample
        for skips in (spiked.skips, history.skips)
    )
    console.print(
        f"[bold red]loss spike:[/bold red] {what}; back to {folder.name}, rewind {history.num_rewinds} of at most "
        f"{faults.most_rewinds}. Samples {first:,} to {last - 1:,} are read by no step any more",
        highlight=False,
        soft_wrap=True,
    )
    return manifest.step


def _load(
    prepared: PreparedRun, engine: Engine, newest_step: int, what: str, console: Console
) -> tuple[Path, Manifest]:
    """Fill the engine from the newest checkpoint of at most `newest_step` steps that is whole."""
    mesh = engine.mesh
    steps: list[list[int]] = [on_every_rank(lambda: saved_steps(prepared.checkpoints) if mesh.rank == 0 else [], mesh)]
    dist.broadcast_object_list(steps, src=0)
    for step in reversed([step for step in steps[0] if step <= newest_step]):
        folder = prepared.checkpoints / step_folder(step)
        try:
            manifest = on_every_rank(partial(check_checkpoint, prepared, folder), mesh)
            load_engine(engine, folder, manifest)
            return folder, manifest
        except DamagedCheckpointError as error:
            console.print(f"{error}; the one before it is tried", style="bold red", highlight=False, markup=False)
    raise TrainingError(
        f"{what}; there is no whole checkpoint of step {max(newest_step, 0)} or before in {prepared.checkpoints} to go "
        "back to (faults.rewind_steps), and training stopped. Keep more of them with checkpoint.keep or "
        "checkpoint.interval_steps, or lower train.lr and start anew"
    )


def _history_from(prepared: PreparedRun, manifest: Manifest, spiked: FaultHistory, end_step: int) -> FaultHistory:
    """What the checkpoint remembers, and that the samples from there to those of `end_step` are left out."""
    plan = prepared.plan
    first_sample = after_skips(plan.step_batch(end_step), spiked.skips).first_sample
    skips = go_on_at(spiked.skips, plan.step_batch(manifest.step), first_sample)
    return replace(manifest.faults, spiking_steps=0, num_rewinds=spiked.num_rewinds + 1, skips=skips)


def _undo(folder: Path, manifest: Manifest, history: FaultHistory) -> None:
    """Record it in the checkpoint, then go back to it for good. Killed in between, a resumed run comes here again."""
    write_durably(folder / MANIFEST_NAME, replace(manifest, faults=history).to_json())
    write_durably(folder.parent / LATEST_NAME, folder.name + "\n")
    remove_steps(folder.parent, [step for step in saved_steps(folder.parent) if step > manifest.step])
