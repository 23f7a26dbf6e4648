"""A rehearsal against the same step of real ranks with values: equal collectives, order of passes and bytes."""

import time
from collections import Counter
from typing import Any
from unittest.mock import patch

import pytest
from torch._C._distributed_c10d import FakeWork, Work

from megagpt.config_file import load_config
from megagpt.kernels import matmul
from megagpt.parallel.mesh import build_mesh
from megagpt.plan import RunPlan, make_plan
from megagpt.plan_schedule import Pass
from megagpt.rehearse.collectives import Collective, tensors_of
from megagpt.rehearse.run import rehearse
from megagpt.rehearse.step import logit_widths, make_micro_batches, mark_state, run_step, watched_modules
from megagpt.rehearse.storages import MemoryUse, StorageLog
from megagpt.rehearse.watch import Watch
from megagpt.training.build import build_engine
from tests.parallel.harness import run_ranks

MODEL = [
    *("--model.num_layers=4", "--model.num_heads=4", "--model.hidden_size=64", "--model.sequence_length=32"),
    *("--model.vocab_size=500", "--train.batch_tokens=512", "--train.micro_batch_size=2", "--train.steps=3"),
    *("--train.warmup_tokens=0", "--train.lr=1e-3"),
]
TENSOR = ["--parallel.tensor=2", "--parallel.sequence_parallel=true"]
LAYOUTS = {
    "tp2 sp pp2 zero1": [*TENSOR, "--parallel.pipeline=2"],
    "pp2x2 dp2 zero1 fp16": ["--parallel.pipeline=2", "--parallel.virtual_stages=2", "--train.precision=fp16"],
    "tp2 dp2 zero0 fp32": ["--parallel.tensor=2", "--parallel.zero_stage=0", "--train.precision=fp32"],
    "tp2 sp dp2 zero2": [*TENSOR, "--parallel.zero_stage=2"],
    "tp2 dp2 zero3": ["--parallel.tensor=2", "--parallel.zero_stage=3"],
    "cp2 dp2 zero1 full": ["--parallel.context=2", "--train.recompute=full"],
    "dp4 zero1 selective": ["--train.recompute=selective", "--model.hidden_dropout=0.1"],
}


def small_plan(arguments: list[str], num_ranks: int = 4) -> RunPlan:
    return make_plan(load_config(None, [*MODEL, *arguments]), num_ranks, None)


class SettledWatch(Watch):
    """Also waits, after each collective, until gloo's threads have let go of its tensors, as ranks of a rehearsal do at
    once; else the moment at which they die is that of a thread, and depends on how busy the machine is.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if func.namespace != "c10d" or func._schema.name in (
            "c10d::send",
            "c10d::recv_",
        ):  # those wait for another's call
            return super().__torch_dispatch__(func, types, args, kwargs)
        tensors = [tensor for argument in args for tensor in tensors_of(argument)]
        users = [tensor._use_count() for tensor in tensors]
        result = super().__torch_dispatch__(func, types, args, kwargs)
        *tensors_out, work = result if isinstance(result, tuple) else (result,)
        Work.unbox(work).wait()
        del work, result
        until = time.monotonic() + 60
        while [tensor._use_count() for tensor in tensors] != users:
            assert time.monotonic() < until, f"gloo still holds tensors of {func} after 60 s"
            time.sleep(0)
        return (*tensors_out, FakeWork().boxed()) if tensors_out else FakeWork().boxed()


def real_step(arguments: list[str]) -> tuple[Counter[Collective], tuple[Pass, ...], MemoryUse]:
    """Two steps of one rank with values, watched in the second; the first makes buffers. Runs on every rank."""
    plan = small_plan(arguments)
    layout = plan.layout
    mesh = build_mesh(layout.tensor, layout.pipeline, layout.virtual_stages, layout.context)
    storages = StorageLog(logit_widths(plan, mesh))
    as_on_a_gpu = patch.object(matmul, "prefers_onednn", return_value=False)
    with as_on_a_gpu, SettledWatch(mesh, storages, gathers_weights=layout.zero_stage == 3) as watch:
        engine = build_engine(plan, mesh)
        mark_state(engine, plan, storages)
        whole = plan.batches.stages[-1].num_micro_batches
        with watched_modules(engine, storages):
            run_step(engine, plan, watch, make_micro_batches(plan, mesh, whole))
            begin = storages.clock
            watch.collectives = Counter()
            order = run_step(engine, plan, watch, make_micro_batches(plan, mesh, whole))
    return watch.collectives, order, storages.use(begin, storages.clock)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_rehearsal_counts_what_really_happens(name):
    """Equal collectives and passes. Bytes differ by 16 at most, and by what gloo holds while it sends."""
    plan = small_plan(LAYOUTS[name])
    results = run_ranks(4, real_step, LAYOUTS[name])
    for rank in (0, 3):  # of the first and of the last stage
        collectives, order, memory = results[rank]
        rehearsal = rehearse(plan, rank)
        assert rehearsal.micro_batches_run == (plan.batches.stages[-1].num_micro_batches,)
        assert rehearsal.order == order
        assert rehearsal.collectives == collectives
        on_its_way = max((call.num_bytes for call in collectives if call.kind == "send"), default=0)
        assert rehearsal.memory.peak.total_bytes == pytest.approx(memory.peak.total_bytes, abs=16 + on_its_way)
        for part, size in rehearsal.memory.most_by_part.items():
            moving = on_its_way if part in ("activations", "temporary") else 0
            assert size == pytest.approx(memory.most_by_part[part], abs=16 + moving), part
