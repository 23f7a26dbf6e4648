"""The comparison notices what it is for: a gradient off by one part in ten thousand, a sum over ranks left out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from megagpt.parallel import context, engine
from megagpt.parallel.engine import Engine
from tests.parallel.cases import LayoutResult, build_small_engine, plan_mesh, run_layout, small_plan, train_steps
from tests.parallel.harness import run_ranks
from tests.parity.compare import Case, beyond_bounds, differences, reference, relative, worst
from tests.parity.measured import Difference

SCALED = "layers.1.mlp.up.weight"


def scale_one_gradient(built: Engine) -> None:
    if SCALED in built.named_parameters:
        built.named_parameters[SCALED].register_hook(lambda gradient: gradient * (1 + 1e-4))


def leave_out_model_parallel_sums(built: Engine) -> None:
    built.reduce_model_parallel_gradients = lambda: None  # type: ignore[method-assign]


def leave_out_data_sum(built: Engine) -> None:
    built.deepspeed.allreduce_gradients = lambda: None


def leave_out_sums_in_backward() -> None:
    engine.Engine._sum_over_tensor_ranks_in_backward = lambda self: None  # type: ignore[method-assign]


def leave_out_row_sums() -> None:
    from megatron.core.tensor_parallel import layers

    layers.reduce_from_tensor_model_parallel_region = lambda values, group=None: values


def leave_out_column_sums() -> None:
    from megatron.core.tensor_parallel.layers import LinearWithGradAccumulationAndAsyncCommunication as Linear

    complete = Linear.backward

    def backward(ctx: Any, grad: Tensor) -> Any:
        ctx.allreduce_dgrad = False
        return complete(ctx, grad)

    Linear.backward = staticmethod(backward)


def leave_out_all_to_all() -> None:
    context.dist.all_to_all_single = lambda received, sent, group: received.copy_(sent)


class Sabotage(NamedTuple):
    """A mistake, the layout in which it is one, and what must be found to differ."""

    num_ranks: int
    layout: tuple[str, ...]
    found_in: set[str]
    before: Callable[[], None] | None = None
    after: Callable[[Engine], None] | None = None


SEQUENCE = ("--parallel.tensor=2", "--parallel.sequence_parallel=true")
EVERYTHING = {"loss", "norm", "gradient", "weight"}
SABOTAGES = {
    "nothing": Sabotage(2, SEQUENCE, set()),
    "one gradient times 1.0001": Sabotage(1, (), {"gradient"}, after=scale_one_gradient),
    "one gradient times 1.0001, ZeRO 3": Sabotage(
        2, ("--parallel.zero_stage=3",), {"gradient"}, after=scale_one_gradient
    ),
    "norms not summed over tensor ranks": Sabotage(
        2, SEQUENCE, {"norm", "gradient", "weight"}, after=leave_out_model_parallel_sums
    ),
    "norms not summed over tensor ranks, ZeRO 2": Sabotage(
        2, (*SEQUENCE, "--parallel.zero_stage=2"), {"norm", "gradient", "weight"}, before=leave_out_sums_in_backward
    ),
    "tied table not summed over pipeline ends": Sabotage(
        2, ("--parallel.pipeline=2",), {"norm", "gradient", "weight"}, after=leave_out_model_parallel_sums
    ),
    "gradients not summed over data ranks": Sabotage(
        2, ("--parallel.zero_stage=0",), {"norm", "weight"}, after=leave_out_data_sum
    ),
    "gradients not summed over context ranks": Sabotage(
        2, ("--parallel.context=2", "--parallel.zero_stage=0"), {"norm", "weight"}, after=leave_out_data_sum
    ),
    "row-parallel outputs not summed": Sabotage(2, ("--parallel.tensor=2",), EVERYTHING, before=leave_out_row_sums),
    "column-parallel input gradients not summed": Sabotage(
        2, ("--parallel.tensor=2",), {"norm", "gradient", "weight"}, before=leave_out_column_sums
    ),
    "heads not exchanged over context ranks": Sabotage(
        2, ("--parallel.context=2",), EVERYTHING, before=leave_out_all_to_all
    ),
}


def run_sabotaged(name: str, arguments: list[str]) -> LayoutResult:
    """Three steps of one rank with the mistake."""
    sabotage = SABOTAGES[name]
    plan = small_plan(sabotage.num_ranks, arguments)
    mesh = plan_mesh(plan)
    if sabotage.before is not None:
        sabotage.before()
    built = build_small_engine(plan, mesh)
    if sabotage.after is not None:
        sabotage.after(built)
    return train_steps(built, plan, False, 3)


@pytest.mark.parametrize("name", SABOTAGES)
def test_a_mistake_is_found(name: str) -> None:
    sabotage = SABOTAGES[name]
    arguments = Case(sabotage.num_ranks, sabotage.layout).arguments("fp32")
    results = run_ranks(sabotage.num_ranks, run_sabotaged, name, arguments)
    plan = small_plan(sabotage.num_ranks, arguments)
    found = beyond_bounds(differences(results, reference((), False, 3), plan), "fp32")
    assert set(found) >= sabotage.found_in, found
    if name == "nothing":
        assert not found
    if "1.0001" in name:
        assert found["gradient"].where.startswith(SCALED)
        assert found["gradient"].value == pytest.approx(1e-4, rel=0.1)


def test_what_is_missing_or_no_number_is_found() -> None:
    (result,) = run_ranks(1, run_layout, 1, Case(1, ()).arguments("fp32"))
    wanted, plan = reference((), False, 3), small_plan(1, [])
    for kind in ("gradient", "weight"):
        for name, value, expected in (
            ("final_norm.bias", torch.full((32,), float("nan")), float("inf")),
            ("final_norm.bias", torch.zeros(31), float("inf")),
            ("layers.3.mlp.up.weight", torch.zeros(128, 32), 1.0),
        ):
            tensors = getattr(result, f"{kind}s") | {name: value}
            found = differences([result._replace(**{f"{kind}s": tensors})], wanted, plan)
            assert found[kind] == Difference(expected, f"{name}, rank 0")
            assert set(beyond_bounds(found, "bf16")) == {kind}
        fewer = {name: value for name, value in getattr(result, f"{kind}s").items() if name != "final_norm.bias"}
        with pytest.raises(AssertionError, match=f"not every {kind} was compared"):
            differences([result._replace(**{f"{kind}s": fewer})], wanted, plan)
    with pytest.raises(AssertionError, match="2 steps, not 3"):
        differences([result._replace(losses=result.losses[:2])], wanted, plan)
    assert relative(torch.zeros(3), torch.zeros(3)) == 0.0
    assert relative(torch.full((3,), 1e-9), torch.zeros(3)) == float("inf")
    assert worst([Difference(2.0, "a"), Difference(float("nan"), "b")]) == Difference(float("inf"), "b")
