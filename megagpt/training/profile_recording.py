"""torch's profiler on one rank, from the step that warms it up to the files that it leaves.

In: steps and phases as they begin and end. Out: trace-rankN.json.gz, on a GPU memory-rankN.pickle, and what they say.
Knows nothing of other ranks, nor of when to record.
"""

import gzip
import json
import os
import shutil
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile, record_function

from megagpt.parallel.mesh import Mesh
from megagpt.parallel.trace import StepTracer
from megagpt.training.profile_memory import DeviceMemory, MemoryUse, host_memory, resident_bytes, with_memory_track
from megagpt.training.profile_trace import STEP_RANGE, StepTimes, step_times

_GZIP_LEVEL = 3  # traces shrink 15-fold; higher levels take several times as long for little
_Range = AbstractContextManager[Any]


class Recorded(NamedTuple):
    """What a recording came to."""

    times: StepTimes
    memory: MemoryUse
    cpu_seconds: float  # of a mean step in which the main thread had a core
    files: tuple[str, ...]


class Recording:
    """The profiler of one rank. Ready to record once it is made; the memory of a GPU is followed from then on."""

    def __init__(self, mesh: Mesh, folder: Path) -> None:
        self._mesh, self._folder = mesh, folder
        self._on_device = mesh.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_device else [])]
        self._profiler = profile(activities=activities, record_shapes=True, profile_memory=not self._on_device)
        self._profiler.prepare_trace()
        self._device_memory = DeviceMemory() if self._on_device else None
        self._memory: MemoryUse | None = None
        self._files: list[str] = []
        self._runs = False
        self._step: _Range | None = None
        self._phase: _Range | None = None
        self._resident: list[tuple[int, int]] = []
        self._cpu_seconds, self._num_steps = 0.0, 0

    def start_step(self, number: int) -> None:
        """A step begins that is to be recorded; `number` counts from 1."""
        if not self._runs:
            self._profiler.start_trace()
            self._runs = True
        self._step = opened(f"{STEP_RANGE}{number}")
        self._cpu_seconds -= time.thread_time()

    def start_phase(self, name: str) -> None:
        """A phase begins, and the one before it ends. Nothing between steps that are recorded."""
        if self._step is None:
            return
        self._end_phase()
        self._phase = opened(name)
        if not self._on_device:
            self._resident.append((time.time_ns(), resident_bytes()))

    def tracer(self, step: int) -> StepTracer | None:
        """What marks the passes of this 0-based step; None where it is not recorded."""
        return None if self._step is None else PassRanges(step, self._mesh)

    def end_step(self) -> None:
        """A step is over, recorded or warming up. Raises OSError where a GPU's snapshot cannot be written."""
        if self._on_device:
            torch.cuda.synchronize()  # what the step has asked for is the step's
        if self._step is not None:
            self._end_phase()
            self._step.__exit__(None, None, None)
            self._step = None
            self._cpu_seconds += time.thread_time()
            self._num_steps += 1
        if self._device_memory is not None:
            following, self._device_memory = self._device_memory, None
            self._memory = following.use()
            name = f"memory-rank{self._mesh.rank}.pickle"
            following.write(self._folder / name)
            self._files.append(name)

    def stop(self) -> None:
        """End what is being recorded, in a step or not. Nothing where nothing is."""
        self._end_phase()
        if self._step is not None:
            self._step.__exit__(None, None, None)
            self._step = None
        if self._runs:
            self._profiler.stop_trace()
            self._runs = False

    def finish(self) -> Recorded:
        """Write the trace of what was recorded. Raises OSError where it cannot be written."""
        self.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"trace-rank{self._mesh.rank}.json.gz"
        trace = self._write_trace(self._folder / name)
        memory = self._memory
        if memory is None:
            steps = [event for event in trace["traceEvents"] if event.get("name", "").startswith(STEP_RANGE)]
            first, last = min(event["ts"] for event in steps), max(event["ts"] + event["dur"] for event in steps)
            memory = host_memory(trace["traceEvents"], self._resident[0][1], first, last)
        return Recorded(step_times(trace), memory, self._cpu_seconds / self._num_steps, (name, *self._files))

    def _end_phase(self) -> None:
        if self._phase is not None:
            self._phase.__exit__(None, None, None)
            self._phase = None

    def _write_trace(self, path: Path) -> dict[str, Any]:
        """Write the packed trace and return it as the profiler gave it."""
        plain, partial = path.with_suffix(""), Path(f"{path}.partial")
        try:
            self._profiler.export_chrome_trace(str(plain))
            trace: dict[str, Any] = json.loads(plain.read_bytes())
            with gzip.open(partial, "wb", compresslevel=_GZIP_LEVEL) as packed:
                if self._on_device:
                    with plain.open("rb") as file:
                        shutil.copyfileobj(file, packed)
                else:
                    packed.write(json.dumps(with_memory_track(trace, self._resident)).encode())
            os.replace(partial, path)
        finally:
            plain.unlink(missing_ok=True)
            partial.unlink(missing_ok=True)
        return trace


class PassRanges(StepTracer):
    """Names every forward and backward pass in the profiler's trace. Aligns no ranks and keeps nothing."""

    def __init__(self, step: int, mesh: Mesh) -> None:
        super().__init__(step, mesh)
        self._range: _Range | None = None

    def start(self) -> None:
        """Nothing: ranks begin when they do."""

    def end(self) -> None:
        """Nothing is kept."""

    def follow(self, chunk: int, micro_batch: int, output: Tensor) -> None:
        """Nothing: passes are named by their kind alone."""

    def _open(self, kind: str) -> None:
        self._range = opened(f"{kind} pass")

    def _close(self, kind: str) -> None:
        if self._range is not None:
            self._range.__exit__(None, None, None)
            self._range = None


def opened(name: str) -> _Range:
    """A range of the trace that begins now."""
    begun: _Range = record_function(name)
    begun.__enter__()
    return begun
