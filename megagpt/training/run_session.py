"""One session of a run, as its folder remembers it: lock, log, state, environment, and how it began and ended.

In: the prepared run, what happens to it. Out: files in the run folder, from rank 0 alone; no disk that is full and no
missing right ends training here. Knows nothing of what is trained.
"""

import json
import os
import threading
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console

from megagpt import __version__
from megagpt.checkpoint.manifest import CONFIG_NAME
from megagpt.durable import replace_file
from megagpt.errors import DataError, MegagptError
from megagpt.plan_layout import describe_axes
from megagpt.training.exit_status import COMPLETE, INTERRUPTED, STOPPED, USER_ERROR
from megagpt.training.metrics import write_run_config
from megagpt.training.run_environment import (
    ENVIRONMENT_FILE,
    Commit,
    RankPlace,
    describe_environment,
    job_name,
    repository_commit,
    this_host,
)
from megagpt.training.run_files import CarefulWriter, shown_time, utc_now
from megagpt.training.run_lock import RunLock
from megagpt.training.run_log import RunLog
from megagpt.training.run_record import (
    SESSIONS_FILE,
    Session,
    SessionEnd,
    SessionStart,
    ending_state,
    read_sessions,
    write_session_end,
    write_session_start,
)
from megagpt.training.run_state import RUNNING, RunState, StateWriter, last_known_step

if TYPE_CHECKING:
    from megagpt.training.prepare import PreparedRun

_MOST_REASON_CHARACTERS = 500
_UNKNOWN_STATUS = 1  # Python's own, after a traceback


class Ending(NamedTuple):
    """Why a session ended, and the exit status of its process."""

    reason: str
    status: int


class RunSession:
    """A session, from before anything is read to its end. Every rank has one; those of other ranks than 0 do nothing.

    As a context manager it records how the block ended, unless `end` was called before, and lets go of the lock.
    """

    def __init__(self, folder: Path, console: Console, rank: int) -> None:
        self.folder, self._console, self._active = folder, console, rank == 0
        self.writer = CarefulWriter(self._print_trouble)
        self.state: StateWriter | None = None  # from `start` on, on rank 0
        self._start: SessionStart | None = None
        self._commit: Commit | None = None
        self._log = RunLog(folder, self.writer)
        self._lock = RunLock(folder, self._print_trouble)
        self._ending = threading.Lock()
        self._ended = False

    def take_lock(self) -> None:
        """Take the folder's lock, where it exists. Raises ConfigError where another session trains there."""
        if self._active:
            self._lock.take()

    def start(self, prepared: "PreparedRun") -> None:
        """The session begins: everything is read and checked, no process group has started.

        Does nothing where the run is complete. Raises ConfigError where another session trains in the folder.
        """
        plan = prepared.plan
        if not self._active or prepared.first_step >= plan.num_steps:
            return
        self.writer.write(self.folder, lambda: self.folder.mkdir(parents=True, exist_ok=True))
        self._lock.take()
        sessions = read_sessions(self.folder)
        layout, self._commit = plan.layout, repository_commit()
        start = SessionStart(
            session=sessions[-1].start.session + 1 if sessions else 1,
            time=utc_now(),
            host=this_host(),
            pid=os.getpid(),
            ranks=layout.world_size,
            layout=f"{describe_axes(layout.tensor, layout.context, layout.pipeline, layout.data)}, "
            f"ZeRO {layout.zero_stage}",
            first_step=prepared.first_step,
            steps=plan.num_steps,
            continued_from=prepared.resume_from[0].name if prepared.resume_from else None,
            job=job_name(),
            megagpt=__version__,
            commit=self._commit.describe() if self._commit else None,
            previous=_previous(self.folder, sessions),
            changed=tuple(difference.describe() for difference in prepared.changed),
            allow_data_change=prepared.allow_data_change,
        )
        self._begin_log(start)
        if start.previous:
            before = sessions[-1].start
            self._console.print(
                f"the session before this one (number {before.session}, on {before.host} since "
                f"{shown_time(before.time)}) was {start.previous}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        self.writer.write(self.folder / SESSIONS_FILE, lambda: write_session_start(self.folder, start))
        self.writer.write(self.folder / CONFIG_NAME, lambda: write_run_config(self.folder, plan.config))
        self._start = start
        state = RunState(RUNNING, start.session, start.first_step, start.steps, start.time, start.host, start.pid)
        self.state = StateWriter(self.folder, state, self.writer)

    def resumed(self, prepared: "PreparedRun") -> None:
        """The run has what it continues from. Where that is not what `start` was told, the record says so."""
        if self.state is None or self._start is None or prepared.first_step == self._start.first_step:
            return
        start = replace(
            self._start,
            first_step=prepared.first_step,
            continued_from=prepared.resume_from[0].name if prepared.resume_from else None,
            changed=tuple(difference.describe() for difference in prepared.changed),
        )
        self.writer.write(self.folder / SESSIONS_FILE, lambda: write_session_start(self.folder, start))
        self.state.restart(start.first_step)

    def write_environment(self, places: Sequence[RankPlace], cuda: str | None) -> None:
        """environment.json, once the ranks have met: `places` of all of them."""
        if self.state is not None:
            text = json.dumps(describe_environment(places, cuda, self._commit), indent=2, ensure_ascii=False) + "\n"
            path = self.folder / ENVIRONMENT_FILE
            self.writer.write(path, lambda: replace_file(path, text))

    def end(self, reason: str, status: int) -> None:
        """Record why the session ended, with which exit status. The first call counts; any thread may make it."""
        with self._ending:
            if self.state is None or self._ended:
                return
            self._ended = True
        reason = " ".join(reason.split())[:_MOST_REASON_CHARACTERS]
        now = self.state.state
        end = SessionEnd(now.session, utc_now(), now.step, reason, status)
        self.state.end(ending_state(reason))
        self.writer.write(self.folder / SESSIONS_FILE, lambda: write_session_end(self.folder, end))
        self._log.line(f"=== {shown_time(end.time)}: session {end.session} ended after step {end.last_step}: {reason}")

    def __enter__(self) -> "RunSession":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.state is not None:
            if error is not None:  # it is printed elsewhere, or is none of a user's
                self._log.line("".join(traceback.format_exception(error)) if _is_ours(error) else f"error: {error}")
            self.end(*ending_of(error))
            self._console.pop_render_hook()
        self._lock.release()

    def _begin_log(self, start: SessionStart) -> None:
        job = f", {start.job}" if start.job else ""
        self._log.line(
            f"=== {shown_time(start.time)}: session {start.session} on {start.host}, pid {start.pid}{job}, "
            f"{start.ranks} ranks, megagpt {start.megagpt}{f' at {start.commit}' if start.commit else ''}"
        )
        self._console.push_render_hook(self._log)

    def _print_trouble(self, trouble: str) -> None:
        self._console.print(trouble, style="bold red", highlight=False, markup=False, soft_wrap=True)


def ending_of(error: BaseException | None) -> Ending:
    """What an exception that leaves a session says of its end."""
    if error is None:
        return Ending("complete", COMPLETE)
    if isinstance(error, KeyboardInterrupt):
        return Ending("interrupted", INTERRUPTED)
    if not _is_ours(error):
        return Ending(f"error: {error}", USER_ERROR if isinstance(error, DataError) else STOPPED)
    return Ending(f"error: {type(error).__name__}: {error}", _UNKNOWN_STATUS)


def _previous(folder: Path, sessions: Sequence[Session]) -> str | None:
    """`killed after step 120` where the last session has no end."""
    if not sessions or sessions[-1].end is not None:
        return None
    return f"killed after step {last_known_step(folder, sessions[-1].start)}"


def _is_ours(error: BaseException) -> bool:
    """Whether an error is a mistake of megagpt's own, which is told by its traceback."""
    return not isinstance(error, (MegagptError, PermissionError, KeyboardInterrupt))
