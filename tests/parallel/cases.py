"""A small model and its batches, and what one rank of a layout makes of them. Imported by the ranks themselves."""

import hashlib
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.config import ParallelSection, TrainSection
from megagpt.config_file import load_config
from megagpt.data.batch import Batch, context_part
from megagpt.parallel.deepspeed_json import make_deepspeed_config
from megagpt.parallel.engine import Engine
from megagpt.parallel.mesh import Mesh, build_mesh
from megagpt.plan import RunPlan, make_plan
from megagpt.training import build
from megagpt.training.totals import dropout_seed, reduce_losses, reduce_num_loss_tokens

VOCAB = 100  # padded to 128: half of the last tensor rank's columns do not exist
SEQUENCE = 16
LARGEST_BIAS = 128  # values
SMALL = [
    *("--model.num_layers=4", "--model.num_heads=4", "--model.hidden_size=32", f"--model.sequence_length={SEQUENCE}"),
    *(f"--model.vocab_size={VOCAB}", "--train.batch_tokens=128", "--train.micro_batch_size=2", "--train.steps=3"),
    *("--train.lr=1e-3", "--train.warmup_tokens=0", "--train.lr_schedule=constant", "--run.seed=7"),
    # the gradient of a key bias is zero but for rounding (softmax ignores a shift); AdamW with its usual epsilon of
    # 1e-8 would blow that rounding up to whole steps and hide what the comparison of weights is for
    "--train.epsilon=1e-3",
]


class LayoutResult(NamedTuple):
    """What one rank saw of a few steps."""

    losses: list[float]
    grad_norms: list[float]
    gradients: dict[str, Tensor]  # of the first step before clipping, this rank's slices, averaged over data ranks
    weights: dict[str, Tensor]  # after the last step, this rank's slices
    tensor_rank: int
    applied: list[bool]


def small_plan(num_ranks: int, arguments: list[str]) -> RunPlan:
    """The plan of the small model with further arguments."""
    return make_plan(load_config(None, [*SMALL, *arguments]), num_ranks, None)


def global_batch(step: int, separate_documents: bool = False) -> Batch:
    """Eight sequences of made-up tokens, a fifth of whose labels do not count."""
    generator = torch.Generator().manual_seed(1000 + step)
    tokens = torch.randint(0, VOCAB, (8, SEQUENCE + 1), generator=generator)
    mask = (torch.rand(8, SEQUENCE, generator=generator) > 0.2).float()
    positions = torch.arange(SEQUENCE).expand(8, SEQUENCE).contiguous()
    documents = None
    if separate_documents:
        documents = (torch.rand(8, SEQUENCE, generator=generator) > 0.8).cumsum(1).to(torch.int32)
        starts = torch.where(documents.diff(dim=1, prepend=documents[:, :1] - 1) > 0, positions, 0).cummax(1).values
        positions = positions - starts
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), mask, positions, documents)


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """Some sequences of a batch."""
    return Batch(*(None if part is None else part[start:stop].contiguous() for part in batch))


def micro_batches(plan: RunPlan, step: int, data_rank: int, separate_documents: bool) -> list[Batch]:
    """One data rank's share of the global batch, cut as the plan says."""
    cut = plan.step_batch(step)
    share = cut.num_sequences // plan.layout.data
    batch = rows(global_batch(step, separate_documents), data_rank * share, (data_rank + 1) * share)
    size = cut.micro_batch_size
    return [rows(batch, number * size, (number + 1) * size) for number in range(cut.num_micro_batches)]


class Share(NamedTuple):
    """What one data rank does of a step: its micro-batches and the seed of their dropout."""

    batches: list[Batch]
    seed: int


def run_layout(num_ranks: int, arguments: list[str], separate_documents: bool = False, steps: int = 3) -> LayoutResult:
    """Train a few steps as one rank of a layout."""
    plan = small_plan(num_ranks, arguments)
    mesh = plan_mesh(plan)
    return train_steps(build_small_engine(plan, mesh), plan, separate_documents, steps)


def run_all_data_ranks(num_data_ranks: int, arguments: list[str], steps: int = 3) -> LayoutResult:
    """Train a few steps as a single rank that does the work of all data ranks, one after the other."""
    plan = small_plan(num_data_ranks, arguments)
    mesh = build_mesh(1, 1)
    return train_steps(build_small_engine(plan, mesh), plan, False, steps)


def plan_mesh(plan: RunPlan) -> Mesh:
    """This rank's place in a plan's layout."""
    return build_mesh(plan.layout.tensor, plan.layout.pipeline, plan.layout.virtual_stages, plan.layout.context)


def build_small_engine(plan: RunPlan, mesh: Mesh) -> Engine:
    """This rank's engine, in which ZeRO 3 gathers, releases and writes matrices to files as those of a large model.

    DeepSpeed keeps parameters of up to 100,000 values whole (zero/config.py, param_persistence_threshold) and shards of
    less than 1 MiB in memory (swap_tensor/utils.py, MIN_AIO_BYTES): of a large model biases and norms, of this one all.
    """

    def config_with_thresholds(train: TrainSection, parallel: ParallelSection) -> dict[str, Any]:
        config = make_deepspeed_config(train, parallel)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = LARGEST_BIAS
        if parallel.offload_parameters == "nvme":
            config["zero_optimization"]["offload_param"]["buffer_size"] = (
                10_000  # values, five times; the default: 10^8
            )
            config["aio"] = {"block_size": 1024}
            partitioned_param_swapper.MIN_AIO_BYTES = 1024
        return config

    from deepspeed.runtime.swap_tensor import partitioned_param_swapper  # slow to import, and only ranks need it

    with patch.object(build, "make_deepspeed_config", config_with_thresholds):
        return build.build_engine(plan, mesh)


def train_steps(engine: Engine, plan: RunPlan, separate_documents: bool, steps: int) -> LayoutResult:
    """Train a few steps; where the mesh has fewer data ranks than the plan, it does the work of several."""
    mesh = engine.mesh
    losses, norms, applied = [], [], []
    gradients: dict[str, Tensor] = {}
    for step in range(steps):
        shares = [
            Share(
                [
                    context_part(batch, mesh.context_rank, mesh.context_size)
                    for batch in micro_batches(plan, step, data_rank, separate_documents)
                ],
                dropout_seed(7, step, data_rank),
            )
            for data_rank in range(mesh.data_rank, plan.layout.data, mesh.data_size)
        ]
        weight = mesh.gradient_size / reduce_num_loss_tokens([b for share in shares for b in share.batches], mesh)
        token_losses = [loss for share in shares for loss in engine.forward_backward(share.batches, weight, share.seed)]
        engine.reduce_model_parallel_gradients()
        if step == 0:
            gradients = whole_gradients(engine)
        assert engine.local_gradients_finite()
        losses.append(reduce_losses(token_losses, mesh).loss)
        update = engine.update(plan.learning_rate(step))
        norms.append(update.grad_norm)
        applied.append(update.applied)
    return LayoutResult(losses, norms, gradients, engine.model_state(), mesh.tensor_rank, applied)


def whole_gradients(engine: Engine) -> dict[str, Tensor]:
    """This rank's slice of every gradient as the update will see it before clipping; every rank calls it.

    Reduces over the gradient group: ZeRO 0 and 1 have not averaged yet, ZeRO 2 and 3 hold shards of the average.
    """
    from deepspeed.utils import safe_get_full_grad  # slow to import, and only ranks need it

    gradients = {}
    for name, parameter in engine.named_parameters.items():
        if engine.zero_stage < 2:
            gradient = engine.gradient(parameter).detach().float().clone()
            dist.all_reduce(gradient, group=engine.mesh.gradient_group)
            gradient /= engine.mesh.gradient_size
        else:
            assert parameter.grad is None, f"{name} has a gradient that was not sharded"
            gradient = safe_get_full_grad(parameter).detach().float()
        gradients[name] = gradient.reshape(getattr(parameter, "ds_shape", parameter.shape)).cpu() / engine._loss_scale()
    return gradients


def fingerprint(values: dict[str, Any]) -> str:
    """Equal for equal bits."""
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(name.encode() + values[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
