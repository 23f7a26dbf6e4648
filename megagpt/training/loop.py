"""The training loop: one arrow of the design a line. Everything it uses is built before it starts."""

from dataclasses import dataclass

from rich.console import Console

from megagpt.parallel.engine import Engine
from megagpt.parallel.mesh import Mesh
from megagpt.parallel.replicas import ReplicaCheck
from megagpt.training.evaluate import evaluate
from megagpt.training.policies import Policies
from megagpt.training.prepare import PreparedRun
from megagpt.training.progress import Phase, Progress
from megagpt.training.recorder import Recorder
from megagpt.training.rewind import rewind
from megagpt.training.run_trace import RunTrace
from megagpt.training.saver import Saver
from megagpt.training.signs import RankSigns, gather_signs, stop_asked
from megagpt.training.slow_ranks import SlowRanks
from megagpt.training.snapshot import take_snapshot
from megagpt.training.stop import Stopped, StopSignals
from megagpt.training.totals import StepTotals, dropout_seed, losses_finite, reduce_losses, reduce_num_loss_tokens


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
    stop: StopSignals
    progress: Progress
    policies: Policies
    slow: SlowRanks


def train(run: TrainingRun, first_step: int) -> Stopped | None:
    """Train from `first_step` updates done to the plan's end, or until a signal asks a rank to stop: then all save
    after that step, and what stopped them is returned. Every rank calls it.

    Raises TrainingError where a policy or a copy of a weight that differs stops it, CheckpointError where the last save
    fails.
    """
    plan, engine, mesh, recorder, progress = run.prepared.plan, run.engine, run.mesh, run.recorder, run.progress
    saver = run.saver
    seed = plan.config.run.seed
    stream = run.prepared.training_stream(mesh)
    interval_steps = plan.config.parallel.check_replicas_interval_steps
    replicas = ReplicaCheck(engine.named_parameters, mesh, plan.layout.zero_stage, interval_steps)
    progress.mark(Phase.CHECK)
    replicas.check_when_due(first_step)
    if asked := stop_asked(gather_signs(RankSigns(True, True, run.stop.requested), mesh)):
        return Stopped(asked, first_step, was_saved=False)
    step = first_step
    while step < plan.num_steps:
        recorder.start_step()
        progress.mark(Phase.DATA, step + 1)
        micro_batches = stream.micro_batches(run.policies.samples_of(plan.step_batch(step)))
        progress.mark(Phase.TOKENS)
        # DeepSpeed averages over the gradient ranks: the weight makes that a sum over all tokens that count
        loss_weight = mesh.gradient_size / reduce_num_loss_tokens(micro_batches, mesh)
        progress.mark(Phase.PASSES)
        step_seed = dropout_seed(seed, step, mesh.data_rank)
        losses = engine.forward_backward(micro_batches, loss_weight, step_seed, run.trace.of_step(step))
        engine.reduce_model_parallel_gradients()
        finite = losses_finite(losses), engine.local_gradients_finite()
        engine.finish_passes()
        progress.mark(Phase.SIGNS)
        own_seconds = progress.seconds(Phase.DATA, Phase.PASSES)
        signs = gather_signs(RankSigns(*finite, run.stop.requested, own_seconds), mesh)
        run.slow.observe(signs)
        totals = reduce_losses(losses, mesh)
        lr = plan.learning_rate(step)
        may_update = run.policies.may_update(signs, step)
        progress.mark(Phase.UPDATE)
        saver.finish_snapshot()  # of the last checkpoint, before masters and moments change
        update = engine.update(lr) if may_update else engine.skip_update(lr)
        totals = run.policies.end_step(step, totals, update)
        recorder.end_step(step, totals, update, run.slow.slowest)
        run.trace.end_step(step)
        done = step = step + 1
        if run.policies.wants_rewind:
            progress.mark(Phase.LOAD)
            saver.settle()  # what is being saved may be what is undone
            step = rewind(run.prepared, engine, run.policies, recorder, run.console, done)
            continue
        progress.mark(Phase.CHECK)
        replicas.check_when_due(done)
        if _due(done, plan.config.evaluation.interval_steps, plan.num_steps):
            _evaluate(run, done)
        asked = stop_asked(signs)
        if asked or _due(done, plan.config.checkpoint.interval_steps, plan.num_steps):
            progress.mark(Phase.SAVE)
            saver.begin(take_snapshot(run.prepared, engine, done, totals.loss, run.policies.history))
        saver.report()
        if asked and done < plan.num_steps:
            saver.finish()
            return Stopped(asked, done, was_saved=True)
    saver.finish()
    return None


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
