"""state.json of a run folder: where the run is at this moment, replaced every few seconds by rank 0.

In: steps and records as they are made. Out: the file, and what it says. Must not import anything heavy.
"""

import json
import math
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megagpt.training.run_files import CarefulWriter, read_json, record_from, replace_file, utc_now

STATE_FILE = "state.json"
RUNNING = "running"
_INTERVAL_SECONDS = 3.0


@dataclass(frozen=True)
class RunState:
    """Where a run is. `state`: running, complete, stopped or failed; a killed run still says running."""

    state: str
    session: int
    step: int  # updates done
    steps: int  # of the whole run
    time: str  # when this was written, UTC
    host: str  # of rank 0
    pid: int
    loss: float | int | None = None  # of the last step, nats a token
    tokens_per_second: float | int | None = None  # of all ranks, as of the last record
    seconds_per_step: float | int | None = None
    eta_seconds: float | int | None = None


def read_state(folder: Path) -> RunState | None:
    """What state.json says; None where there is none that can be read."""
    return record_from(RunState, read_json(folder / STATE_FILE))


class StateWriter:
    """Keeps state.json near the truth. Rank 0 alone has one."""

    def __init__(self, folder: Path, state: RunState, writer: CarefulWriter) -> None:
        self._path, self._writer = folder / STATE_FILE, writer
        self.state = state
        self._write()

    def restart(self, step: int) -> None:
        """The session begins after `step` updates, not where it was said to."""
        self.state = replace(self.state, step=step)
        self._write()

    def step_done(self, step: int, loss: float) -> None:
        """After each step: `step` updates are done."""
        self._set(replace(self.state, step=step, loss=loss if math.isfinite(loss) else None))

    def measured(self, tokens_per_second: float, seconds_per_step: float) -> None:
        """After each record: how fast the run is."""
        eta = (self.state.steps - self.state.step) * seconds_per_step
        self._set(
            replace(self.state, tokens_per_second=tokens_per_second, seconds_per_step=seconds_per_step, eta_seconds=eta)
        )

    def end(self, state: str) -> None:
        """The last word of a session."""
        self.state = replace(self.state, state=state, eta_seconds=None)
        self._write()

    def _set(self, state: RunState) -> None:
        self.state = state
        if time.monotonic() - self._written >= _INTERVAL_SECONDS:
            self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        text = json.dumps(asdict(replace(self.state, time=utc_now())), indent=2) + "\n"
        self._writer.write(self._path, lambda: replace_file(self._path, text))
