"""What one rank does to train, save, and continue on another layout. Imported by the ranks themselves."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from megagpt.checkpoint.manifest import FORMAT_VERSION, Manifest, OptimizerProgress
from megagpt.checkpoint.pieces import KINDS
from megagpt.checkpoint.read import find_checkpoint, read_manifest
from megagpt.checkpoint.save import CheckpointContents, save_checkpoint
from megagpt.checkpoint.state import StateReader
from megagpt.data.batch import context_part
from megagpt.model.names import parameter_shapes
from megagpt.parallel.engine import Engine
from megagpt.parallel.mesh import Mesh, build_mesh
from megagpt.parallel.optimizer_pieces import set_loss_scale
from megagpt.plan import RunPlan
from megagpt.training.build import build_engine
from megagpt.training.resume import load_engine
from megagpt.training.snapshot import checkpoint_layout
from megagpt.training.totals import dropout_seed, reduce_losses, reduce_num_loss_tokens
from tests.parallel.cases import micro_batches, small_plan

SAVED_AFTER, STEPS = 3, 5


class Trained(NamedTuple):
    """What a rank saw of some steps: losses, gradient norms and loss scales."""

    losses: list[float]
    norms: list[float]
    scales: list[float]


class State(NamedTuple):
    """All of a checkpoint's state, in whole parameters."""

    tensors: dict[tuple[str, str], Tensor]  # by global name and kind
    optimizer: OptimizerProgress | None


def train_saving(num_ranks: int, arguments: list[str], checkpoints: Path) -> Trained:
    """The unbroken run: saves in the middle and at the end. What it saw from the first save on."""
    plan = small_plan(num_ranks, arguments)
    engine = build_engine(plan, _mesh(plan))
    train(engine, plan, 0, 1)
    scale = engine.progress().loss_scale
    if scale is not None:  # fp16's first step overflowed on every layout: from here on none is near to it
        set_loss_scale(engine.optimizer, replace(scale, scale=256.0))
    train(engine, plan, 1, SAVED_AFTER)
    save(engine, plan, SAVED_AFTER, checkpoints)
    seen = train(engine, plan, SAVED_AFTER, STEPS)
    save(engine, plan, STEPS, checkpoints)
    return seen


def continue_from_each(
    num_ranks: int, arguments: list[str], sources: dict[str, Path], targets: dict[str, Path]
) -> dict[str, Trained]:
    """Continue each of the sources, with a new engine: saves what was loaded at once, and again at the end."""
    plan = small_plan(num_ranks, arguments)
    mesh = _mesh(plan)
    seen = {}
    for name, source in sources.items():
        engine = build_engine(plan, mesh)
        load_engine(engine, source, read_manifest(source))
        save(engine, plan, SAVED_AFTER, targets[name])
        seen[name] = train(engine, plan, SAVED_AFTER, STEPS)
        save(engine, plan, STEPS, targets[name])
    return seen


def _mesh(plan: RunPlan) -> Mesh:
    layout = plan.layout
    return build_mesh(layout.tensor, layout.pipeline, layout.virtual_stages, layout.context)


def train(engine: Engine, plan: RunPlan, first_step: int, stop_step: int) -> Trained:
    """Some steps of the small plan."""
    mesh = engine.mesh
    seen = Trained([], [], [])
    for step in range(first_step, stop_step):
        batches = [
            context_part(batch, mesh.context_rank, mesh.context_size)
            for batch in micro_batches(plan, step, mesh.data_rank, False)
        ]
        weight = mesh.gradient_size / reduce_num_loss_tokens(batches, mesh)
        losses = engine.forward_backward(batches, weight, dropout_seed(7, step, mesh.data_rank))
        engine.reduce_model_parallel_gradients()
        update = engine.update(plan.learning_rate(step))
        for values, value in zip(
            seen, (reduce_losses(losses, mesh).loss, update.grad_norm, update.loss_scale), strict=True
        ):
            values.append(value)
    return seen


def save(engine: Engine, plan: RunPlan, step: int, checkpoints: Path) -> Path:
    """A checkpoint without tokenizer, configuration and data."""
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        megagpt_version="0.0.0",
        step=step,
        tokens=0,
        loss=None,
        spec=plan.spec,
        layout=checkpoint_layout(plan),
        precision=plan.config.train.precision,
        seed=plan.config.run.seed,
        tokenizer_fingerprint=None,
        tokenizer_file=None,
        data_fingerprint=None,
        files={},
        optimizer=engine.progress(),
    )
    return save_checkpoint(checkpoints, CheckpointContents(manifest, "", None, engine.owned_pieces()), engine.mesh, 9)


def read_state(path: Path) -> State:
    """Everything in a checkpoint."""
    folder = find_checkpoint(path)
    manifest = read_manifest(folder)
    reader = StateReader(folder, manifest)
    names = parameter_shapes(manifest.spec)
    tensors = {(name, kind): value for kind in KINDS for name, value in reader.whole(names, kind).items()}
    return State(tensors, manifest.optimizer)
