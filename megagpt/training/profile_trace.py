"""What a profiler's trace says about the steps in it: how long each part took, the costliest operators, collectives.

In: events of torch.profiler's Chrome trace (Kineto), with ranges named "step N" and ranges named as the phases of
progress.py. Out: StepTimes. Pure; knows nothing of runs. Benchmarks may use it on any model: torch's own ranges
"ProfilerStep#N" and "Optimizer.step#…" serve as well.

On a GPU the time is the device's: a moment belongs to the kernel that runs, else the device is idle. On the CPU it is
the main thread's: the innermost operator, else communication that is under way, else Python.
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from megagpt.training.profile_groups import Group, kernel_group, operator_group
from megagpt.training.profile_timeline import Nested, Phases, Span, Stretch, cut, own_times
from megagpt.training.progress import Phase

Event = dict[str, Any]

STEP_RANGE = "step "
PASS_RANGES = ("forward pass", "backward pass")  # parts of the phase of both, where a trace has them
BETWEEN_PASSES = "between passes"
PASS_PHASES = frozenset({*PASS_RANGES, BETWEEN_PASSES, Phase.PASSES.value})
_DATA_PHASES = frozenset({Phase.DATA.value, Phase.TOKENS.value})
_PHASES = frozenset(phase.value for phase in Phase)
_DEVICE_CATEGORIES = frozenset({"kernel", "gpu_memcpy", "gpu_memset"})
_RUNTIME_CATEGORIES = frozenset({"cuda_runtime", "cuda_driver"})
_WAITS = ("Synchronize", "cudaMemcpy")  # cudaMemcpyAsync returns at once and is none
_TURNED_PRODUCT = "mkldnn::_linear_pointwise"  # its right factor is [N, K]
# what multiplies matrices by itself: (left factor, right factor) among its inputs
_PRODUCTS = {"aten::mm": (0, 1), "aten::addmm": (1, 2), "aten::bmm": (0, 1), "aten::baddbmm": (1, 2)} | {
    "aten::_scaled_mm": (0, 1),
    "aten::_addmm_activation": (1, 2),
    _TURNED_PRODUCT: (0, 1),
}
_MOST_OPERATORS = 15
_LONGEST_NAME = 60


class CostlyOperator(NamedTuple):
    """An operator with the shapes it was called on, and on a GPU its kernel."""

    name: str
    group: Group
    seconds: float  # of a step
    calls: float  # in a step


class Collective(NamedTuple):
    """Calls of one kind of communication in one phase; seconds from start to end, waiting for other ranks included."""

    name: str
    phase: str
    seconds: float  # of a step, hidden or not
    calls: float  # in a step


class HostWaits(NamedTuple):
    """Where the host stood still until the device was done."""

    phase: str
    seconds: float  # of a step
    calls: float  # in a step


@dataclass(frozen=True)
class StepTimes:
    """One rank's profiled steps. Times are seconds of a mean step."""

    num_steps: int
    seconds: float
    on_device: bool  # the times are a GPU's
    by_phase: dict[tuple[str, Group], float]  # adds up to `seconds`
    hidden_communication: float  # while something was computed; not in by_phase
    operators: tuple[CostlyOperator, ...]  # the costliest, in order
    collectives: tuple[Collective, ...]
    waits: tuple[HostWaits, ...]  # none on the CPU
    gemm_flops: float  # of a step: multiply-adds of matrix products times two, from their shapes
    num_kernels: float  # of a step, copies and fills included; 0 on the CPU

    def group(self, group: Group) -> float:
        """Seconds of a step."""
        return sum(seconds for (_, of), seconds in self.by_phase.items() if of is group)

    def phase(self, phase: str) -> dict[Group, float]:
        """Seconds of a step by group."""
        return {group: seconds for (name, group), seconds in self.by_phase.items() if name == phase}

    @property
    def phases(self) -> list[str]:
        """The names of all phases, the longest first."""
        return sorted({name for name, _ in self.by_phase}, key=lambda name: -sum(self.phase(name).values()))

    @property
    def gemm_flops_per_second(self) -> float | None:
        """While matrices were multiplied; None where none were."""
        seconds = self.group(Group.GEMM)
        return self.gemm_flops / seconds if seconds and self.gemm_flops else None


def read_trace(path: Path) -> dict[str, Any]:
    """A trace file, packed or not."""
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.suffix == ".gz" else content)  # type: ignore[no-any-return]


def step_times(trace: dict[str, Any]) -> StepTimes:
    """What the steps in a trace spent their time on. Raises ValueError where it holds no step."""
    events = [event for event in trace["traceEvents"] if event.get("ph") == "X" and "dur" in event]
    ranges = [event for event in events if event.get("cat") == "user_annotation"]
    steps = [_stretch(event) for event in ranges if event["name"].startswith((STEP_RANGE, "ProfilerStep#"))]
    if not steps:
        raise ValueError("the trace holds no range that is named as a step")
    main_thread = next(e["tid"] for e in ranges if e["name"].startswith((STEP_RANGE, "ProfilerStep#")))
    phases = Phases(_phase_stretches(ranges, main_thread))
    inside = Phases(steps)  # an evaluation between two steps is in neither
    events = [event for event in events if inside.at(event["ts"]) or inside.at(event["ts"] + event["dur"])]
    device = [event for event in events if event.get("cat") in _DEVICE_CATEGORIES]
    collected = _Device(events, phases, trace) if device else _Host(events, main_thread, phases)
    parts = cut(collected.spans, steps, phases)
    share = 1e-6 / len(steps)
    by_phase: dict[tuple[str, Group], float] = defaultdict(float)
    for (phase, group), time in parts.times.items():
        by_phase[phase, _group_in_phase(group, phase, bool(device))] += time * share
    return StepTimes(
        num_steps=len(steps),
        seconds=sum(step.end - step.start for step in steps) * share,
        on_device=bool(device),
        by_phase=dict(by_phase),
        hidden_communication=parts.hidden_communication * share,
        operators=collected.operators(share, len(steps)),
        collectives=tuple(
            Collective(name, phase, sum(times) * share, len(times) / len(steps))
            for (name, phase), times in _longest_first(collected.collectives)
        ),
        waits=_host_waits(events, phases, len(steps)),
        gemm_flops=sum(map(product_flops, events)) / len(steps),
        num_kernels=len(device) / len(steps),
    )


def product_flops(event: Event) -> float:
    """Multiply-adds times two of an operator that multiplies matrices, from the shapes in its event; else 0."""
    factors = _PRODUCTS.get(event["name"])
    shapes = event.get("args", {}).get("Input Dims")
    if factors is None or not shapes or event.get("cat") != "cpu_op":
        return 0.0
    left, right = shapes[factors[0]], shapes[factors[1]]
    if not left or not right:
        return 0.0
    return 2.0 * prod(left) * (right[0] if event["name"] == _TURNED_PRODUCT else right[-1])


def _group_in_phase(group: Group, phase: str, on_device: bool) -> Group:
    """What runs in the phase of the update is the optimizer's, what is awaited in the phase of data is data.

    On the CPU that holds for Python too: optimizers may be native code that the profiler does not see.
    """
    if group is Group.COMMUNICATION:
        return group
    if phase in _DATA_PHASES and (group is Group.HOST or not on_device):
        return Group.DATA
    if phase == Phase.UPDATE.value and not (group is Group.HOST and on_device):
        return Group.OPTIMIZER
    return group


def _phase_stretches(ranges: Sequence[Event], thread: Any) -> list[Stretch]:
    found = [_stretch(event) for event in ranges if event["name"] in _PHASES and event["tid"] == thread]
    passes = sorted(_stretch(event) for event in ranges if event["name"] in PASS_RANGES and event["tid"] == thread)
    if found:
        return [part for stretch in found for part in _divided(stretch, passes)]
    optimizers = [_stretch(event) for event in ranges if event["name"].startswith("Optimizer.step#")]
    return [stretch._replace(name=Phase.UPDATE.value) for stretch in optimizers]


def _divided(phase: Stretch, passes: Sequence[Stretch]) -> list[Stretch]:
    """The phase in parts: the passes that lie in it, and what is left of it between them."""
    parts, now = [], phase.start
    for one in passes:
        if phase.start <= one.start and one.end <= phase.end:
            parts += [Stretch(now, one.start, BETWEEN_PASSES), one]
            now = one.end
    return [*parts, Stretch(now, phase.end, BETWEEN_PASSES if parts else phase.name)]


class _Host:
    """A rank without a GPU: the main thread's operators, and communication that threads of its own carry out."""

    def __init__(self, events: Sequence[Event], main_thread: Any, phases: Phases) -> None:
        self.spans: list[Span] = []
        self.collectives: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._own: dict[tuple[str, Group], list[float]] = defaultdict(list)
        self._calls: dict[tuple[str, Group], set[int]] = defaultdict(set)
        operators = []
        for event in events:
            if event["name"].startswith("gloo:"):
                self.spans.append(Span(event["ts"], event["ts"] + event["dur"], Group.COMMUNICATION))
                # it may begin on another thread after the phase that asked for it has
                self.collectives[event["name"].removeprefix("gloo:"), phases.at(event["ts"])].append(event["dur"])
            elif event.get("cat") == "cpu_op" and event["tid"] == main_thread:
                operators.append(event)
        calls = [Nested(event["ts"], event["ts"] + event["dur"], number) for number, event in enumerate(operators)]
        groups = [operator_group(event["name"]) for event in operators]
        for own in own_times(calls, lambda number: groups[number] is not Group.HOST):
            group, event = groups[own.number], operators[own.number]
            if group is Group.HOST:
                continue
            self.spans.append(Span(own.start, own.end, group))
            if group is not Group.COMMUNICATION:
                key = (described(event), group)
                self._own[key].append(own.end - own.start)
                self._calls[key].add(own.number)

    def operators(self, share: float, num_steps: int) -> tuple[CostlyOperator, ...]:
        """The costliest of them."""
        return tuple(
            CostlyOperator(name, group, sum(times) * share, len(self._calls[name, group]) / num_steps)
            for (name, group), times in _longest_first(self._own)[:_MOST_OPERATORS]
        )


class _Device:
    """A rank with a GPU: what the device ran, joined with what the host called for it."""

    def __init__(self, events: Sequence[Event], phases: Phases, trace: dict[str, Any]) -> None:
        self.spans: list[Span] = []
        self.collectives: dict[tuple[str, str], list[float]] = defaultdict(list)
        self._kernels: dict[tuple[str, Group], list[float]] = defaultdict(list)
        operators = _by_number(events, {"cpu_op"}, "External id")
        launches = _by_number(events, _RUNTIME_CATEGORIES, "correlation")
        config = trace.get("distributedInfo", {}).get("pg_config", [])
        meanings = {group.get("pg_name"): group.get("pg_desc", "") for group in config if isinstance(group, dict)}
        for event in events:
            if event.get("cat") not in _DEVICE_CATEGORIES:
                continue
            operator = operators.get(_argument(event, "External id"))
            launch = launches.get(_argument(event, "correlation"), operator)
            group = kernel_group(event["name"], operator["name"] if operator else None)
            phase = phases.at((launch or event)["ts"])
            self.spans.append(Span(event["ts"], event["ts"] + event["dur"], group, phase))
            if group is Group.COMMUNICATION:
                self.collectives[_collective_name(event, meanings), phase].append(event["dur"])
            else:
                asked = f"{described(operator)}: " if operator else ""
                self._kernels[asked + short_name(event["name"]), group].append(event["dur"])

    def operators(self, share: float, num_steps: int) -> tuple[CostlyOperator, ...]:
        """The costliest of its kernels."""
        return tuple(
            CostlyOperator(name, group, sum(times) * share, len(times) / num_steps)
            for (name, group), times in _longest_first(self._kernels)[:_MOST_OPERATORS]
        )


def described(event: Event) -> str:
    """`mm [1024, 256] × [256, 768]`: an operator with the shapes of its tensors."""
    shapes = event.get("args", {}).get("Input Dims", [])
    tensors = [shape for shape in shapes if shape and all(isinstance(size, int) for size in shape)]
    name = event["name"].removeprefix("aten::")
    more = " × …" if len(tensors) > 3 else ""
    return f"{name} {' × '.join(map(str, tensors[:3]))}{more}" if tensors else name


def short_name(kernel: str) -> str:
    """A kernel's name without its return type, namespaces, template and call arguments."""
    name = re.sub(r"\(anonymous namespace\)::", "", kernel.removeprefix("void "))
    name = re.split(r"[<(]", name, maxsplit=1)[0].strip() if name.startswith(("at::", "ncclDev")) else name
    name = re.sub(r"\(.*\)$", "", name).removeprefix("at::native::")
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def _collective_name(event: Event, meanings: dict[Any, str]) -> str:
    """`allreduce over DATA_PARALLEL_GROUP_WITH_CP`, as far as the event tells."""
    name = _argument(event, "Collective name") or short_name(event["name"])
    group = _argument(event, "Process Group Description") or meanings.get(_argument(event, "Process Group Name"), "")
    return f"{name} over {group}" if group and group != "undefined" else str(name)


def _by_number(events: Iterable[Event], categories: Set[str], argument: str) -> dict[int, Event]:
    """Events of these categories by a number that others refer to."""
    chosen = (event for event in events if event.get("cat") in categories)
    return {number: event for event in chosen if (number := _argument(event, argument)) is not None}


def _host_waits(events: Iterable[Event], phases: Phases, num_steps: int) -> tuple[HostWaits, ...]:
    found: dict[str, list[float]] = defaultdict(list)
    for event in events:
        name = event["name"]
        if event.get("cat") in _RUNTIME_CATEGORIES and (_WAITS[0] in name or name == _WAITS[1]):
            found[phases.at(event["ts"])].append(event["dur"])
    return tuple(
        HostWaits(phase, sum(times) * 1e-6 / num_steps, len(times) / num_steps)
        for phase, times in _longest_first(found)
    )


def _longest_first(times: dict[Any, list[float]]) -> list[tuple[Any, list[float]]]:
    return sorted(times.items(), key=lambda item: -sum(item[1]))


def _argument(event: Event, name: str) -> Any:
    return event.get("args", {}).get(name)


def _stretch(event: Event) -> Stretch:
    return Stretch(event["ts"], event["ts"] + event["dur"], event["name"])
