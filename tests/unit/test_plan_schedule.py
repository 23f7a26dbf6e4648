"""The order of passes against megatron-core's own tables, and the simulated timeline against the textbook's bubble."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
from megatron.core.pipeline_parallel import schedules

from megagpt.config_file import load_config
from megagpt.plan import make_plan
from megagpt.plan_schedule import Pass, PassCosts, ideal_bubble, pass_costs, pass_order, plan_timeline, simulate

SIZES = [(1, 1, 3), (2, 1, 1), (2, 1, 4), (4, 1, 2), (4, 1, 8), (2, 2, 4), (4, 2, 4), (4, 3, 16), (16, 6, 48)]


def words(order):
    return " ".join(f"{event.kind[0].upper()}{event.chunk}.{event.micro_batch}" for event in order)


def equal_costs(pipeline, virtual_stages, forward=1.0, backward=2.0):
    chunks = pipeline * virtual_stages
    return PassCosts((forward,) * chunks, (backward,) * chunks)


def test_orders_in_full():
    assert words(pass_order(1, 1, 2, 0)) == "F0.0 B0.0 F0.1 B0.1"
    assert words(pass_order(2, 1, 3, 0)) == "F0.0 F0.1 B0.0 F0.2 B0.1 B0.2"
    assert words(pass_order(2, 1, 3, 1)) == "F0.0 B0.0 F0.1 B0.1 F0.2 B0.2"
    assert words(pass_order(4, 1, 2, 0)) == "F0.0 F0.1 B0.0 B0.1"
    assert words(pass_order(2, 2, 2, 0)) == "F0.0 F0.1 F1.0 F1.1 B1.0 B1.1 B0.0 B0.1"
    assert words(pass_order(2, 2, 2, 1)) == "F0.0 F0.1 F1.0 B1.0 F1.1 B1.1 B0.0 B0.1"
    assert words(pass_order(2, 2, 4, 1, forward_only=True)) == "F0.0 F0.1 F1.0 F1.1 F0.2 F0.3 F1.2 F1.3"


@pytest.mark.parametrize(("pipeline", "virtual_stages", "num_micro_batches"), SIZES)
def test_warm_up_and_order_are_megatron_cores(pipeline, virtual_stages, num_micro_batches):
    for rank in range(pipeline):
        group = SimpleNamespace(size=lambda: pipeline, rank=lambda rank=rank: rank)
        virtual = virtual_stages if virtual_stages > 1 else None
        _, _, warm_up, _ = schedules.get_pp_rank_microbatches(
            num_micro_batches,
            virtual_stages,
            pipeline,
            p2p_communicator=SimpleNamespace(pp_group=group, virtual_pipeline_model_parallel_size=virtual),
        )
        order = pass_order(pipeline, virtual_stages, num_micro_batches, rank)
        kinds = [event.kind for event in order]
        # the first backward pass comes after the warm-up and, unless all is warm-up, one more forward pass
        assert kinds.index("backward") == min(warm_up + 1, num_micro_batches * virtual_stages)
        forwards = [(event.micro_batch, event.chunk) for event in order if event.kind == "forward"]
        assert forwards == schedules.get_schedule_table(num_micro_batches, virtual_stages, pipeline)
        assert len(set(order)) == len(order) == 2 * num_micro_batches * virtual_stages


@pytest.mark.parametrize(("pipeline", "virtual_stages", "num_micro_batches"), SIZES)
@pytest.mark.parametrize(("forward", "backward"), [(1.0, 1.0), (1.0, 2.0), (2.0, 5.0)])
def test_bubble_of_equal_chunks(pipeline, virtual_stages, num_micro_batches, forward, backward):
    costs = equal_costs(pipeline, virtual_stages, forward, backward)
    timeline = plan_timeline(pipeline, virtual_stages, num_micro_batches, costs)
    ideal = ideal_bubble(pipeline, virtual_stages, num_micro_batches)
    assert timeline.bubble == pytest.approx(ideal, abs=1e-12)
    assert timeline.idle_share == pytest.approx(ideal / (1 + ideal), abs=1e-12)
    assert timeline.total == pytest.approx(num_micro_batches * virtual_stages * (forward + backward) * (1 + ideal))


def test_every_pass_waits_for_its_input_and_its_rank():
    costs = PassCosts((3.0, 1.0, 1.0, 2.0, 1.0, 4.0), (5.0, 2.0, 2.0, 4.0, 2.0, 9.0))
    timeline = plan_timeline(3, 2, 6, costs)
    ends, starts = {}, {}
    for rank, events in enumerate(timeline.ranks):
        for event in events:
            place = event.chunk * 3 + rank
            starts[event.kind, place, event.micro_batch] = event.start
            ends[event.kind, place, event.micro_batch] = event.end
            assert event.end - event.start == getattr(costs, event.kind)[place]
        assert all(before.end <= after.start for before, after in pairwise(events))
    for (kind, place, number), start in starts.items():
        if kind == "forward" and place > 0:
            assert start >= ends["forward", place - 1, number]
        if kind == "backward":
            after = ("backward", place + 1) if place < 5 else ("forward", place)
            assert start >= ends[(*after, number)]
    assert timeline.total == max(ends.values())
    assert timeline.busy == (6 * (3 + 5 + 2 + 4), 6 * (1 + 2 + 1 + 2), 6 * (1 + 2 + 4 + 9))


def test_the_slowest_stage_sets_the_pace():
    """Two stages, the second three times as slow: it never waits but for the first micro-batch."""
    timeline = plan_timeline(2, 1, 4, PassCosts((1.0, 3.0), (2.0, 6.0)))
    assert timeline.total == 1 + 4 * 9 + 2
    assert timeline.busy == (12.0, 36.0)
    assert timeline.idle_share == 1 - 48 / 78
    assert timeline.bubble == 78 / 48 - 1


def test_forward_only():
    timeline = plan_timeline(4, 1, 4, equal_costs(4, 1), forward_only=True)
    assert timeline.total == 4 + 3
    assert {event.kind for events in timeline.ranks for event in events} == {"forward"}


def test_an_order_that_cannot_run_is_noticed():
    order = [[Pass("backward", 0, 0), Pass("forward", 0, 0)], [Pass("forward", 0, 0), Pass("backward", 0, 0)]]
    with pytest.raises(AssertionError, match="the order cannot run"):
        simulate(order, equal_costs(2, 1))


def test_costs_of_a_plan():
    model = ["--model.num_layers=4", "--model.num_heads=4", "--model.hidden_size=64", "--model.vocab_size=1000"]
    steps = ["--train.steps=2", "--train.warmup_tokens=0", "--parallel.pipeline=2", "--train.batch_tokens=8192"]

    def costs(*arguments):
        plan = make_plan(load_config(None, [*model, *steps, *arguments]), 2, None)
        return pass_costs(plan.spec, plan.layout, plan.config.train)

    layer_gemms, attention, head = 2 * 12 * 64 * 64, 4 * 2048 * 64, 2 * 64 * 1024
    head_layers = head / (layer_gemms + attention)
    assert costs() == PassCosts(
        pytest.approx((2.0, 2 + head_layers)),
        pytest.approx((4.0, 4 + 2 * head_layers)),
    )
    assert costs("--train.recompute=full").backward == pytest.approx((6.0, 6 + 2 * head_layers))
    share = 2 * attention / (layer_gemms + attention)
    assert costs("--train.recompute=selective").backward == pytest.approx((4 + share, 4 + share + 2 * head_layers))
