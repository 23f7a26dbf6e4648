"""The training loop: one arrow of the design a line. Everything it uses is built before it starts."""

from dataclasses import dataclass

from rich.console import Console

from megagpt.parallel.engine import Engine
from megagpt.parallel.mesh import Mesh
from megagpt.parallel.replicas import ReplicaCheck
from megagpt.training.evaluate import evaluate
from megagpt.training.own_seconds import OwnSeconds
from megagpt.training.policies import Policies
from megagpt.training.prepare import PreparedRun
from megagpt.training.profile_run import RunProfile
from megagpt.training.progress import Phase, Progress
from megagpt.training.read_ahead import ReadAhead
from megagpt.training.recorder import Recorder
from megagpt.training.rewind import rewind
from megagpt.training.run_trace import RunTrace
from megagpt.training.saver import Saver
from megagpt.training.signs import OwnSigns, RankSigns, gather_signs, no_signs, stop_asked, total_loss
from megagpt.training.slow_ranks import SlowRanks
from megagpt.training.snapshot import take_snapshot
from megagpt.training.stop import Stopped, StopSignals
from megagpt.training.totals import StepTotals, dropout_seed, reduce_num_loss_tokens, sum_losses


@dataclass(frozen=True)
class TrainingRun:
    """All that the loop needs, on this rank."""

    prepared: PreparedRun
    mesh: Mesh
    engine: Engine
    recorder: Recorder
    saver: Saver
    console: Console  # silent on other ranks than 0
    trace: RunTrace
    profile: RunProfile
    stop: StopSignals
    progress: Progress
    policies: Policies
    slow: SlowRanks
    own_seconds: OwnSeconds


def train(run: TrainingRun, first_step: int) -> Stopped | None:
    """Train from `first_step` updates done to the plan's end, or until a signal asks a rank to stop: then all save
    after that step, and what stopped them is returned. Every rank calls it.

    Raises TrainingError where a policy or a copy of a weight that differs stops it, CheckpointError where the last save
    fails.
    """
    plan, mesh, progress, saver = run.prepared.plan, run.mesh, run.progress, run.saver
    interval_steps = plan.config.parallel.check_replicas_interval_steps
    replicas = ReplicaCheck(run.engine.named_parameters, mesh, plan.layout.zero_stage, interval_steps)
    progress.mark(Phase.CHECK)
    replicas.check_when_due(first_step)
    if asked := stop_asked(gather_signs(no_signs(run.stop.requested, mesh), mesh)):
        return Stopped(asked, first_step, was_saved=False)
    step = first_step
    with ReadAhead(run.prepared.training_stream(mesh), mesh.device) as reader:
        while step < plan.num_steps:
            done = step + 1
            totals, signs = _train_step(run, reader, step)
            if run.policies.wants_rewind:
                progress.mark(Phase.LOAD)
                saver.settle()  # what is being saved may be what is undone
                step = rewind(run.prepared, run.engine, run.policies, run.recorder, run.console, done)
                continue
            progress.mark(Phase.CHECK)
            replicas.check_when_due(done)
            if _due(done, plan.config.evaluation.interval_steps, plan.num_steps):
                _evaluate(run, done)
            asked = stop_asked(signs)
            if asked or _due(done, plan.config.checkpoint.interval_steps, plan.num_steps):
                progress.mark(Phase.SAVE)
                saver.begin(take_snapshot(run.prepared, run.engine, done, totals.loss, run.policies.history))
            saver.report()
            if asked and done < plan.num_steps:
                saver.finish()
                return Stopped(asked, done, was_saved=True)
            step = done
    saver.finish()
    return None


def _train_step(run: TrainingRun, reader: ReadAhead, step: int) -> tuple[StepTotals, list[RankSigns]]:
    """The 0-based step: read, forward, backward, update, record. The host waits for the device in `gather_signs`, and
    where the update reads the norm."""
    plan, engine, mesh, progress = run.prepared.plan, run.engine, run.mesh, run.progress
    run.recorder.start_step()
    progress.mark(Phase.DATA, step + 1)
    micro_batches = reader.take(run.policies.samples_of(plan.step_batch(step)))
    if step + 1 < plan.num_steps:
        reader.begin(run.policies.samples_of(plan.step_batch(step + 1)))
    progress.mark(Phase.TOKENS)
    # DeepSpeed averages over the gradient ranks: the weight makes that a sum over all tokens that count
    loss_weight = mesh.gradient_size / reduce_num_loss_tokens(micro_batches, mesh).clamp(min=1)
    progress.mark(Phase.PASSES)
    run.own_seconds.begin_passes()
    seed = dropout_seed(plan.config.run.seed, step, mesh.data_rank)
    tracer = run.trace.of_step(step) or run.profile.of_step(step)
    losses = engine.forward_backward(micro_batches, loss_weight, seed, tracer)
    engine.reduce_model_parallel_gradients()
    sums, finite = sum_losses(losses, mesh.device), engine.local_gradients_finite()
    run.own_seconds.end_passes()
    progress.mark(Phase.SIGNS)
    signs = gather_signs(OwnSigns(sums, finite, run.stop.requested, run.own_seconds.newest()), mesh)
    run.slow.observe(signs)
    lr = plan.learning_rate(step)
    may_update = run.policies.may_update(signs, step)
    progress.mark(Phase.UPDATE)
    run.saver.finish_snapshot()  # of the last checkpoint, before masters and moments change
    update = engine.update(lr) if may_update else engine.skip_update(lr)
    totals = run.policies.end_step(step, total_loss(signs, mesh), update)
    run.recorder.end_step(step, totals, update, run.slow.slowest)
    run.profile.end_step(step)
    run.trace.end_step(step)
    return totals, signs


def _due(done: int, interval: int, num_steps: int) -> bool:
    """After every `interval` steps (0: never) and at the end."""
    return done == num_steps or (interval > 0 and done % interval == 0)


def _evaluate(run: TrainingRun, done: int) -> None:
    """Evaluate on what each corpus holds out, if any does: a record each where there are several, and one of all."""
    held_out = run.prepared.data.validation
    if held_out is None:
        return
    parts = [evaluate(run.prepared, part, run.mesh, run.engine, run.progress) for part in held_out.parts]
    if len(parts) > 1:
        for part, totals in zip(held_out.parts, parts, strict=True):
            run.recorder.evaluated(done, totals, part.unigram_entropy, part.name)
    total = StepTotals(sum(part.loss_sum for part in parts), sum(part.num_tokens for part in parts))
    run.recorder.evaluated(done, total, held_out.unigram_entropy)
