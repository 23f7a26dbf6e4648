"""Run folders in every state, made by hand."""

import fcntl
import json
import os
import time
from pathlib import Path
from typing import IO

from megagpt.training.run_environment import this_host
from megagpt.training.run_files import CarefulWriter, append_line
from megagpt.training.run_record import SessionEnd, SessionStart, write_session_end, write_session_start
from megagpt.training.run_state import RunState, StateWriter

TIME = "2026-11-23T12:00:00+00:00"
LATER = "2026-11-23T13:30:05+00:00"


def session(folder: Path, number: int, reason: str | None = None, last_step: int = 0, host: str | None = None) -> None:
    """A session of 1,000 steps; without a reason it has no end."""
    folder.mkdir(parents=True, exist_ok=True)
    layout = "tensor 1 × pipeline 1 × data 2, ZeRO 1"
    first = 0 if number == 1 else 100
    continued = None if number == 1 else "step-00000100"
    start = SessionStart(
        number, TIME, host or this_host(), 2**22 + 1, 2, layout, first, 1000, continued, None, "0.1.0", "abc"
    )
    write_session_start(folder, start)
    if reason is not None:
        write_session_end(folder, SessionEnd(number, LATER, last_step, reason, 0))


def state(folder: Path, number: int, word: str, step: int, loss: float = 4.25, host: str | None = None) -> None:
    """state.json as of now."""
    now = RunState(word, number, step, 1000, TIME, host or this_host(), 1, loss, 12345.6, 0.5, 3600.0)
    StateWriter(folder, now, CarefulWriter(lambda trouble: None))


def checkpoint(folder: Path, step: int, age_seconds: float, whole: bool = True) -> None:
    """A checkpoint with one file, which is a byte short where it is not whole."""
    place = folder / "checkpoints" / f"step-{step:08d}"
    place.mkdir(parents=True)
    (place / "weights").write_bytes(b"x" * (10 if whole else 9))
    manifest = place / "manifest.json"
    manifest.write_text(json.dumps({"files": {"weights": {"num_bytes": 10, "hash": "xxh3_128:"}}}))
    written = time.time() - age_seconds
    os.utime(manifest, (written, written))
    (folder / "checkpoints" / "latest").write_text(place.name + "\n")


def metrics(folder: Path, steps: int) -> None:
    """metrics.jsonl with falling losses."""
    for step in range(1, steps + 1):
        record = {"step": step, "loss": 6 - step / steps, "tokens_per_second": 1000.0, "lr": 1e-3}
        append_line(folder / "metrics.jsonl", json.dumps(record))
    append_line(folder / "metrics.jsonl", json.dumps({"step": steps, "validation_loss": 5.5, "perplexity": 245.0}))


def every_state(root: Path) -> IO[bytes]:
    """A run in each state; the running one is locked as long as the file that is returned is open."""
    session(root / "lab" / "running", 1, "signal SIGUSR1 after step 100", 100)
    session(root / "lab" / "running", 2)
    state(root / "lab" / "running", 2, "running", 250)
    checkpoint(root / "lab" / "running", 200, 720)
    (root / "lab" / "running" / "lock").touch()
    lock = (root / "lab" / "running" / "lock").open("rb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    session(root / "complete", 1, "complete", 1000)
    state(root / "complete", 1, "complete", 1000, 3.1)
    checkpoint(root / "complete", 1000, 3 * 86400)
    session(root / "stopped", 1, "interrupted", 130)
    state(root / "stopped", 1, "stopped", 130)
    reason = "error: the loss of step 43 is not finite on rank 1; training stopped before the update"
    session(root / "failed", 1, reason, 42)
    state(root / "failed", 1, "failed", 42)
    checkpoint(root / "failed", 40, 5, whole=False)
    session(root / "killed", 1)
    state(root / "killed", 1, "running", 77)
    for hours, name in enumerate(["lab/running", "complete", "stopped", "failed", "killed"]):
        seconds = time.time() - 3600 * hours
        for path in (root / name).glob("s*.json*"):
            os.utime(path, (seconds, seconds))
    return lock
