"""The dress rehearsal: the real model, schedule, engine and DeepSpeed of one rank, on tensors that have no values.

In: a RunPlan, a rank, a number of micro-batches. Out: Rehearsal, all that was counted; or a TrainingError where shards
are not the model, or the passes ran in another order than planned. One process, no GPU; nothing is left behind.
"""

from collections import Counter
from dataclasses import dataclass, replace
from itertools import zip_longest

from megagpt.errors import ConfigError, TrainingError
from megagpt.model.names import parameter_shapes
from megagpt.parallel.engine import Engine
from megagpt.parallel.mesh import Mesh
from megagpt.plan import RunPlan
from megagpt.plan_schedule import Pass, Timeline, pass_costs, pass_order, plan_timeline
from megagpt.rehearse.collectives import Collective, scale_counts
from megagpt.rehearse.coverage import Coverage, check_coverage
from megagpt.rehearse.slices import Place, Slice, model_places, recorded_slices, slices_of_place
from megagpt.rehearse.step import logit_widths, make_micro_batches, mark_state, run_step, watched_modules
from megagpt.rehearse.storages import MemoryPeak, MemoryUse, StorageLog
from megagpt.rehearse.watch import Watch
from megagpt.rehearse.world import fake_tensors, fake_world
from megagpt.rehearse.zero_shards import ZeroShards, check_zero_shards
from megagpt.training.build import build_engine

# passes of layers that are run without being asked: a few minutes at most on one core
_LAYER_PASSES = 400


@dataclass(frozen=True)
class RankPlace:
    """A rank on every axis."""

    rank: int
    tensor_rank: int
    context_rank: int
    data_rank: int
    pipeline_rank: int


@dataclass(frozen=True)
class Rehearsal:
    """What one rank does and holds in one step. `collectives` are of a step of all micro-batches."""

    plan: RunPlan
    place: RankPlace
    coverage: Coverage
    zero: ZeroShards | None
    micro_batches_run: tuple[int, ...]  # more than one: collectives of the whole step follow from these
    memory: MemoryUse  # of the longest step that was run
    building: MemoryPeak
    collectives: Counter[Collective]
    order: tuple[Pass, ...]  # of the shortest step that was run; equal to the plan's
    timeline: Timeline  # of all pipeline ranks and micro-batches, as planned


def rehearse(plan: RunPlan, rank: int | None = None, num_micro_batches: int | None = None) -> Rehearsal:
    """Rehearse one step of a plan at its full batch, on `rank` (None: the first of those with the fullest GPU).

    `num_micro_batches`: how many are run (None: all, or, where those are many, enough for the pipeline to fill, run
    steadily and drain); the collectives of all follow from three lengths of the step. Raises ConfigError for a rank or
    number that the plan has not, TrainingError where what is built or run is not what is planned.
    """
    rank = _checked_rank(plan, rank)
    _check_offload(plan)
    lengths = _step_lengths(plan, num_micro_batches)
    slices = [part for place in model_places(plan) for part in slices_of_place(plan, place)]
    layout = plan.layout
    coverage = check_coverage(parameter_shapes(plan.spec), slices, layout.tensor, layout.pipeline)
    with fake_world(layout, rank) as mesh, fake_tensors():
        own = Place(rank, mesh.tensor_rank, mesh.pipeline_rank)
        storages = StorageLog(logit_widths(plan, mesh))
        with Watch(mesh, storages, gathers_weights=layout.zero_stage == 3) as watch:
            with recorded_slices(plan.spec, own) as built:
                engine = build_engine(_without_compile(plan), mesh)
            mark_state(engine, plan, storages)
            _check_same_slices(built, [part for part in slices if part.place[1:] == own[1:]])
            zero = check_zero_shards(engine)
            built_at = storages.clock
            ran = _run_steps(engine, plan, watch, lengths)
        building, memory = storages.use(0, built_at), storages.use(ran.begin, storages.clock)
        place = _place(mesh)
    if len(lengths) == 1:
        collectives = ran.counts[lengths[0]]
    else:
        collectives = scale_counts(ran.counts, plan.batches.stages[-1].num_micro_batches)
    return Rehearsal(
        plan, place, coverage, zero, lengths, memory, building.peak, collectives, ran.order, _planned_timeline(plan)
    )


def _without_compile(plan: RunPlan) -> RunPlan:
    """Fake tensors compile to nothing; the regions that a run compiles keep what torch's operations keep, or less."""
    train = plan.config.train.model_copy(update={"compile": False})
    return replace(plan, config=plan.config.model_copy(update={"train": train}))


@dataclass(frozen=True)
class _Ran:
    """Counts by length of the step, the order of the shortest, and where the log's clock stood before the first."""

    begin: int
    counts: dict[int, Counter[Collective]]
    order: tuple[Pass, ...]


def _run_steps(engine: Engine, plan: RunPlan, watch: Watch, lengths: tuple[int, ...]) -> _Ran:
    """A short step first, in which DeepSpeed makes its buffers and ZeRO 3 learns the order of parameters."""
    mesh, layout = engine.mesh, plan.layout
    counts: dict[int, Counter[Collective]] = {}
    orders = []
    with watched_modules(engine, watch.storages):
        first = layout.pipeline if layout.virtual_stages > 1 else 1
        run_step(engine, plan, watch, make_micro_batches(plan, mesh, first))
        begin = watch.storages.clock
        for length in lengths:
            watch.collectives = counts[length] = Counter()
            order = run_step(engine, plan, watch, make_micro_batches(plan, mesh, length))
            _check_order(order, pass_order(layout.pipeline, layout.virtual_stages, length, mesh.pipeline_rank))
            orders.append(order)
    return _Ran(begin, counts, orders[0])


def _step_lengths(plan: RunPlan, asked: int | None) -> tuple[int, ...]:
    """Micro-batches of the steps to run: all at once, or three lengths from which the rest follows."""
    layout = plan.layout
    whole = plan.batches.stages[-1].num_micro_batches
    unit = layout.pipeline if layout.virtual_stages > 1 else 1
    if asked is not None and (asked < 1 or asked > whole or asked % unit):
        wanted = f"a multiple of {unit} (interleaved schedule) " if unit > 1 else "a number "
        raise ConfigError(
            f"--micro-batches {asked} cannot be rehearsed: use {wanted}from {unit} to {whole}, which is the whole step"
        )
    layers = max(
        sum(stage.num_layers for stage in layout.chunks(pipeline_rank)) for pipeline_rank in range(layout.pipeline)
    )
    fills = 2 * layout.pipeline if layout.virtual_stages > 1 else layout.pipeline + 1
    shortest = asked if asked is not None else (whole if whole * layers <= _LAYER_PASSES else fills)
    longest = shortest + 2 * unit
    return (shortest, shortest + unit, longest) if longest < whole else (whole,)


def _checked_rank(plan: RunPlan, rank: int | None) -> int:
    layout = plan.layout
    if rank is None:
        fullest = plan.peak_memory.pipeline_rank
        return next(place.rank for place in model_places(plan) if place.pipeline_rank == fullest)
    if not 0 <= rank < layout.world_size:
        raise ConfigError(
            f"--rank {rank} is none of the run's {layout.world_size} ranks; use 0 to {layout.world_size - 1}"
        )
    return rank


def _check_offload(plan: RunPlan) -> None:
    if plan.layout.offload_parameters == "nvme":
        raise ConfigError(
            'parallel.offload_parameters = "nvme" cannot be rehearsed, as values would be written to files; rehearse '
            '"cpu": GPU memory and collectives are the same'
        )


def _check_same_slices(built: list[Slice], planned: list[Slice]) -> None:
    """The engine's model holds what the place holds in a replica of its own."""
    own = {(part.name, part.start, part.stop) for part in built}
    other = {(part.name, part.start, part.stop) for part in planned}
    if own != other:
        names = ", ".join(sorted({name for name, _, _ in own ^ other})[:8])
        raise TrainingError(f"the engine on {planned[0].place} holds other slices than its place in the model: {names}")


def _check_order(ran: tuple[Pass, ...], planned: tuple[Pass, ...]) -> None:
    if ran == planned:
        return
    pairs = list(zip_longest(ran, planned))
    at = next(number for number, (one, other) in enumerate(pairs) if one != other)
    raise TrainingError(
        f"the schedule ran {len(ran)} passes, the plan has {len(planned)}; the first that differs is number {at + 1}: "
        f"{pairs[at][0]} ran, {pairs[at][1]} is planned"
    )


def _planned_timeline(plan: RunPlan) -> Timeline:
    layout = plan.layout
    costs = pass_costs(plan.spec, layout, plan.config.train)
    return plan_timeline(layout.pipeline, layout.virtual_stages, plan.batches.stages[-1].num_micro_batches, costs)


def _place(mesh: Mesh) -> RankPlace:
    return RankPlace(mesh.rank, mesh.tensor_rank, mesh.context_rank, mesh.data_rank, mesh.pipeline_rank)
