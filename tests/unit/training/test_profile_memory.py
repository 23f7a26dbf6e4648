"""Memory of a step from the profiler's allocations, and the snapshot of a GPU's, whose calls are replaced here."""

import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from megagpt.training.profile_memory import (
    DeviceMemory,
    Holder,
    host_memory,
    machine_bytes,
    resident_bytes,
    with_memory_track,
)


def allocation(at: float, size: int, address: int, device: int = 0) -> dict[str, Any]:
    args = {"Bytes": size, "Addr": address, "Device Type": device, "Total Allocated": 0}
    return {"ph": "i", "cat": "cpu_instant_event", "name": "[memory]", "pid": 1, "tid": 1, "ts": at, "args": args}


def call(name: str, start: float, end: float) -> dict[str, Any]:
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 1, "tid": 1, "ts": start, "dur": end - start, "args": {}}


EVENTS = [
    call("aten::mm", 10, 20),
    call("aten::empty", 11, 12),
    allocation(11.5, 1000, 1),
    call("MyLoss", 20, 40),
    allocation(21, 300, 2),
    call("aten::exp", 22, 30),
    allocation(23, 500, 3),
    allocation(24, 77_777, 9, device=1),  # not the CPU's
    allocation(31, -500, 3),
    allocation(35, 100, 4),
    allocation(45, -1000, 1),
    allocation(95, 10**9, 5),  # after the steps
]


def test_the_fullest_moment_and_what_held_it() -> None:
    use = host_memory(EVENTS, 5000, 0.0, 90.0)
    assert (use.before, use.rise, use.peak, use.peak_place) == (5000, 1800, 6800, 23)
    assert use.holders == (Holder("mm", 1000, 1), Holder("exp", 500, 1), Holder("MyLoss", 300, 1))
    assert (use.on_device, use.capacity) == (False, machine_bytes())
    assert 2**20 < resident_bytes() < machine_bytes()


def test_without_allocations() -> None:
    use = host_memory([], 5000, 0.0, 90.0)
    assert (use.rise, use.peak_place, use.holders) == (0, None, ())


def test_the_trace_gets_curves_in_place_of_single_allocations() -> None:
    trace = {"baseTimeNanoseconds": 1_000_000, "traceEvents": EVENTS}
    drawn = with_memory_track(trace, [(1_020_000, 3 * 2**20)])["traceEvents"]
    assert [event["name"] for event in drawn if event["ph"] == "X"] == [
        "aten::mm",
        "aten::empty",
        "MyLoss",
        "aten::exp",
    ]
    curves = [event for event in drawn if event["ph"] == "C"]
    tensors = [event["args"]["MiB"] for event in curves if event["name"].startswith("tensors")]
    assert tensors == [round(size / 2**20, 3) for size in (1000, 1300, 1800, 1300, 1400, 400, 400 + 10**9)]
    (resident,) = [event for event in curves if event["name"] == "resident memory (MiB)"]
    assert (resident["ts"], resident["args"], resident["pid"]) == (20.0, {"MiB": 3.0}, 1)
    assert {event["ph"] for event in drawn} == {"X", "C"}


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """torch.cuda as a GPU would have it; returns what was called."""
    calls: list[Any] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: calls.append("reset"))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 100)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 700)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 900)
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: {"num_alloc_retries": 2})
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: SimpleNamespace(total_memory=1000))
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda **options: calls.append(options))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: Path(path).write_text("snapshot"))
    return calls


def test_a_gpus_snapshot(device: list[Any], tmp_path: Path) -> None:
    following = DeviceMemory()
    assert device[:2] == ["synchronize", "reset"]
    assert device[2]["stacks"] == "python"
    use = following.use()
    assert (use.before, use.rise, use.peak, use.reserved, use.capacity, use.retries) == (100, 600, 700, 900, 1000, 2)
    following.write(tmp_path / "memory-rank0.pickle")
    assert device[-1] == {"enabled": None}
    assert [path.name for path in tmp_path.iterdir()] == ["memory-rank0.pickle"]


def test_a_snapshot_that_cannot_be_written(device: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("megagpt.training.profile_memory.os.replace", full)
    with pytest.raises(OSError, match="No space left"):
        DeviceMemory().write(tmp_path / "memory-rank0.pickle")
    assert device[-1] == {"enabled": None}  # and what allocates is not slowed any more
    assert list(tmp_path.iterdir()) == []


def test_the_arguments_are_those_of_torch() -> None:
    """The GPU's functions are private to torch, and their arguments are checked where they exist, on any machine."""
    import inspect

    assert {"max_entries", "stacks", "enabled"} <= set(
        inspect.signature(torch.cuda.memory._record_memory_history).parameters
    )
    assert callable(torch.cuda.memory._dump_snapshot)
