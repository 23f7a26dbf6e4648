"""Memory of a step: how much it took at most, when, and what held it. A snapshot file on a GPU.

On a GPU torch's allocator tells, and its history of a step with stacks goes to a file for https://pytorch.org/memory_viz.
On the CPU the profiler's trace has every tensor's allocation; the process's resident memory is read beside it. Knows
nothing of runs; writes only where it is told to.
"""

import os
import resource
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

Event = dict[str, Any]

_ALLOCATION = "[memory]"
_CPU_DEVICE_TYPE = 0  # c10/core/DeviceType.h
_MOST_HOLDERS = 6
# what only passes a tensor on from the operator that asked for it
_ALLOCATORS = frozenset({"aten::empty", "aten::empty_strided", "aten::empty_like", "aten::resize_", "aten::zeros"})
_HISTORY_ENTRIES = 2_000_000  # of torch's allocator; a step has hundreds of thousands at most


class Holder(NamedTuple):
    """What held memory at the fullest moment: tensors that one operator made."""

    name: str
    bytes: int
    tensors: int


class MemoryUse(NamedTuple):
    """Memory of one rank in a step, in bytes. `reserved` and `retries` are a GPU's; `holders` are the CPU's."""

    on_device: bool
    before: int  # when the step began: a GPU's allocated memory, or what the process has of the machine's
    rise: int  # the most that tensors took on top of it
    capacity: int  # of the GPU, or of the machine
    reserved: int = 0  # the most that torch's allocator held of the GPU
    retries: int = 0  # times in the run that it had to give memory back to find some
    peak_place: float | None = None  # of the CPU's fullest moment, in microseconds of the trace
    holders: tuple[Holder, ...] = ()

    @property
    def peak(self) -> int:
        """The most that was used."""
        return self.before + self.rise


class DeviceMemory:
    """Follows the memory of one step on a GPU."""

    def __init__(self) -> None:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        self._before = torch.cuda.memory_allocated()
        torch.cuda.memory._record_memory_history(max_entries=_HISTORY_ENTRIES, stacks="python")

    def use(self) -> MemoryUse:
        """What the step took, once it is over."""
        return MemoryUse(
            on_device=True,
            before=self._before,
            rise=torch.cuda.max_memory_allocated() - self._before,
            capacity=torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory,
            reserved=torch.cuda.max_memory_reserved(),
            retries=torch.cuda.memory_stats().get("num_alloc_retries", 0),
        )

    def write(self, path: Path) -> None:
        """Write the snapshot and stop following. Raises OSError where it cannot be written."""
        partial = Path(f"{path}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.cuda.memory._dump_snapshot(str(partial))
            os.replace(partial, path)
        finally:
            torch.cuda.memory._record_memory_history(enabled=None)
            partial.unlink(missing_ok=True)


def resident_bytes() -> int:
    """What this process holds of the machine's memory; the most that it held where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine_bytes() -> int:
    """The machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def host_memory(events: Sequence[Event], resident: int, first: float, last: float) -> MemoryUse:
    """Memory of the CPU from the trace's allocations between two moments; `resident` is the process's at the first."""
    allocations = [event for event in sorted(_allocations(events), key=_moment) if first <= event["ts"] < last]
    total = highest = 0
    peak_place: float | None = None
    for event in allocations:
        total += event["args"]["Bytes"]
        if total > highest:
            highest, peak_place = total, event["ts"]
    held: dict[int, Event] = {}
    for event in allocations if peak_place is not None else ():
        if event["ts"] > peak_place:  # type: ignore[operator]
            break
        if event["args"]["Bytes"] > 0:
            held[event["args"]["Addr"]] = event
        else:
            held.pop(event["args"]["Addr"], None)
    return MemoryUse(
        on_device=False,
        before=resident,
        rise=highest,
        capacity=machine_bytes(),
        peak_place=peak_place,
        holders=_holders(list(held.values()), events),
    )


def with_memory_track(trace: dict[str, Any], resident: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """The trace with its single allocations drawn as one curve, and beside it the resident memory.

    `resident`: (nanoseconds of the system's clock, bytes). The Trace Event Format calls such curves counters ("C").
    """
    events = trace["traceEvents"]
    others = [event for event in events if event.get("name") != _ALLOCATION]
    process = next((event["pid"] for event in others if event.get("cat") == "cpu_op"), 0)
    base = trace.get("baseTimeNanoseconds", 0)
    total, curves = 0, []
    for event in sorted(_allocations(events), key=_moment):
        total += event["args"]["Bytes"]
        curves.append(_counter("tensors since the profile began (MiB)", process, event["ts"], total))
    curves += [_counter("resident memory (MiB)", process, (moment - base) / 1e3, size) for moment, size in resident]
    return trace | {"traceEvents": [*others, *curves]}


def _holders(held: Sequence[Event], events: Sequence[Event]) -> tuple[Holder, ...]:
    """Live tensors by the operator that made them, the largest first."""
    makers = [event for event in events if event.get("cat") == "cpu_op" and event["name"] not in _ALLOCATORS]
    by_thread: dict[Any, list[Event]] = defaultdict(list)
    for event in sorted(makers, key=lambda event: (event["ts"], -event["dur"])):
        by_thread[event["tid"]].append(event)
    starts = {thread: [event["ts"] for event in calls] for thread, calls in by_thread.items()}
    sizes: dict[str, list[int]] = defaultdict(list)
    for event in held:
        calls = by_thread[event["tid"]]
        place = bisect_right(starts.get(event["tid"], []), event["ts"]) - 1
        name = "Python"
        for call in reversed(calls[max(0, place - 30) : place + 1]):  # the innermost that has not ended
            if event["ts"] <= call["ts"] + call["dur"]:
                name = call["name"].removeprefix("autograd::engine::evaluate_function: ").removeprefix("aten::")
                break
        sizes[name].append(event["args"]["Bytes"])
    found = [Holder(name, sum(values), len(values)) for name, values in sizes.items()]
    return tuple(sorted(found, key=lambda holder: -holder.bytes)[:_MOST_HOLDERS])


def _allocations(events: Sequence[Event]) -> list[Event]:
    return [
        event
        for event in events
        if event.get("name") == _ALLOCATION and event.get("args", {}).get("Device Type") == _CPU_DEVICE_TYPE
    ]


def _counter(name: str, process: Any, moment: float, size: int) -> Event:
    return {"ph": "C", "name": name, "pid": process, "ts": round(moment, 3), "args": {"MiB": round(size / 2**20, 3)}}


def _moment(event: Event) -> float:
    return float(event["ts"])
