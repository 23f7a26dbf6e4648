"""`megagpt train --trace`: which steps of a session are traced, and the file RUN/trace.json made of them.

In: the session's steps. Out: the file, and a line about it. A file that cannot be written does not stop training.
"""

import os
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from megagpt.parallel.mesh import Mesh
from megagpt.parallel.trace import RankTrace, StepTracer, chrome_trace, gather_traces, measured_timeline

TRACE_FILE = "trace.json"


def traced_steps(first_step: int, num_steps: int) -> range:
    """The session's second and third step: its first one warms up. Its first where it has no other."""
    return range(first_step + 1, min(first_step + 3, num_steps)) or range(first_step, num_steps)


class RunTrace:
    """Traces `steps` (none: an empty range) on this rank and writes the file once they are done. Every rank has one."""

    def __init__(self, mesh: Mesh, steps: range, path: Path, console: Console) -> None:
        self._mesh, self._steps, self._path, self._console = mesh, steps, path, console
        self._tracers: list[StepTracer] = []

    def of_step(self, step: int) -> StepTracer | None:
        """What records this 0-based step; None where it is not traced."""
        if step not in self._steps:
            return None
        self._tracers.append(StepTracer(step, self._mesh))
        return self._tracers[-1]

    def end_step(self, step: int) -> None:
        """Write the file after the last traced step. Gathers over all ranks then."""
        if not self._steps or step != self._steps[-1]:
            return
        traces = gather_traces(self._tracers, self._mesh)
        self._tracers.clear()
        if traces:
            self._write(traces)

    def _write(self, traces: list[RankTrace]) -> None:
        partial = Path(f"{self._path}.partial")
        try:
            partial.write_text(chrome_trace(traces), encoding="utf-8")
            os.replace(partial, self._path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            self._print(f"{self._path} could not be written: {error.strerror}; training goes on", style="bold red")
            return
        last = measured_timeline(traces, len(self._steps) - 1)
        self._print(
            f"wrote {self._path}, to be opened at https://ui.perfetto.dev: from the first to the last pass of step "
            f"{self._steps[-1] + 1}, {last.total / 1e6:.3f} s, ranks waited {last.idle_share:.1%} of the time"
        )

    def _print(self, line: str, style: str | None = None) -> None:
        self._console.print(line, style=style, highlight=False, markup=False, soft_wrap=True)
