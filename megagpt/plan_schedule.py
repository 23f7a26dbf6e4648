"""The order in which each pipeline rank runs its forward and backward passes, and how long that takes.

In: sizes of the pipeline and what each model chunk's passes cost. Out: passes in order, and a simulated Timeline.
Pure: knows nothing of torch or of processes. The orders are megatron-core's
(`pipeline_parallel/schedules.py`: no pipelining, 1F1B, and interleaved 1F1B in groups of as many micro-batches as there
are pipeline ranks); tests compare them with what ranks really ran.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from megagpt.config import TrainSection
from megagpt.model.cost import flops_per_token, head_cost_in_layers
from megagpt.model.spec import ModelSpec
from megagpt.plan_layout import Layout, StagePlan

_BACKWARD_FLOPS = 2  # a backward pass has two matrix products for each one of the forward pass


class Pass(NamedTuple):
    """One micro-batch through one model chunk of a rank. `chunk` counts the chunks of that rank from 0."""

    kind: Literal["forward", "backward"]
    chunk: int
    micro_batch: int


class TimedPass(NamedTuple):
    """A pass with its start and end, in the unit of the durations it was made from."""

    kind: Literal["forward", "backward"]
    chunk: int
    micro_batch: int
    start: float
    end: float


class PassCosts(NamedTuple):
    """Durations of one micro-batch's passes through each model chunk, chunks in the order a token passes them."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]


@dataclass(frozen=True)
class Timeline:
    """What every pipeline rank does when, in one step without the reduction of gradients and the update.

    `ranks[r]` holds the passes of pipeline rank r in order; `total` is when the last one ends, the first starts at 0.
    """

    ranks: tuple[tuple[TimedPass, ...], ...]
    total: float

    @property
    def busy(self) -> tuple[float, ...]:
        """Time each rank computes."""
        return tuple(sum(event.end - event.start for event in events) for events in self.ranks)

    @property
    def idle_share(self) -> float:
        """Share of all ranks' time in which they wait, from 0 to below 1."""
        return 1 - sum(self.busy) / (len(self.ranks) * self.total)

    @property
    def bubble(self) -> float:
        """Time that ranks wait over time that they compute; with equal chunks `ideal_bubble`."""
        return len(self.ranks) * self.total / sum(self.busy) - 1


def ideal_bubble(pipeline: int, virtual_stages: int, num_micro_batches: int) -> float:
    """Waiting over computing where all chunks cost the same: (p - 1) / (v m). Narayanan et al. 2021, §2.2."""
    return (pipeline - 1) / (virtual_stages * num_micro_batches)


def pass_order(
    pipeline: int, virtual_stages: int, num_micro_batches: int, pipeline_rank: int, forward_only: bool = False
) -> tuple[Pass, ...]:
    """Every pass of one pipeline rank in one step, in the order in which it runs them.

    Interleaved (`virtual_stages` over 1), the number of micro-batches must be a multiple of `pipeline`; the plan checks
    that. `forward_only`: an evaluation.
    """
    assert 0 <= pipeline_rank < pipeline, (pipeline_rank, pipeline)
    assert virtual_stages == 1 or (pipeline > 1 and num_micro_batches % pipeline == 0), (pipeline, num_micro_batches)
    pairs = _chunk_order(pipeline, virtual_stages, num_micro_batches)
    forwards = [Pass("forward", chunk, micro_batch) for chunk, micro_batch in pairs]
    if forward_only:
        return tuple(forwards)
    backwards = [Pass("backward", virtual_stages - 1 - chunk, micro_batch) for chunk, micro_batch in pairs]
    warm_up = min(_num_warm_up(pipeline, virtual_stages, pipeline_rank), len(forwards))
    steady = [event for both in zip(forwards[warm_up:], backwards, strict=False) for event in both]
    return (*forwards[:warm_up], *steady, *backwards[len(forwards) - warm_up :])


def simulate(order: Sequence[Sequence[Pass]], costs: PassCosts) -> Timeline:
    """Start and end of every pass where `order[r]` holds those of pipeline rank r. Sending takes no time.

    A pass starts when its rank has ended the one before it in order, and when its input is there: forward, the output
    of the chunk before it in the model; backward, the gradient from the chunk after it.
    """
    num_ranks = len(order)
    assert len(costs.forward) == len(costs.backward) == num_ranks * _num_chunks(order), (costs, num_ranks)
    ended: dict[tuple[str, int, int], float] = {}  # (kind, chunk in the model, micro-batch): time
    timed: list[list[TimedPass]] = [[] for _ in order]
    remaining = sum(map(len, order))
    while remaining:
        before = remaining
        for rank, events in enumerate(order):
            while len(timed[rank]) < len(events):
                event = events[len(timed[rank])]
                place = event.chunk * num_ranks + rank
                inputs = [ended.get(key) for key in _inputs(event, place, len(costs.forward))]
                if None in inputs:
                    break
                start = max([time for time in inputs if time is not None], default=0.0)
                start = max(start, timed[rank][-1].end if timed[rank] else 0.0)
                end = start + getattr(costs, event.kind)[place]
                ended[event.kind, place, event.micro_batch] = end
                timed[rank].append(TimedPass(*event, start, end))
                remaining -= 1
        assert remaining < before, "every rank waits for another one: the order cannot run"
    return Timeline(tuple(map(tuple, timed)), max(ended.values(), default=0.0))


def plan_timeline(
    pipeline: int, virtual_stages: int, num_micro_batches: int, costs: PassCosts, forward_only: bool = False
) -> Timeline:
    """The timeline of one step with megatron-core's order."""
    ranks = range(pipeline)
    order = [pass_order(pipeline, virtual_stages, num_micro_batches, rank, forward_only) for rank in ranks]
    return simulate(order, costs)


def pass_costs(spec: ModelSpec, layout: Layout, train: TrainSection) -> PassCosts:
    """What the passes of each chunk cost by their FLOPs, in forward passes of one decoder layer.

    The output head counts, the embedding does not; a backward pass costs twice its forward pass and, with
    recomputation, what is run again.
    """
    forward, backward = [], []
    for stage in layout.stages:
        cost = stage.num_layers + (head_cost_in_layers(spec) if stage.has_head else 0.0)
        forward.append(cost)
        backward.append(_BACKWARD_FLOPS * cost + _recomputed_layers(spec, stage, train))
    return PassCosts(tuple(forward), tuple(backward))


def _num_warm_up(pipeline: int, virtual_stages: int, pipeline_rank: int) -> int:
    """Forward passes before the first backward pass (schedules.py, get_pp_rank_microbatches)."""
    ranks_after = pipeline - pipeline_rank - 1
    return ranks_after if virtual_stages == 1 else 2 * ranks_after + (virtual_stages - 1) * pipeline


def _chunk_order(pipeline: int, virtual_stages: int, num_micro_batches: int) -> list[tuple[int, int]]:
    """(chunk, micro-batch) of the forward passes in order (schedules.py, get_schedule_table)."""
    if virtual_stages == 1:
        return [(0, micro_batch) for micro_batch in range(num_micro_batches)]
    return [
        (chunk, micro_batch)
        for first in range(0, num_micro_batches, pipeline)
        for chunk in range(virtual_stages)
        for micro_batch in range(first, first + pipeline)
    ]


def _num_chunks(order: Sequence[Sequence[Pass]]) -> int:
    return 1 + max((event.chunk for events in order for event in events), default=0)


def _inputs(event: Pass, place: int, num_places: int) -> list[tuple[str, int, int]]:
    """The passes whose ends a pass of the chunk at `place` in the model waits for, but for its own rank's order."""
    if event.kind == "forward":
        return [("forward", place - 1, event.micro_batch)] if place > 0 else []
    own = ("forward", place, event.micro_batch)
    return [own, ("backward", place + 1, event.micro_batch)] if place + 1 < num_places else [own]


def _recomputed_layers(spec: ModelSpec, stage: StagePlan, train: TrainSection) -> float:
    """Forward passes of a layer that a backward pass through the chunk runs again."""
    if train.recompute == "full":
        numbers = range(stage.first_layer, stage.first_layer + stage.num_layers)
        return float(sum(number % train.recompute_every == 0 for number in numbers))
    if train.recompute == "selective":
        flops = flops_per_token(spec)
        return stage.num_layers * flops.attention / (flops.layers + flops.attention)
    return 0.0
