"""The page RUN/profile/…/profile.md and its short form for the console: where a step's time went and what limits it.

In: what the profiled ranks measured, the plan, the findings. Out: text. Pure.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from megagpt.plan import RunPlan
from megagpt.plan_layout import describe_axes
from megagpt.training.profile_findings import Finding, limit
from megagpt.training.profile_groups import Group
from megagpt.training.profile_memory import MemoryUse
from megagpt.training.profile_rank import RankProfile, mean_share

_BAR = 30
_MOST_COLUMNS = 8  # ranks beside one another in a table; of more, the fastest, the mean and the slowest
_MOST_ROWS = 12
_MOST_FINDINGS = 3  # on the console
_MIB = 2**20
_UNLIKE = 0.2  # a profiled step that takes so much more or less than others tells little
_EXPLAINED = {
    Group.GEMM: "QKV, attention output, feed-forward and output head, forward and backward",
    Group.ATTENTION: "scores, softmax and weighted values, forward and backward",
    Group.POINTWISE: "LayerNorm, GELU, dropout, residual sums, cross-entropy, embedding",
    Group.COPY: "moving, casting, clearing",
    Group.OPTIMIZER: "gradients brought together, clipping, AdamW: all of the update but communication",
    Group.COMMUNICATION: "while nothing is computed; waiting for other ranks included",
    Group.DATA: "the next batch is read while nothing is computed",
    Group.OTHER: "nobody gave them a group",
    Group.HOST: "nothing is computed: the host has not asked for anything yet, or Python runs",
}


@dataclass(frozen=True)
class ProfileReport:
    """All that a page is made of."""

    plan: RunPlan
    steps: range  # 0-based
    run_folder: str
    time: str
    profiles: tuple[RankProfile, ...]
    findings: tuple[Finding, ...]
    files: tuple[str, ...]  # names of the other files of the page's folder
    peak_tflops: float | None = None  # dense, of a device; None: not known

    @property
    def steps_words(self) -> str:
        """`step 4` or `steps 4 to 5`, counted from 1."""
        first, last = self.steps[0] + 1, self.steps[-1] + 1
        return f"step {first}" if first == last else f"steps {first} to {last}"


def console_lines(report: ProfileReport) -> list[str]:
    """The page in a few lines."""
    seconds = _mean_seconds(report)
    lines = [
        f"profile of {report.steps_words} on {_ranks_words(report.profiles)}: {seconds:.3f} s a step{_beside(report)}"
    ]
    for group, share in _shares(report):
        bar = "█" * round(share * _BAR)
        lines.append(f"  {group.value:26} {share:6.1%}  {bar}".rstrip())
    lines.append(f"limited by {limit(report.profiles)}")
    for finding in report.findings[:_MOST_FINDINGS]:
        lines.append(f"  - {finding.what}")
        lines += [f"      try {word}" for word in finding.to_try]
    return [*lines, *([_doubt(report).strip()] if _doubt(report) else [])]


def profile_page(report: ProfileReport) -> str:
    """The page, in Markdown."""
    parts = [
        _head(report),
        _parts_table(report),
        _phase_table(report),
        _findings_list(report),
        _operators_table(report),
        _collectives_table(report),
        _memory_words(report),
        _files_list(report),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(report: ProfileReport) -> str:
    plan = report.plan
    layout, train, seconds = plan.layout, plan.config.train, _mean_seconds(report)
    axes = describe_axes(layout.tensor, layout.context, layout.pipeline, layout.data)
    ranks = f"{layout.world_size} rank{'s' if layout.world_size > 1 else ''}"
    devices = ", ".join(sorted({profile.device for profile in report.profiles}))
    tokens = plan.step_batch(report.steps[-1]).num_sequences * plan.spec.sequence_length
    rate = tokens / (report.profiles[0].plain_seconds or seconds)
    tflops = rate * plan.flops.total / layout.world_size / 1e12
    mfu = f" ({tflops / report.peak_tflops:.1%} of its dense peak)" if report.peak_tflops else ""
    without = ", by the steps without the profiler" if report.profiles[0].plain_seconds else ""
    return "\n".join(
        [
            f"# Profile of {report.steps_words} of {report.run_folder}",
            "",
            f"**Limited by {limit(report.profiles)}.**",
            "",
            f"{plan.spec.name}, {plan.parameters.total:,} parameters, {train.precision}, {tokens:,} tokens a step in "
            f"micro-batches of at most {train.micro_batch_size} × {plan.spec.sequence_length}; {ranks} ({axes}, ZeRO "
            f"{layout.zero_stage}) on {devices}. Profiled: {_ranks_words(report.profiles)}, {report.time}.",
            "",
            f"A step took {seconds:.3f} s{_beside(report)}: {rate:,.0f} tokens/s and {tflops:.3g} model TFLOP/s a "
            f"device{mfu}{without}.{_doubt(report)}",
        ]
    )


def _parts_table(report: ProfileReport) -> str:
    """Groups against ranks."""
    many = len(report.profiles) > _MOST_COLUMNS
    names = ["least", "mean", "most"] if many else [f"rank {profile.rank}" for profile in report.profiles]
    rows = []
    for group, _ in _shares(report):
        shares = [profile.share(group) for profile in report.profiles]
        shown = [min(shares), sum(shares) / len(shares), max(shares)] if many else shares
        seconds = sum(profile.times.group(group) for profile in report.profiles) / len(report.profiles)
        rows.append([group.value, f"{seconds * 1e3:,.1f}", *(f"{share:.1%}" for share in shown), _EXPLAINED[group]])
    device = "the GPU's time" if report.profiles[0].times.on_device else "the main thread's time"
    title = f"## Where a step's time goes\n\nOf {device}; the parts add up to the step.\n\n"
    return title + _table(["part", "ms a step", *names, "what it is"], rows, 1 + len(names))


def _phase_table(report: ProfileReport) -> str:
    times = report.profiles[0].times
    rows = []
    for phase in times.phases:
        parts = times.phase(phase)
        total = sum(parts.values())
        if total < 5e-4 * times.seconds:
            continue
        largest = sorted(parts, key=lambda group: -parts[group])[:3]
        words = ", ".join(
            f"{group.value} {parts[group] / total:.0%}" for group in largest if parts[group] >= 0.01 * total
        )
        rows.append([phase or "between phases", f"{total * 1e3:,.1f}", f"{total / times.seconds:.1%}", words])
    title = f"## Phases of the step on rank {report.profiles[0].rank}\n\n"
    return title + _table(["phase", "ms a step", "share", "of which"], rows, 2)


def _findings_list(report: ProfileReport) -> str:
    lines = ["## What limits it, and what to try", ""]
    for finding in report.findings:
        lines.append(f"- {finding.what}.")
        lines += [f"  - try {word}" for word in finding.to_try]
    lines += ["", "What to try follows from this profile alone: change one thing, and profile again."]
    return "\n".join(lines)


def _operators_table(report: ProfileReport) -> str:
    profile = report.profiles[0]
    what = "kernel, with the operator that asked for it" if profile.times.on_device else "operator"
    rows = [
        [f"`{one.name}`", one.group.value, f"{one.calls:,.0f}", f"{one.seconds * 1e3:,.1f}"]
        + [f"{one.seconds / profile.times.seconds:.1%}", f"{one.seconds / one.calls * 1e6:,.0f}"]
        for one in profile.times.operators[:_MOST_ROWS]
    ]
    title = f"## The costliest operators of rank {profile.rank}\n\nTime of their own, without what they call.\n\n"
    return title + _table([what, "part", "calls a step", "ms a step", "share", "µs a call"], rows, 4, first_number=2)


def _collectives_table(report: ProfileReport) -> str:
    profile = report.profiles[0]
    rows = [
        [one.name, one.phase or "between phases", f"{one.calls:,.0f}", f"{one.seconds * 1e3:,.1f}"]
        for one in profile.times.collectives[:_MOST_ROWS]
    ]
    if not rows:
        return ""
    hidden = profile.times.hidden_communication
    title = (
        f"## Communication of rank {profile.rank}\n\nFrom the start of a call to its end, waiting for other ranks "
        f"included; {hidden * 1e3:,.1f} ms of a step run while something is computed.\n\n"
    )
    return title + _table(["call", "phase", "calls a step", "ms a step"], rows, 2, first_number=2)


def _memory_words(report: ProfileReport) -> str:
    lines = ["## Memory", ""]
    for profile in report.profiles[:_MOST_COLUMNS]:
        lines.append(f"- rank {profile.rank}: {_memory_line(profile.memory)}")
    memory = report.profiles[0].memory
    if memory.on_device:
        estimate = report.plan.memory[0].total_bytes
        lines.append(f"- the plan's estimate of the first stage: {_size(estimate)}")
    if memory.holders:
        lines += [
            "",
            f"Tensors of rank {report.profiles[0].rank} at the fullest moment, by the operator that made them:",
            "",
        ]
        rows = [[f"`{one.name}`", _size(one.bytes), f"{one.tensors:,}"] for one in memory.holders]
        lines.append(_table(["operator", "size", "tensors"], rows, 2))
    return "\n".join(lines)


def _memory_line(memory: MemoryUse) -> str:
    if memory.on_device:
        return (
            f"{_size(memory.before)} before a step, {_size(memory.peak)} at its fullest moment; torch held "
            f"{_size(memory.reserved)} of the GPU's {_size(memory.capacity)}"
            + (f" and had to empty its cache {memory.retries} times" if memory.retries else "")
        )
    return (
        f"the process had {_size(memory.before)} of the machine's {_size(memory.capacity)} when the steps began, and "
        f"tensors rose by up to {_size(memory.rise)} within them"
    )


def _files_list(report: ProfileReport) -> str:
    lines = ["## Files", "", "| file | what |", "|---|---|"]
    for name in report.files:
        what = (
            "memory of a step with stacks: drop it on https://pytorch.org/memory_viz"
            if name.endswith(".pickle")
            else "what ran when: open it at https://ui.perfetto.dev"
        )
        lines.append(f"| `{name}` | {what} |")
    return "\n".join(lines)


def _shares(report: ProfileReport) -> list[tuple[Group, float]]:
    """Groups in their order with their mean share; without those that hardly exist."""
    shares = [(group, mean_share(report.profiles, group)) for group in Group]
    return [(group, share) for group, share in shares if share >= 5e-4]


def _mean_seconds(report: ProfileReport) -> float:
    return sum(profile.times.seconds for profile in report.profiles) / len(report.profiles)


def _beside(report: ProfileReport) -> str:
    """What a step takes without the profiler, as far as it is known."""
    plain = report.profiles[0].plain_seconds
    if plain is None:
        return ""
    change = _mean_seconds(report) / plain - 1
    return f" ({plain:.3f} s without the profiler: {change:+.0%})"


def _doubt(report: ProfileReport) -> str:
    """Where profiled steps are unlike others, that shares may be, too."""
    plain = report.profiles[0].plain_seconds
    if plain is None or abs(_mean_seconds(report) / plain - 1) < _UNLIKE:
        return ""
    return (
        " The profiled steps are unlike the others: either the profiler slows this run, or the machine was busy with "
        "something else. Read the shares with care, or profile again."
    )


def _ranks_words(profiles: Sequence[RankProfile]) -> str:
    ranks = [profile.rank for profile in profiles]
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = ", ".join(map(str, ranks[:_MOST_COLUMNS]))
    return f"ranks {shown}{f' and {len(ranks) - _MOST_COLUMNS} more' if len(ranks) > _MOST_COLUMNS else ''}"


def _size(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 2**30 else f"{size / _MIB:,.1f} MiB"


def _table(titles: list[str], rows: list[list[str]], num_numbers: int, first_number: int = 1) -> str:
    """A Markdown table; numbers to the right, from column `first_number` on."""
    numbers = range(first_number, first_number + num_numbers)
    rule = "|".join("---:" if column in numbers else "---" for column in range(len(titles)))
    return (
        "\n".join(f"| {' | '.join(row)} |" for row in [titles])
        + f"\n|{rule}|\n"
        + "\n".join(f"| {' | '.join(row)} |" for row in rows)
    )
