"""state.json of a run folder: where the run is at this moment, replaced every few seconds by rank 0; and metrics.jsonl,
as one who looks at the folder reads it.

In: steps and records as they are made. Out: the file, and what it says. Must not import anything heavy.
"""

import json
import math
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from megagpt.durable import replace_file
from megagpt.training.run_files import CarefulWriter, read_json, record_from, utc_now
from megagpt.training.run_record import SessionStart

STATE_FILE, METRICS_FILE = "state.json", "metrics.jsonl"
RUNNING = "running"
_INTERVAL_SECONDS = 3.0
_TAIL_BYTES = 1 << 14


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


def last_known_step(folder: Path, start: SessionStart) -> int:
    """The last step of which the last session of a run left word, before its end or without one."""
    state = read_state(folder)
    of_session = state.step if state is not None and state.session == start.session else 0
    return max(start.first_step, of_session, last_step_record(folder).get("step", 0))


def step_records(folder: Path) -> list[dict[str, Any]]:
    """All records of metrics.jsonl, in their order."""
    try:
        return _records((folder / METRICS_FILE).read_bytes())
    except OSError:
        return []


def last_step_record(folder: Path) -> dict[str, Any]:
    """The last step's record among the last ones of metrics.jsonl; empty where there is none."""
    try:
        with (folder / METRICS_FILE).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            records = _records(file.read())
    except OSError:
        return {}
    return next((record for record in reversed(records) if "loss" in record), {})


def _records(content: bytes) -> list[dict[str, Any]]:
    records = []
    for line in content.splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut at the beginning, or by a crash
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            records.append(values)
    return records


class StateWriter:
    """Keeps state.json near the truth. Rank 0 alone has one."""

    def __init__(self, folder: Path, state: RunState, writer: CarefulWriter) -> None:
        self._path, self._writer = folder / STATE_FILE, writer
        self.state = state
        self._write()

    def restart(self, step: int) -> None:
        """`step` updates are done, not as many as was said: another checkpoint is used, or the run went back to one."""
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
