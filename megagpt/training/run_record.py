"""sessions.jsonl of a run folder: a line where a session starts, a line where it ends, and why it ended.

In: SessionStart, SessionEnd. Out: the file, and the list of sessions read from it. A session without an end was killed.
Must not import anything heavy.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from megagpt.training.run_files import append_line, record_from

SESSIONS_FILE = "sessions.jsonl"
COMPLETE = "complete"
INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class SessionStart:
    """What is known when a session starts. Times are UTC, ISO 8601."""

    session: int  # of the run, from 1
    time: str
    host: str  # of rank 0
    pid: int
    ranks: int
    layout: str  # such as "tensor 2 × pipeline 1 × data 4, ZeRO 1"
    first_step: int  # updates done before
    steps: int  # updates of the whole run, as configured now
    continued_from: str | None  # name of the checkpoint
    job: str | None  # the scheduler's name for it
    megagpt: str
    commit: str | None  # of megagpt's repository
    previous: str | None = None  # what became of the session before where it has no end: "killed after step 120"
    changed: tuple[str, ...] = ()  # values of the configuration that differ from the checkpoint's
    allow_data_change: bool = False


@dataclass(frozen=True)
class SessionEnd:
    """What is known when a session ends."""

    session: int
    time: str
    last_step: int  # updates done
    reason: str  # "complete", "interrupted", "signal SIGTERM after step 7", "error: …", "hang …", "lost a peer …"
    status: int  # exit status


class Session(NamedTuple):
    """One session of a run; `end` is None while it runs, and where it was killed."""

    start: SessionStart
    end: SessionEnd | None


def write_session_start(folder: Path, start: SessionStart) -> None:
    """Append the line of a session that starts. Raises OSError."""
    _append(folder, {"event": "start", **asdict(start)})


def write_session_end(folder: Path, end: SessionEnd) -> None:
    """Append the line of a session that ends. Raises OSError."""
    _append(folder, {"event": "end", **asdict(end)})


def read_sessions(folder: Path) -> list[Session]:
    """The sessions of a run, in their order; none where the folder has no record. Lines that are damaged are passed."""
    try:
        lines = (folder / SESSIONS_FILE).read_bytes().splitlines()
    except OSError:
        return []
    sessions: list[Session] = []
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        event = values.get("event") if isinstance(values, dict) else None
        if event == "start" and (start := record_from(SessionStart, values)):
            if sessions and sessions[-1].start.session == start.session:  # it begins elsewhere than it first said
                sessions.pop()
            sessions.append(Session(start, None))
        elif event == "end" and (end := record_from(SessionEnd, values)):
            for place, session in enumerate(sessions):
                if session.start.session == end.session:
                    sessions[place] = session._replace(end=end)
    return sessions


def ending_state(reason: str) -> str:
    """The word for a run whose last session ended so: complete, stopped or failed."""
    if reason == COMPLETE:
        return "complete"
    return "stopped" if reason == INTERRUPTED or reason.startswith("signal ") else "failed"


def _append(folder: Path, values: dict) -> None:
    append_line(folder / SESSIONS_FILE, json.dumps(values, ensure_ascii=False))
