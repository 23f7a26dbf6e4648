"""What limits a profiled run, and what to try: sentences with the numbers they follow from.

In: what each profiled rank measured, and the plan. Out: findings, the costliest first. Pure. A finding names only what
was measured, and only keys of the configuration that exist; whether a change helps, a second profile tells.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from megagpt.plan import RunPlan
from megagpt.training.profile_groups import Group
from megagpt.training.profile_rank import RankProfile, mean_share, worst_lost_core
from megagpt.training.profile_trace import PASS_PHASES, CostlyOperator, StepTimes
from megagpt.training.progress import Phase

# shares of a step from which a part is worth a finding
_WORTH = {
    Group.HOST: 0.05,
    Group.COMMUNICATION: 0.05,
    Group.POINTWISE: 0.15,
    Group.COPY: 0.05,
    Group.OPTIMIZER: 0.08,
    Group.DATA: 0.01,
    Group.OTHER: 0.05,
}
_LIMITS = 0.2  # the largest part beside matrices and attention limits the run from this share on
_GOOD_GEMM_RATE = 0.6  # of the dense peak; large products reach about 0.8 on H100 and H200
_ROOM = 0.75  # of a GPU's memory: below it there is room to spend
_LOST_CORES = 0.1  # of a step
_WAITS_WORTH = 2  # stops of the host inside forward and backward
_UNEVEN = 1.1  # a rank that computes this much longer than another makes it wait


class Finding(NamedTuple):
    """Something that costs time. `share`: of the step, of which it may save a part."""

    group: Group | None
    share: float
    what: str
    to_try: tuple[str, ...] = ()


def limit(profiles: Sequence[RankProfile]) -> str:
    """In one sentence, what the run is limited by."""
    worst, lost = worst_lost_core(profiles)
    if lost >= _LIMITS:
        return f"the machine: rank {worst} had no core for {lost:.0%} of the step"
    computing = mean_share(profiles, Group.GEMM, Group.ATTENTION)
    others = {group: mean_share(profiles, group) for group in Group if group not in (Group.GEMM, Group.ATTENTION)}
    largest = max(others, key=lambda group: others[group])
    if computing >= others[largest] and others[largest] < _LIMITS:
        return (
            f"computing: matrix multiplications and attention are {computing:.0%} of the step, and no other part is "
            f"over {_LIMITS:.0%}"
        )
    return (
        f"{largest.value}: {others[largest]:.0%} of the step, beside {computing:.0%} of matrix multiplications and "
        "attention"
    )


def findings(plan: RunPlan, profiles: Sequence[RankProfile], peak_tflops: float | None) -> list[Finding]:
    """All that is worth saying, the costliest first."""
    seekers: tuple[Callable[[RunPlan, Sequence[RankProfile]], Finding | None], ...] = (
        *(_host, _waiting_ranks, _communication, _pointwise, _copies, _optimizer, _data, _unknown, _host_waits),
        *(_lost_cores, _device_memory),
    )
    found = [finding for seek in seekers if (finding := seek(plan, profiles)) is not None]
    return sorted([_products(plan, profiles, peak_tflops), *found], key=lambda finding: -finding.share)


def _products(plan: RunPlan, profiles: Sequence[RankProfile], peak_tflops: float | None) -> Finding:
    share = mean_share(profiles, Group.GEMM, Group.ATTENTION)
    rates = [rate for profile in profiles if (rate := profile.times.gemm_flops_per_second) is not None]
    what = f"Matrix multiplications and attention, the work that a step is for, take {share:.0%} of it"
    to_try: list[str] = []
    if rates:
        rate = sum(rates) / len(rates) / 1e12
        what += f". Matrices are multiplied at {rate:,.3g} TFLOP/s"
        if peak_tflops is not None:
            what += f", {rate / peak_tflops:.0%} of the device's dense peak"
            if rate / peak_tflops < _GOOD_GEMM_RATE:
                to_try.append(_larger_products(plan))
    if not profiles[0].times.on_device and profiles[0].threads > 1:
        to_try.append(
            f"ranks with one thread each (OMP_NUM_THREADS=1) in place of {profiles[0].threads} threads a rank"
        )
    recomputed = plan.config.train.recompute == "full"
    if recomputed:
        to_try.append('train.recompute = "selective" or "none", or a larger train.recompute_every, if memory allows')
    return Finding(Group.GEMM, share, what, tuple(to_try))


def _host(plan: RunPlan, profiles: Sequence[RankProfile]) -> Finding | None:
    share = mean_share(profiles, Group.HOST)
    if share < _WORTH[Group.HOST]:
        return None
    times = max(profiles, key=lambda profile: profile.share(Group.HOST)).times
    phase, seconds = _largest_phase(times, Group.HOST)
    where = f"most of it in {phase} ({seconds / times.seconds:.0%})"
    if not times.on_device:
        return Finding(
            Group.HOST,
            share,
            f"Python and the cost of calling operators take {share:.0%} of the step, {where}",
            (_larger_products(plan),),
        )
    busy = times.seconds - times.group(Group.HOST) - times.group(Group.DATA)
    mean = busy / times.num_kernels * 1e6 if times.num_kernels else 0.0
    what = f"The GPU computes nothing in {share:.0%} of the step, {where}; it runs {times.num_kernels:,.0f} kernels a "
    what += f"step of {mean:.0f} µs on average"
    to_try = [_larger_products(plan)] if phase in PASS_PHASES else []
    if plan.layout.pipeline > 1:
        to_try += _fuller_pipeline(plan)
    return Finding(Group.HOST, share, what, tuple(to_try))


def _lost_cores(plan: RunPlan, profiles: Sequence[RankProfile]) -> Finding | None:
    """Where a rank without a GPU was ready to compute, and something else had its core."""
    worst, lost = worst_lost_core(profiles)
    if lost < _LOST_CORES:
        return None
    what = (
        f"Rank {worst} had no core for {lost:.0%} of the step, beside communication: something else ran there, and "
        "every part of the step looks longer than it is"
    )
    to_try = "nothing else on this machine, and ranks × OMP_NUM_THREADS no more than its cores"
    return Finding(None, lost, what, (to_try,))


def _waiting_ranks(plan: RunPlan, profiles: Sequence[RankProfile]) -> Finding | None:
    """Where one of the ranks computes longer, and others wait for it in their communication."""
    alike = [profile for profile in profiles if profile.place.split(",")[0] == profiles[0].place.split(",")[0]]
    if len(alike) < 2:
        return None
    own = {profile.rank: profile.times.seconds - profile.times.group(Group.COMMUNICATION) for profile in alike}
    slowest, fastest = max(own, key=lambda rank: own[rank]), min(own, key=lambda rank: own[rank])
    if own[slowest] < _UNEVEN * own[fastest]:
        return None
    gap = (own[slowest] - own[fastest]) / alike[0].times.seconds
    return Finding(
        Group.COMMUNICATION,
        gap,
        f"Rank {slowest} works {own[slowest]:.3f} s of a step and rank {fastest} {own[fastest]:.3f} s: rank {fastest} "
        f"waits for it {gap:.0%} of the step, within its communication",
        ("`megagpt health` on the slower rank's machine, and a look at what else runs there",),
    )


def _communication(plan: RunPlan, profiles: Sequence[RankProfile]) -> Finding | None:
    share = mean_share(profiles, Group.COMMUNICATION)
    if share < _WORTH[Group.COMMUNICATION]:
        return None
    times = max(profiles, key=lambda profile: profile.share(Group.COMMUNICATION)).times
    phase, seconds = _largest_phase(times, Group.COMMUNICATION)
    kinds = [collective.name for collective in times.collectives if collective.phase == phase][:2]
    what = (
        f"Communication that hides behind nothing, waiting for other ranks included, takes {share:.0%} of the step, "
        f"most of it in {phase} ({seconds / times.seconds:.0%}{': ' if kinds else ''}{', '.join(kinds)})"
    )
    if times.hidden_communication > 0.01 * times.seconds:
        what += f"; a further {times.hidden_communication / times.seconds:.0%} runs while something is computed"
    return Finding(Group.COMMUNICATION, share, what, tuple(_less_communication(plan, phase, len(profiles))))


def _less_communication(plan: RunPlan, phase: str, num_profiled: int) -> list[str]:
    layout = plan.layout
    to_try = []
    if phase == Phase.UPDATE.value and layout.data > 1:
        to_try.append(
            f"a larger train.batch_tokens (now {plan.config.train.batch_tokens:,}): gradients are summed once a step"
        )
    if phase in PASS_PHASES:
        if layout.zero_stage >= 2:
            to_try.append(f"a lower parallel.zero_stage (now {layout.zero_stage}) if memory allows: it sends less")
        if layout.tensor > 1:
            to_try.append(f"fewer tensor ranks (now {layout.tensor}), within one machine at most")
            if not layout.sequence_parallel:
                to_try.append("parallel.sequence_parallel = true")
        if layout.pipeline > 1:
            to_try += _fuller_pipeline(plan)
    if phase == Phase.SIGNS.value and num_profiled < layout.world_size:
        to_try.append("--profile-ranks all: ranks meet here and wait for the slowest; see which one computes longest")
    return to_try


def _pointwise(plan: RunPlan, profiles: Sequence[RankProfile]) -> Finding | None:
    share = mean_share(profiles, Group.POINTWISE)
    if share < _WORTH[Group.POINTWISE]:
        return None
    what = f"Operators that only pass over memory (norms, GELU, dropout, softmax, sums) take {share:.0%} of the step"
    what += _costliest(profiles, Group.POINTWISE)
    spec, to_try = plan.spec, []
    if not plan.config.train.compile:
        to_try.append("train.compile = true, which fuses more of them on some machines")
    if spec.hidden_dropout > 0 or spec.attention_dropout > 0:
        to_try.append(
            f"no dropout (model.hidden_dropout {spec.hidden_dropout:g}, model.attention_dropout "
            f"{spec.attention_dropout:g}), if the run sees its data once"
        )
    return Finding(Group.POINTWISE, share, what, tuple(to_try))


def _copies(plan: RunPlan, profiles: Sequence[RankProfile]) -> Finding | None:
    share = mean_share(profiles, Group.COPY)
    if share < _WORTH[Group.COPY]:
        return None
    what = f"Copies, casts and fills take {share:.0%} of the step{_costliest(profiles, Group.COPY)}"
    return Finding(Group.COPY, share, what)


def _optimizer(plan: RunPlan, profiles: Sequence[RankProfile]) -> Finding | None:
    share = mean_share(profiles, Group.OPTIMIZER)
    if share < _WORTH[Group.OPTIMIZER]:
        return None
    layout = plan.layout
    to_try = [
        f"a larger train.batch_tokens (now {plan.config.train.batch_tokens:,}): an update costs the same for any batch"
    ]
    if layout.gradient_ranks > 1 and layout.zero_stage == 0:
        to_try.append("parallel.zero_stage = 1, which divides the update over data ranks")
    if layout.offload_optimizer != "none":
        to_try.append('parallel.offload_optimizer = "none" if memory allows')
    what = (
        f"The update (gradients brought together, clipping, AdamW) takes {share:.0%} of the step beside communication"
    )
    return Finding(Group.OPTIMIZER, share, what, tuple(to_try))


def _data(plan: RunPlan, profiles: Sequence[RankProfile]) -> Finding | None:
    share = mean_share(profiles, Group.DATA)
    if share < _WORTH[Group.DATA]:
        return None
    what = f"The step waits for its data in {share:.1%} of its time"
    return Finding(Group.DATA, share, what, ("the dataset on a faster, local disk: reading waits for the file system",))


def _unknown(plan: RunPlan, profiles: Sequence[RankProfile]) -> Finding | None:
    share = mean_share(profiles, Group.OTHER)
    if share < _WORTH[Group.OTHER]:
        return None
    names = _costliest(profiles, Group.OTHER)
    return Finding(Group.OTHER, share, f"Kernels that megagpt has no name for take {share:.0%} of the step{names}")


def _host_waits(plan: RunPlan, profiles: Sequence[RankProfile]) -> Finding | None:
    """Stops of the host inside the passes, where nothing should make it wait for the device."""
    for profile in profiles:
        for waits in profile.times.waits:
            if waits.phase in PASS_PHASES and waits.calls >= _WAITS_WORTH:
                share = waits.seconds / profile.times.seconds
                what = (
                    f"The host of rank {profile.rank} stands still {waits.calls:,.0f} times a step inside forward and "
                    f"backward until the GPU is done ({share:.0%} of the step): it cannot launch ahead there"
                )
                return Finding(
                    Group.HOST, 0.0, what, ("the calls named cudaStreamSynchronize in the trace show where",)
                )
    return None


def _device_memory(plan: RunPlan, profiles: Sequence[RankProfile]) -> Finding | None:
    fullest = max(profiles, key=lambda profile: profile.memory.reserved)
    memory, train = fullest.memory, plan.config.train
    if not memory.on_device:
        return None
    if memory.retries:
        what = (
            f"torch's allocator had to empty its cache {memory.retries} times on rank {fullest.rank} to find memory: "
            "each time the GPU stands still"
        )
        return Finding(
            None,
            0.0,
            what,
            (
                f"a smaller train.micro_batch_size (now {train.micro_batch_size})",
                "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True",
            ),
        )
    used = memory.reserved / memory.capacity
    if used >= _ROOM:
        return None
    to_try = [_larger_products(plan)]
    if train.recompute != "none":
        to_try.append('train.recompute = "none"')
    what = f"{1 - used:.0%} of the GPU's memory is never used on the fullest rank ({fullest.rank})"
    return Finding(None, 0.0, what, tuple(to_try))


def _larger_products(plan: RunPlan) -> str:
    train, layout = plan.config.train, plan.layout
    sequences = train.batch_tokens // plan.spec.sequence_length // layout.data
    if train.micro_batch_size < sequences:
        return (
            f"a larger train.micro_batch_size (now {train.micro_batch_size} of the {sequences} sequences that a data "
            "rank has in a step)"
        )
    return f"a larger train.batch_tokens (now {train.batch_tokens:,}): a rank's micro-batch is all it has in a step"


def _fuller_pipeline(plan: RunPlan) -> list[str]:
    to_try = [
        "--trace, which shows what pipeline ranks wait for",
        "a smaller train.micro_batch_size, for more micro-batches",
    ]
    if plan.layout.uneven_layers is None:
        to_try.append("parallel.stage_layers, with fewer layers beside the output head")
    return to_try


def _largest_phase(times: StepTimes, group: Group) -> tuple[str, float]:
    seconds = {phase: times.phase(phase).get(group, 0.0) for phase in times.phases}
    phase = max(seconds, key=lambda name: seconds[name])
    return phase or "between phases", seconds[phase]


def _costliest(profiles: Sequence[RankProfile], group: Group) -> str:
    of_group: list[CostlyOperator] = [one for one in profiles[0].times.operators if one.group is group][:2]
    if not of_group:
        return ""
    seconds = profiles[0].times.seconds
    return "; the costliest: " + ", ".join(f"{one.name} ({one.seconds / seconds:.1%})" for one in of_group)
