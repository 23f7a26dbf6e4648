"""`megagpt train --profile`: which steps of a session are recorded when, and the folder RUN/profile made of them.

In: the session's steps and the marks of its progress. Out: a folder with a trace (on a GPU a memory snapshot, too) of
each profiled rank and the page of profile_page.py, and that page's short form on the console. A file that cannot be
written does not stop training; no number of the training changes.
"""

import os
import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from rich.console import Console

from megagpt.parallel.mesh import Mesh
from megagpt.parallel.trace import StepTracer
from megagpt.plan import RunPlan
from megagpt.training.devices import device_name, peak_tflops
from megagpt.training.profile_findings import findings
from megagpt.training.profile_options import ProfiledSteps
from megagpt.training.profile_page import ProfileReport, console_lines, profile_page
from megagpt.training.profile_rank import RankProfile
from megagpt.training.profile_recording import Recording
from megagpt.training.progress import Phase, Progress
from megagpt.training.run_files import shown_time, utc_now

PROFILE_FOLDER = "profile"
PAGE_FILE = "profile.md"


class _Written(NamedTuple):
    """What a rank sends to rank 0 once its profile is done."""

    profile: RankProfile | None
    files: tuple[str, ...] = ()
    trouble: str | None = None


class RunProfile:
    """Follows the session's progress and profiles `chosen` (None: nothing). Every rank has one.

    The step before the first profiled one warms the profiler up; on a GPU the memory snapshot is of that step, so that
    recording it slows none that is timed. Where there is no step before, it is of the first.
    """

    def __init__(
        self,
        plan: RunPlan,
        mesh: Mesh,
        chosen: ProfiledSteps | None,
        first_step: int,
        console: Console,
        progress: Progress,
    ) -> None:
        self._plan, self._mesh, self._console, self._progress = plan, mesh, console, progress
        self._first_step = first_step
        self._steps = chosen.steps if chosen else range(0)
        self._is_profiled = chosen is not None and mesh.rank in chosen.ranks
        self._folder = Path(plan.config.run.folder) / PROFILE_FOLDER / _folder_name(self._steps)
        self._recording: Recording | None = None
        self._num_done = 0  # of the steps to profile, on any rank
        self._plain_seconds: list[float] = []
        self._began = 0.0
        self._trouble: str | None = None
        if chosen:
            progress.observer = self._mark

    def of_step(self, step: int) -> StepTracer | None:
        """What marks the passes of this 0-based step in the trace; None where it is not recorded here."""
        return self._recording.tracer(step) if self._recording is not None else None

    def end_step(self, step: int) -> None:
        """The 0-based step is over. Gathers over all ranks after the last profiled one."""
        if not self._steps:
            return
        if self._recording is not None:
            try:
                self._recording.end_step()
            except OSError as error:
                self._trouble = self._describe(error)
        if step in self._steps:
            self._num_done += 1
        elif self._first_step < step < self._steps[0] - 1:  # not the session's first, nor the one that warms up
            self._plain_seconds.append(time.perf_counter() - self._began)
        if self._num_done == len(self._steps):
            self._progress.mark(Phase.PROFILE)
            self._finish()
            self.close()

    def close(self) -> None:
        """No more is profiled: what was recorded of steps that did not all run is dropped."""
        self._progress.observer = None
        if self._recording is not None:
            self._recording.stop()
        self._recording, self._steps = None, range(0)

    def _mark(self, phase: Phase, step: int | None) -> None:
        """Told by Progress that a phase begins; `step`, counted from 1, comes with the first phase of a step."""
        if phase is Phase.DATA and step is not None:
            self._start_step(step - 1)
        if self._recording is not None:
            self._recording.start_phase(phase.value)

    def _start_step(self, step: int) -> None:
        self._began = time.perf_counter()
        if self._num_done and step != self._steps[self._num_done]:
            self._print("the run has gone back before the steps to profile were done: there is no profile of them")
            self.close()
        if not self._is_profiled or not self._steps or not self._steps[0] - 1 <= step <= self._steps[-1]:
            return
        if self._recording is None:
            self._recording = Recording(self._mesh, self._folder)
        if step in self._steps:
            self._recording.start_step(step + 1)

    def _finish(self) -> None:
        """Write what this rank has, then on rank 0 the page. Gathers over all ranks."""
        own = _Written(None) if self._recording is None else self._written(self._recording)
        gathered: list[Any] | None = [None] * self._mesh.world_size if self._mesh.rank == 0 else None
        dist.gather_object(own, gathered, dst=0)
        if gathered is None:
            return
        for trouble in dict.fromkeys(one.trouble for one in gathered if one.trouble):
            self._print(trouble, style="bold red")
        profiles = tuple(one.profile for one in gathered if one.profile is not None)
        if profiles:
            self._write_page(profiles, tuple(name for one in gathered for name in one.files))

    def _written(self, recording: Recording) -> _Written:
        try:
            recorded = recording.finish()
        except (OSError, ValueError) as error:  # a trace that is cut short is no JSON
            return _Written(None, trouble=self._describe(error))
        mesh = self._mesh
        if mesh.device.type == "cuda" and not recorded.times.on_device:
            trouble = (
                f"the profiler saw nothing of what rank {mesh.rank}'s GPU ran: another profiler has it, or CUPTI may "
                f"not be used here; {self._folder / recorded.files[0]} shows the host alone, and no page tells of it"
            )
            return _Written(None, recorded.files, trouble)
        context = f", context {mesh.context_rank}" if mesh.context_size > 1 else ""
        own = RankProfile(
            rank=mesh.rank,
            place=f"pipeline {mesh.pipeline_rank}, tensor {mesh.tensor_rank}{context}, data {mesh.data_rank}",
            device=device_name(mesh.device),
            threads=torch.get_num_threads(),
            times=recorded.times,
            memory=recorded.memory,
            plain_seconds=statistics.median(self._plain_seconds) if self._plain_seconds else None,
            cpu_seconds=recorded.cpu_seconds,
        )
        return _Written(own, recorded.files, self._trouble)

    def _write_page(self, profiles: tuple[RankProfile, ...], files: tuple[str, ...]) -> None:
        peak = peak_tflops(profiles[0].device, self._plan.config.train.precision)
        report = ProfileReport(
            plan=self._plan,
            steps=self._steps,
            run_folder=self._plan.config.run.folder,
            time=shown_time(utc_now()),
            profiles=profiles,
            findings=tuple(findings(self._plan, profiles, peak)),
            files=files,
            peak_tflops=peak,
        )
        for line in console_lines(report):
            self._print(line)
        page = self._folder / PAGE_FILE
        partial = Path(f"{page}.partial")
        try:
            partial.write_text(profile_page(report), encoding="utf-8")
            os.replace(partial, page)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            self._print(f"{page} could not be written: {error.strerror}; training goes on", style="bold red")
            return
        self._print(f"wrote {page}; beside it {', '.join(files)}, to be opened at https://ui.perfetto.dev")

    def _describe(self, error: OSError | ValueError) -> str:
        reason = error.strerror if isinstance(error, OSError) else error
        return f"{self._folder} could not be written: {reason}; training goes on, its profile is not whole"

    def _print(self, line: str, style: str | None = None) -> None:
        self._console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)


def _folder_name(steps: range) -> str:
    """`step-500` or `steps-500-502`, counted from 1; of no steps a name that is not used."""
    if not steps:
        return "none"
    first, last = steps[0] + 1, steps[-1] + 1
    return f"step-{first}" if first == last else f"steps-{first}-{last}"
