"""What each rank really did in a step: every forward and backward pass with its start and end, as a Chrome trace.

In: megatron-core's timers, which its schedules start and stop around each pass, and gradient hooks, which say of which
chunk and micro-batch a backward pass is. Out: RankTrace, and the text of a trace file. Times are microseconds: of the
device on CUDA (events of the current stream), else of the host. Must not change what is computed.
"""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from megagpt.parallel.mesh import Mesh
from megagpt.plan_schedule import Pass, TimedPass, Timeline

# names that megatron-core's schedules give their timers (pipeline_parallel/schedules.py, forward_step, backward_step)
_TIMED: dict[str, Literal["forward", "backward"]] = {"forward-compute": "forward", "backward-compute": "backward"}


class StepTrace(NamedTuple):
    """One step on one rank. The passes' times count from the moment at which all ranks began the step."""

    step: int  # from 1, as in metrics.jsonl
    start_us: float  # since the first traced step began, by this rank's clock
    total_us: float  # until this rank had run its last pass
    passes: tuple[TimedPass, ...]


class RankTrace(NamedTuple):
    """The traced steps of one rank and its place in the mesh."""

    rank: int
    place: str  # such as "pipeline 1, tensor 0, data 2"
    row: int  # where its row stands among the others': the ranks of a pipeline together
    steps: tuple[StepTrace, ...]


class StepTracer:
    """Records the passes of one step on this rank. `run_schedule` uses one for a step that is traced."""

    def __init__(self, step: int, mesh: Mesh) -> None:
        self.step = step
        self._mesh = mesh
        self._origin: Any = None  # marks are seconds, or torch.cuda.Event
        self._end: Any = None
        self._opened: Any = None
        self._current: Pass | None = None
        self._marks: list[tuple[Pass, Any, Any]] = []

    def start(self) -> None:
        """Begin the step at the same moment on all ranks, to within what a barrier takes. Every rank calls it."""
        if self._mesh.device.type == "cuda":
            torch.cuda.synchronize()
            dist.barrier(device_ids=[self._mesh.device.index])
            torch.cuda.synchronize()
        else:
            dist.barrier()
        self._origin = self._now()

    def end(self) -> None:
        """The schedule has run on this rank."""
        self._end = self._now()

    def follow(self, chunk: int, micro_batch: int, output: Tensor) -> None:
        """Tell which forward pass is running, and have its backward pass tell the same when it comes."""
        self._current = Pass("forward", chunk, micro_batch)
        if output.requires_grad:
            output.register_hook(lambda _: self._run_backward(Pass("backward", chunk, micro_batch)))

    def timer(self, name: str, log_level: int | None = None) -> "_Timer":
        """What megatron-core calls as `config.timers`. Only those of forward and backward passes are kept."""
        kind = _TIMED.get(name)
        if kind is None:
            return _Timer(_nothing, _nothing)
        return _Timer(lambda: self._open(kind), lambda: self._close(kind))

    def measured(self, first: "StepTracer") -> StepTrace:
        """The step's passes; `first` is the first traced step of this rank. Waits for the device."""
        if self._mesh.device.type == "cuda":
            torch.cuda.synchronize()
        passes = [TimedPass(*event, self._since(opened), self._since(closed)) for event, opened, closed in self._marks]
        return StepTrace(self.step + 1, first._since(self._origin), self._since(self._end), tuple(passes))

    def _run_backward(self, event: Pass) -> None:
        self._current = event

    def _open(self, kind: str) -> None:
        self._current = None
        self._opened = self._now()

    def _close(self, kind: str) -> None:
        assert self._current is not None, f"a {kind} pass ended that belongs to no micro-batch"
        assert self._current.kind == kind, f"a {kind} pass ended in {self._current}"
        self._marks.append((self._current, self._opened, self._now()))

    def _now(self) -> Any:
        if self._mesh.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _since(self, mark: Any) -> float:
        """Microseconds from the step's start to a mark."""
        if self._mesh.device.type != "cuda":
            return (mark - self._origin) * 1e6
        return self._origin.elapsed_time(mark) * 1e3


class _Timer(NamedTuple):
    """One timer as megatron-core uses it (timers.py, TimerBase)."""

    open: Callable[[], None]
    close: Callable[[], None]

    def start(self, barrier: bool = False) -> None:
        """A pass begins. `barrier` is not obeyed: the ranks were aligned once, at the start of the step."""
        self.open()

    def stop(self, barrier: bool = False) -> None:
        """A pass has ended."""
        self.close()


def _nothing() -> None:
    """What a timer does that is not kept."""


def gather_traces(tracers: Sequence[StepTracer], mesh: Mesh) -> list[RankTrace]:
    """The traced steps of all ranks, on rank 0; an empty list on the others. Gathers over all ranks."""
    context = f", context {mesh.context_rank}" if mesh.context_size > 1 else ""
    row = (mesh.data_rank * mesh.context_size + mesh.context_rank) * mesh.tensor_size + mesh.tensor_rank
    own = RankTrace(
        rank=mesh.rank,
        place=f"pipeline {mesh.pipeline_rank}, tensor {mesh.tensor_rank}{context}, data {mesh.data_rank}",
        row=row * mesh.pipeline_size + mesh.pipeline_rank,
        steps=tuple(tracer.measured(tracers[0]) for tracer in tracers),
    )
    gathered: list[Any] | None = [None] * mesh.world_size if mesh.rank == 0 else None
    dist.gather_object(own, gathered, dst=0)
    return gathered or []


def measured_timeline(traces: Sequence[RankTrace], number: int) -> Timeline:
    """One traced step, the `number`-th from 0, of all ranks; in microseconds from its first pass."""
    passes = [trace.steps[number].passes for trace in traces]
    first = min(event.start for events in passes for event in events)
    moved = [[event._replace(start=event.start - first, end=event.end - first) for event in run] for run in passes]
    return Timeline(tuple(map(tuple, moved)), max(event.end for events in moved for event in events))


def chrome_trace(traces: Sequence[RankTrace]) -> str:
    """The trace as JSON for chrome://tracing and https://ui.perfetto.dev: a process a rank, an event a line.

    Format: "Trace Event Format" (Google), complete events ("ph": "X") with `ts` and `dur` in microseconds. Steps start
    where rank 0's clock has them: all ranks began them together.
    """
    events: list[dict[str, Any]] = []
    for trace in traces:
        named = {"process_name": {"name": f"rank {trace.rank}: {trace.place}"}, "thread_name": {"name": "schedule"}}
        named["process_sort_index"] = {"sort_index": trace.row}  # type: ignore[dict-item]
        events += [{"name": name, "ph": "M", "pid": trace.rank, "tid": 0, "args": args} for name, args in named.items()]
        for step, of_rank_0 in zip(trace.steps, traces[0].steps, strict=True):
            args = {"step": step.step}
            events.append(_slice(f"step {step.step}", trace.rank, of_rank_0.start_us, 0.0, step.total_us, args))
            for event in step.passes:
                args = {"chunk": event.chunk, "micro_batch": event.micro_batch, "step": step.step}
                events.append(_slice(event.kind, trace.rank, of_rank_0.start_us, event.start, event.end, args))
    lines = ",\n".join(json.dumps(event) for event in events)
    return f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n'


def _slice(name: str, rank: int, origin: float, start: float, end: float, args: dict[str, int]) -> dict[str, Any]:
    """A complete event, rounded to nanoseconds such that neighbours that touch do not overlap."""
    begin, finish = round(origin + start, 3), round(origin + end, 3)
    event = {"name": name, "ph": "X", "pid": rank, "tid": 0, "ts": begin, "dur": round(finish - begin, 3)}
    return event | {"args": args}
