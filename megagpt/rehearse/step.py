"""One rank's step in a rehearsal: its engine built as a run builds it, its micro-batches, its passes.

In: a plan, a mesh in a fake world, a Watch. Out: what the Watch has seen and the order of passes. The lines of a step
are those of training/loop.py; tests hold the collectives against those of a real run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch import Tensor, nn

from megagpt.data.batch import Batch, context_part
from megagpt.data.stream import make_batch
from megagpt.model.embedding import OutputHead
from megagpt.model.layer import DecoderLayer
from megagpt.parallel.engine import Engine
from megagpt.parallel.mesh import Mesh
from megagpt.plan import RunPlan
from megagpt.plan_schedule import Pass
from megagpt.rehearse.storages import HOST, StorageLog
from megagpt.rehearse.watch import PassWatch, Watch
from megagpt.training.signs import OwnSigns, gather_signs
from megagpt.training.totals import dropout_seed, reduce_num_loss_tokens, sum_losses


def make_micro_batches(plan: RunPlan, mesh: Mesh, count: int) -> list[Batch]:
    """Micro-batches of the full batch's size, all of token 0; with documents where the run keeps them apart."""
    size = plan.batches.stages[-1].micro_batch_size
    rows = np.zeros((size, plan.spec.sequence_length + 1), dtype=np.int64)
    end_of_document = 1 if plan.config.data.separate_documents else None
    return [context_part(make_batch(rows, end_of_document), mesh.context_rank, mesh.context_size) for _ in range(count)]


def run_step(engine: Engine, plan: RunPlan, watch: Watch, micro_batches: list[Batch]) -> tuple[Pass, ...]:
    """One step on this rank, as in training/loop.py. Returns the passes in the order in which they ran."""
    mesh = engine.mesh
    head = next((stage.chunk for stage in plan.layout.chunks(mesh.pipeline_rank) if stage.has_head), None)
    passes = PassWatch(mesh, watch, head)
    watch.do("step", "before the schedule")
    loss_weight = mesh.gradient_size / reduce_num_loss_tokens(micro_batches, mesh)
    seed = dropout_seed(plan.config.run.seed, 0, mesh.data_rank)
    losses = engine.forward_backward(micro_batches, loss_weight, seed, passes)
    mark_gradients(engine, plan, watch.storages)
    watch.do("step", "sums of gradients over tensor and embedding groups")
    engine.reduce_model_parallel_gradients()
    gather_signs(OwnSigns(sum_losses(losses, mesh.device), engine.local_gradients_finite()), mesh)
    watch.do("step", "reduction of gradients and update")
    engine.update(plan.learning_rate(0))
    watch.do("step", "after the update")
    mark_state(engine, plan, watch.storages)
    return passes.order


@contextmanager
def watched_modules(engine: Engine, storages: StorageLog) -> Iterator[None]:
    """Tells the log where the output head begins and ends, and where a layer is run again."""
    handles = []

    def enter_head(module: nn.Module, arguments: Any) -> None:
        storages.in_head = True
        if arguments[0].requires_grad:
            arguments[0].register_hook(leave_head)

    def leave_head(gradient: Tensor) -> None:
        storages.in_head = False

    def enter_layer(module: nn.Module, arguments: Any) -> None:
        storages.in_recompute = storages.in_backward

    def leave_layer(module: nn.Module, arguments: Any, output: Any) -> None:
        if storages.in_recompute:
            storages.end_recompute()

    for module in engine.module.modules():
        if isinstance(module, OutputHead):
            handles.append(module.register_forward_pre_hook(enter_head))
        if isinstance(module, DecoderLayer):
            handles.append(module.register_forward_pre_hook(enter_layer))
            handles.append(module.register_forward_hook(leave_layer, always_call=True))  # a stopped one too
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mark_state(engine: Engine, plan: RunPlan, storages: StorageLog) -> None:
    """Tell the log which storages hold weights and optimizer state: those that DeepSpeed's objects refer to.

    On this machine all is in host memory; with offloading, what DeepSpeed would leave there is marked so.
    """
    layout = plan.layout
    base = getattr(engine.optimizer, "optimizer", engine.optimizer)
    masters = [parameter for group in base.param_groups for parameter in group["params"]]
    masters += _tensors_in(_own(engine, "fp32", "grad"))  # ZeRO 3 gives its optimizer one group at a time
    state = _tensors_in([masters, list(base.state.values())])
    if layout.offload_optimizer != "none":
        storages.mark(HOST, state + _tensors_in(_own(engine, "cpu", "gpu")))
        storages.mark(HOST, [master.grad for master in masters if master.grad is not None])
    else:
        storages.mark("optimizer", state)
    for parameter in engine.named_parameters.values():
        if hasattr(parameter, "ds_tensor"):
            away = layout.offload_parameters != "none" and not parameter.ds_persist  # type: ignore[attr-defined]
            storages.mark(HOST if away else "weights", [parameter.ds_tensor])
        else:
            storages.mark("weights", [parameter.data])


def mark_gradients(engine: Engine, plan: RunPlan, storages: StorageLog) -> None:
    """Tell the log which storages hold accumulated gradients: on parameters, or in DeepSpeed's optimizer."""
    parameters = engine.named_parameters.values()
    held = [getattr(parameter, name, None) for parameter in parameters for name in ("grad", "grad_accum")]
    storages.mark("gradients", _tensors_in(held))
    away = plan.layout.offload_optimizer != "none"
    storages.mark(HOST if away else "gradients", _tensors_in(_own(engine, "grad", "gpu")))


def _own(engine: Engine, word: str, but_not: str) -> list[Any]:
    """Attributes of DeepSpeed's optimizer by a word in their names."""
    return [value for name, value in vars(engine.optimizer).items() if word in name and but_not not in name]


def _tensors_in(value: Any) -> list[Tensor]:
    """Tensors in nested lists and dicts, but for empty ones and parameters' own values."""
    if isinstance(value, Tensor):
        return [value] if value.numel() else []
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for part in value for tensor in _tensors_in(part)]
    return []


def logit_widths(plan: RunPlan, mesh: Mesh) -> frozenset[int]:
    """Columns of logits on this rank: its own of the padded vocabulary, and those of them that exist."""
    width = plan.spec.padded_vocab_size // mesh.tensor_size
    return frozenset({width, min(max(plan.spec.vocab_size - mesh.tensor_rank * width, 0), width)})
