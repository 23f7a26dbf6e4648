"""Ends a session that hangs: when a rank makes no progress for too long, it prints its stacks, says who is to blame and
ends with a status on which launchers start the run again.

In: the session's Progress. Out: standard error, RUN/logs/stacks-rankNNNNN.txt, the end of the process. Each rank
watches itself; a rank that hangs makes all others wait, so all print. They tell each other by these files, never by a
collective. A file system that does not answer can hold this up no longer than the grace.
"""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from megagpt.training.exit_status import RESTART
from megagpt.training.hang_report import HangReport, name_culprits, read_report
from megagpt.training.progress import Progress

LOGS_FOLDER = "logs"
_MOST_GRACE_SECONDS, _LEAST_GRACE_SECONDS = 60.0, 2.0
_MOST_TICK_SECONDS = 10.0
# the rank of each machine that reads what the others wrote, and one more in case it is the one that hangs
_NAMING_LOCAL_RANKS = 2
_STANDARD_ERROR = 2
_LONGEST_SECONDS = 24 * 24 * 3600.0
# Python functions whose frames say that a rank waits for others
_COLLECTIVES = (os.path.join("torch", "distributed", ""), "p2p_communication.py")


class WatchedRank(NamedTuple):
    """The rank that a watchdog watches."""

    rank: int
    local_rank: int
    num_ranks: int
    host: str


def grace_seconds(timeout_seconds: float) -> float:
    """How long a rank that noticed waits for the others' stacks before it ends: their clocks started a phase later."""
    return min(_MOST_GRACE_SECONDS, max(_LEAST_GRACE_SECONDS, timeout_seconds / 4))


def collective_timeout(timeout_seconds: float) -> float:
    """Seconds after which a collective may fail by itself: later than the watchdog, which says more.

    Where nothing watches (0) as late as can be: torch hands milliseconds to functions that take 31 bits.
    """
    return timeout_seconds + 4 * grace_seconds(timeout_seconds) if timeout_seconds else _LONGEST_SECONDS


class Watchdog:
    """Watches this process's main thread while it is entered. Every rank has one; with a timeout of 0 it does nothing.

    `on_hang` is told why the session ends, from another thread.
    """

    def __init__(
        self,
        progress: Progress,
        timeout_seconds: float,
        folder: Path,
        rank: WatchedRank,
        on_hang: Callable[[str], None],
    ) -> None:
        self._progress, self._timeout, self._grace = progress, timeout_seconds, grace_seconds(timeout_seconds)
        self._logs, self._rank, self._on_hang = folder / LOGS_FOLDER, rank, on_hang
        self._left, self._ending = threading.Event(), threading.Event()

    def __enter__(self) -> "Watchdog":
        if self._timeout > 0:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *reason: Any) -> None:
        self._left.set()
        if self._ending.is_set():  # a rank that ended first let this one out of its collective: the report goes on
            threading.Event().wait()
        if self._timeout > 0:
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        tick = min(_MOST_TICK_SECONDS, self._timeout / 10)
        while not self._left.wait(tick):
            # should a thread keep Python's lock, this one will not run again: then C prints the stacks and ends all
            faulthandler.dump_traceback_later(self._timeout + 3 * self._grace, exit=True, file=_STANDARD_ERROR)
            if time.monotonic() - self._progress.newest.since > self._timeout:
                self._end()
        faulthandler.cancel_dump_traceback_later()

    def _end(self) -> None:
        self._ending.set()
        try:
            report = self._report()
            stacks = _all_stacks()
            self._say([report.describe(), *stacks.splitlines()])
            sharing = threading.Thread(target=self._share, args=(report, stacks), name="hang report", daemon=True)
            sharing.start()
            sharing.join(2 * self._grace)
            if sharing.is_alive():
                self._say([f"{self._logs} does not answer"])
        finally:  # also where nobody reads what is said
            os._exit(RESTART)

    def _report(self) -> HangReport:
        mark, now = self._progress.newest, time.monotonic()
        rank, waits = self._rank, _main_thread_waits()
        return HangReport(rank.rank, rank.host, time.time(), now - mark.since, mark.number, mark.describe(), waits)

    def _share(self, report: HangReport, stacks: str) -> None:
        """Write this rank's report, and name the culprit once the others had time for theirs."""
        end = time.monotonic() + self._grace
        self._on_hang(f"hang in {report.place}: no progress for {report.seconds:,.0f} s")
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            with stacks_file(self._logs, report.rank).open("a", encoding="utf-8") as file:
                file.write(f"{report.describe()}\n{report.line()}\n{stacks}\n")
        except OSError as error:
            self._say([f"{self._logs} could not be written: {error.strerror}"])
        time.sleep(max(0.0, end - time.monotonic()))
        if self._rank.local_rank < _NAMING_LOCAL_RANKS:
            self._say(name_culprits(self._read_reports(report), self._rank.num_ranks))
        self._say([f"ends with status {RESTART}; the same command goes on from the latest checkpoint"])

    def _read_reports(self, own: HangReport) -> dict[int, HangReport]:
        """All ranks' reports of this hang; older ones of the same run are longer ago than the timeout."""
        reports = {own.rank: own}
        for rank in range(self._rank.num_ranks):
            try:
                found = read_report(stacks_file(self._logs, rank).read_text(encoding="utf-8"))
            except (OSError, ValueError, TypeError):  # none, or one that is being written
                continue
            if found is not None and abs(found.time - own.time) < self._timeout:
                reports[rank] = found
        return reports

    def _say(self, lines: list[str]) -> None:
        """Print in one piece: other ranks print to the same place."""
        text = "".join(f"rank {self._rank.rank}: {line}\n" for line in lines)
        os.write(_STANDARD_ERROR, text.encode())


def stacks_file(logs: Path, rank: int) -> Path:
    """Where a rank that hangs writes its stacks."""
    return logs / f"stacks-rank{rank:05}.txt"


def _all_stacks() -> str:
    """The Python stacks of all threads; reads no source files, which may be on the file system that hangs."""
    with open(os.memfd_create("stacks"), "w+b") as file:
        faulthandler.dump_traceback(file=file, all_threads=True)
        file.seek(0)
        return file.read().decode(errors="replace")


def _main_thread_waits() -> bool:
    """Whether the main thread is in a function of a collective."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    while frame is not None:
        if any(part in frame.f_code.co_filename for part in _COLLECTIVES):
            return True
        frame = frame.f_back
    return False
