"""How a run does, from the small files of its folder: state, step, loss, checkpoints, sessions.

In: a run folder, which may be damaged, foreign, or written to at this moment. Out: RunSummary. Must not import anything
heavy: hundreds of runs are read at once.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megagpt.training.run_environment import this_host
from megagpt.training.run_files import read_json, seconds_since
from megagpt.training.run_lock import is_locked
from megagpt.training.run_record import SESSIONS_FILE, Session, ending_state, read_sessions
from megagpt.training.run_state import (
    METRICS_FILE,
    RUNNING,
    STATE_FILE,
    RunState,
    last_known_step,
    last_step_record,
    read_state,
)

KILLED, UNKNOWN = "killed", "unknown"
# where locks do not tell (another machine, a file system without them), a run whose state is older than this was killed
_SILENT_SECONDS, _SILENT_STEPS = 600.0, 5
_STEP_FOLDER = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint of a run. `problem`: None where every file of its manifest is there in its size."""

    step: int
    folder: Path
    written: float  # seconds since the epoch
    problem: str | None


@dataclass(frozen=True)
class RunSummary:
    """A run at this moment. Values that its folder does not tell are None."""

    folder: Path
    state: str  # running, complete, stopped, failed, killed; unknown for one of an earlier megagpt
    step: int | None
    steps: int | None
    loss: float | None  # nats a token
    tokens_per_second: float | None
    eta_seconds: float | None  # of a running one
    checkpoint: CheckpointSummary | None  # that `latest` names, else the newest
    sessions: tuple[Session, ...]
    reason: str | None  # why the last session that has ended did
    active: float  # seconds since the epoch: when it was last written to

    @property
    def restarts(self) -> int:
        """Sessions after the first."""
        return max(0, len(self.sessions) - 1)


def summarise(folder: Path) -> RunSummary:
    """How a run does."""
    sessions, state = tuple(read_sessions(folder)), read_state(folder)
    word = _state_word(folder, sessions, state)
    last = last_step_record(folder)
    of_now = state is not None and (not sessions or state.session == sessions[-1].start.session)
    checkpoint = latest_checkpoint_of(folder)
    step = state.step if state is not None and of_now else _number(last, "step")
    if word == KILLED:
        step = last_known_step(folder, sessions[-1].start)
    steps = state.steps if state is not None else (sessions[-1].start.steps if sessions else None)
    loss = state.loss if state is not None and state.loss is not None else _number(last, "loss")
    speed = state.tokens_per_second if state is not None and state.tokens_per_second else None
    return RunSummary(
        folder=folder,
        state=word,
        step=int(step) if step is not None else (checkpoint.step if checkpoint else None),
        steps=steps,
        loss=loss,
        tokens_per_second=speed if speed is not None else _number(last, "tokens_per_second"),
        eta_seconds=state.eta_seconds if state is not None and word == RUNNING else None,
        checkpoint=checkpoint,
        sessions=sessions,
        reason=_reason(sessions, word, step),
        active=max((_modified(folder / name) for name in (STATE_FILE, SESSIONS_FILE, METRICS_FILE)), default=0.0)
        or _modified(folder),
    )


def checkpoints_of(folder: Path) -> list[CheckpointSummary]:
    """The checkpoints of a run, the newest first. Sizes are compared, nothing is hashed."""
    return [_checkpoint(step, folder / "checkpoints" / name) for step, name in _step_folders(folder)]


def latest_checkpoint_of(folder: Path) -> CheckpointSummary | None:
    """The checkpoint that `latest` names, or the newest where it names none that is there."""
    found = _step_folders(folder)
    try:
        name = (folder / "checkpoints" / "latest").read_bytes().decode("utf-8", "replace").strip()
    except OSError:
        name = ""
    chosen = next((pair for pair in found if pair[1] == name), found[0] if found else None)
    return _checkpoint(chosen[0], folder / "checkpoints" / chosen[1]) if chosen else None


def _state_word(folder: Path, sessions: tuple[Session, ...], state: RunState | None) -> str:
    locked = is_locked(folder)
    if locked:
        return RUNNING
    if not sessions:
        return UNKNOWN
    start, end = sessions[-1]
    if end is not None:
        return ending_state(end.reason)
    if start.host == this_host():
        return RUNNING if locked is None and _is_alive(start.pid) else KILLED
    if state is None or state.session != start.session:
        age = seconds_since(start.time)
    else:
        age = seconds_since(state.time)
    silent = max(_SILENT_SECONDS, _SILENT_STEPS * float(state.seconds_per_step or 0) if state is not None else 0)
    return RUNNING if age is not None and age < silent else KILLED


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # of another user
    return True


def _reason(sessions: tuple[Session, ...], word: str, step: float | None) -> str | None:
    if word == KILLED:
        return f"killed after step {step}"
    ended = [session.end.reason for session in sessions if session.end is not None]
    if sessions and sessions[-1].end is None and sessions[-1].start.previous:
        return sessions[-1].start.previous
    return ended[-1] if ended else None


def _step_folders(folder: Path) -> list[tuple[int, str]]:
    """Steps and names of the folders of a run's checkpoints, the newest first."""
    try:
        found = [_STEP_FOLDER.fullmatch(name) for name in os.listdir(folder / "checkpoints")]
    except OSError:
        return []
    return sorted((int(match[1]), match[0]) for match in found if match)[::-1]


def _checkpoint(step: int, folder: Path) -> CheckpointSummary:
    manifest = read_json(folder / "manifest.json")
    files = manifest.get("files") if isinstance(manifest, dict) else None
    problem = None if isinstance(files, dict) and files else "its manifest.json is missing or damaged"
    for name, record in files.items() if isinstance(files, dict) else ():
        try:
            wanted = record["num_bytes"]
            found = os.stat(folder / name).st_size
        except OSError:
            problem = f"{name} is missing"
        except (TypeError, KeyError):
            problem = "its manifest.json is damaged"
        else:
            problem = problem if found == wanted else f"{name} has {found} bytes, not {wanted}"
        if problem:
            break
    return CheckpointSummary(step, folder, _modified(folder / "manifest.json") or _modified(folder), problem)


def _number(values: dict[str, Any], name: str) -> float | None:
    value = values.get(name)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
