"""`--trace`: what ranks really run is what the plan says, the file is whole, and tracing changes no number."""

import os
from itertools import pairwise

import pytest

from megagpt.parallel.mesh import build_mesh
from megagpt.parallel.schedule import run_schedule
from megagpt.parallel.trace import StepTracer
from megagpt.plan_schedule import Pass, PassCosts, ideal_bubble, pass_order, simulate
from megagpt.training.build import build_engine
from tests.parallel.cases import global_batch, rows, small_plan
from tests.parallel.harness import run_ranks


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


def unit_bubble(orders: list[list[Pass]], virtual_stages: int) -> float:
    """The bubble of an order where every forward pass takes 1 and every backward pass 2."""
    chunks = len(orders) * virtual_stages
    return simulate(orders, PassCosts((1.0,) * chunks, (2.0,) * chunks)).bubble


@pytest.mark.parametrize(
    ("pipeline", "virtual_stages", "counts"), [(1, 1, [1, 3]), (2, 1, [1, 4, 7]), (2, 2, [2, 4, 6]), (4, 2, [4, 8])]
)
def test_ranks_run_the_planned_order(pipeline: int, virtual_stages: int, counts: list[int]) -> None:
    arguments = [f"--parallel.pipeline={pipeline}", f"--parallel.virtual_stages={virtual_stages}"]
    arguments += ["--model.num_layers=8"] if pipeline * virtual_stages > 4 else []
    ranks = run_ranks(pipeline, traced_orders, arguments, counts)
    for (count, forward_only), _ in ranks[0].items():
        traced = [rank[count, forward_only] for rank in ranks]
        planned = [list(pass_order(pipeline, virtual_stages, count, r, forward_only)) for r in range(pipeline)]
        assert traced == planned
        if not forward_only:
            ideal = ideal_bubble(pipeline, virtual_stages, count)
            assert unit_bubble(traced, virtual_stages) == pytest.approx(ideal, abs=1e-12)
