"""`--trace`: what ranks really run is what the plan says, the file is whole, and tracing changes no number."""

import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megagpt.parallel.mesh import build_mesh
from megagpt.parallel.schedule import run_schedule
from megagpt.parallel.trace import StepTracer
from megagpt.plan_schedule import Pass, PassCosts, pass_order, simulate
from megagpt.training.build import build_engine
from megagpt.training.totals import reduce_losses, reduce_num_loss_tokens
from tests.parallel.cases import fingerprint, global_batch, micro_batches, rows, small_plan
from tests.parallel.harness import run_ranks
from tests.parallel.runs import prepare_small, read_metrics, run_arguments, run_prepared, train_rank


def traced_orders(arguments: list[str], counts: list[int]) -> dict[tuple[int, bool], list[Pass]]:
    """The passes of this rank as it ran them, by (number of micro-batches, forward only)."""
    plan = small_plan(int(os.environ["WORLD_SIZE"]), arguments)
    mesh = build_mesh(plan.layout.tensor, plan.layout.pipeline, plan.layout.virtual_stages, plan.layout.context)
    engine = build_engine(plan, mesh)
    orders = {}
    for count in counts:
        batches = [rows(global_batch(0), number % 8, number % 8 + 1) for number in range(count)]
        for forward_only in (False, True):
            tracer = StepTracer(count, mesh)
            if forward_only:
                run_schedule(engine._chunks, mesh, batches, 1.0, None, True, tracer)
            else:
                engine.forward_backward(batches, 1e-3, None, tracer)
            passes = tracer.measured(tracer).passes
            assert all(event.start < event.end for event in passes)
            assert all(before.end <= after.start for before, after in pairwise(passes))
            orders[count, forward_only] = [Pass(*event[:3]) for event in passes]
    return orders


def unit_bubble(orders: list[list[Pass]], virtual_stages: int, backward: float) -> float:
    """Waiting over computing of an order where every forward pass takes 1 and every backward pass `backward`."""
    chunks = len(orders) * virtual_stages
    return simulate(orders, PassCosts((1.0,) * chunks, (backward,) * chunks)).bubble


@pytest.mark.parametrize(
    ("pipeline", "virtual_stages", "counts"),
    [(1, 1, [1, 3]), (2, 1, [1, 4, 7]), (2, 2, [2, 4, 6]), (4, 1, [2, 8]), (4, 2, [4, 8])],
)
def test_ranks_run_the_planned_order(pipeline: int, virtual_stages: int, counts: list[int]) -> None:
    arguments = [f"--parallel.pipeline={pipeline}", f"--parallel.virtual_stages={virtual_stages}"]
    arguments += ["--model.num_layers=8"]
    ranks = run_ranks(pipeline, traced_orders, arguments, counts)
    for count, forward_only in ranks[0]:
        traced = [rank[count, forward_only] for rank in ranks]
        planned = [list(pass_order(pipeline, virtual_stages, count, r, forward_only)) for r in range(pipeline)]
        assert traced == planned
        if not forward_only:  # the bubble of a real run, by its shape, not its time
            ideal = (pipeline - 1) / (virtual_stages * count)
            assert [unit_bubble(traced, virtual_stages, backward) for backward in (1.0, 2.0)] == pytest.approx(
                [ideal] * 2
            )


def trained(arguments: list[str]) -> list[tuple[list[float], list[float], str, int]]:
    """Without and with a tracer: losses, gradient norms and weights of two steps, and how many passes were traced."""
    plan = small_plan(int(os.environ["WORLD_SIZE"]), arguments)
    mesh = build_mesh(plan.layout.tensor, plan.layout.pipeline, plan.layout.virtual_stages, plan.layout.context)
    results = []
    for traced in (False, True):
        engine = build_engine(plan, mesh)
        losses, norms, num_passes = [], [], 0
        for step in range(2):
            batches = micro_batches(plan, step, mesh.data_rank, False)
            weight = mesh.gradient_size / reduce_num_loss_tokens(batches, mesh)
            tracer = StepTracer(step, mesh) if traced else None
            losses.append(reduce_losses(engine.forward_backward(batches, weight, 3 + step, tracer), mesh).loss)
            engine.reduce_model_parallel_gradients()
            norms.append(engine.update(1e-3).grad_norm)
            if tracer is not None:
                num_passes += len(set(tracer.measured(tracer).passes))
        results.append((losses, norms, fingerprint(engine.model_state()), num_passes))
    return results


@pytest.mark.parametrize(
    ("arguments", "num_passes"),
    [
        (["--parallel.zero_stage=0", "--train.precision=fp32", "--parallel.pipeline=2"], 2 * 2 * 4),
        (["--parallel.zero_stage=1", "--train.precision=fp16", "--parallel.pipeline=2"], 2 * 2 * 4),
        (["--parallel.virtual_stages=2", "--train.recompute=full", "--parallel.pipeline=2"], 2 * 2 * 2 * 4),
        (["--parallel.zero_stage=2", "--train.precision=fp16", "--train.recompute=full"], 2 * 2 * 2),
        (["--parallel.zero_stage=3", "--train.recompute=selective", "--model.hidden_dropout=0.1"], 2 * 2 * 2),
    ],
)
def test_tracing_changes_no_bit(arguments: list[str], num_passes: int) -> None:
    for without, traced in run_ranks(2, trained, arguments):
        assert traced[:3] == without[:3]
        assert (without[3], traced[3]) == (0, num_passes)


def train_traced(arguments: list[str]) -> str:
    """One rank of `megagpt train --trace`; returns what it printed."""
    console = Console(record=True, width=200, file=open(os.devnull, "w"), quiet=os.environ["RANK"] != "0")  # noqa: SIM115
    run_prepared(prepare_small(arguments), console, trace=True)
    return console.export_text()


def slices(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """The complete events of each process of a trace file, in the file's order."""
    events = json.loads((folder / "run" / "trace.json").read_text())["traceEvents"]
    return {
        pid: [event for event in events if event["pid"] == pid and event["ph"] == "X"]
        for pid in sorted({event["pid"] for event in events})
    }


def test_the_trace_file_of_a_run(data: Path) -> None:
    arguments = run_arguments(data, "--parallel.pipeline=2", "--train.steps=4", "--evaluation.interval_steps=2")
    said = run_ranks(2, train_traced, arguments)
    assert f"wrote {data}/run/trace.json, to be opened at https://ui.perfetto.dev: from the first" in said[0]
    assert "ranks waited " in said[0]
    traced_metrics = read_metrics(data)
    by_rank = slices(data)
    assert list(by_rank) == [0, 1]
    for rank, events in by_rank.items():
        passes = [event for event in events if event["name"] in ("forward", "backward")]
        steps = {event["args"]["step"]: event for event in events if event["name"] not in ("forward", "backward")}
        assert [event["name"] for event in steps.values()] == ["step 2", "step 3"]
        keys = [(event["name"], *event["args"].values()) for event in passes]
        assert Counter(keys) == Counter(
            (kind, 0, number, step) for kind in ("forward", "backward") for number in range(4) for step in (2, 3)
        )
        planned = [list(event) for event in pass_order(2, 1, 4, rank)]
        assert [[*key[:3]] for key in keys] == planned * 2
        for event in passes:  # each lies in its step, and none in another pass
            step = steps[event["args"]["step"]]
            assert event["dur"] > 0
            assert step["ts"] <= event["ts"]
            assert event["ts"] + event["dur"] <= step["ts"] + step["dur"] + 1e-3
        assert all(before["ts"] + before["dur"] <= after["ts"] + 1e-3 for before, after in pairwise(passes))
    assert by_rank[0][0]["ts"] == by_rank[1][0]["ts"] == 0.0
    text = (data / "run" / "trace.json").read_text()
    assert '"args": {"name": "rank 1: pipeline 1, tensor 0, data 0"}' in text

    plain = data / "plain"
    plain.mkdir()
    (plain / "run").mkdir()
    run_ranks(2, train_rank, [*arguments, f"--run.folder={plain}/run"])
    assert read_metrics(plain) == traced_metrics
    assert not (plain / "run" / "trace.json").exists()


def test_a_file_that_cannot_be_written_does_not_stop_the_run(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run" / "trace.json").mkdir(parents=True)
    arguments = run_arguments(data, f"--run.folder={tmp_path}/run", "--train.steps=2", "--train.batch_tokens=64")
    (said,) = run_ranks(1, train_traced, arguments)
    assert f"{tmp_path}/run/trace.json could not be written: Is a directory; training goes on" in said
    assert not (tmp_path / "run" / "trace.json.partial").exists()
    assert [record["step"] for record in read_metrics(tmp_path) if "grad_norm" in record] == [1, 2]
