"""Runs one command as a whole process and measures it. In: a command. Out: wall and CPU seconds, peak memory.

Imports only the standard library and stays small, because a child's peak (ru_maxrss) begins with that of the process
that started it.
"""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

SAMPLE_SECONDS = 0.25
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
# Fields of /proc/PID/stat, counted after the command's closing bracket: state, ppid, pgrp, session, ... utime, stime.
_STAT_SESSION, _STAT_USER, _STAT_SYSTEM = 3, 11, 12


class Run(NamedTuple):
    """A finished process. Seconds from its start to its end; CPU of it and of its children, which for those that nobody
    waited for is what was last sampled.

    `peak_memory_mb`: the largest single process (ru_maxrss), or, where several ran at once, the largest sampled sum of
    their proportional set sizes (PSS: shared pages counted once), whichever is more. `num_processes`: most at once.
    """

    seconds: float
    cpu_seconds: float
    peak_memory_mb: float
    num_processes: int


class CommandFailed(Exception):
    """A command that ended with another status than 0; the message has the end of what it printed."""


def run(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path, timeout_seconds: float) -> Run:
    """Run `command` in `folder` with what it prints in `log`. Raises CommandFailed, also after `timeout_seconds`."""
    with open(log, "wb") as output:
        os.sync()  # what earlier runs wrote is not written during this one
        started = time.perf_counter()
        process = subprocess.Popen(
            command, env=dict(environment), cwd=folder, stdout=output, stderr=output, start_new_session=True
        )
        sampler = _Sampler(process.pid, started + timeout_seconds)
        sampler.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            kill_session(process.pid)
            raise
        finally:
            seconds = time.perf_counter() - started
            sampler.stop()
        kill_session(process.pid)  # nothing that it left behind disturbs the next run
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise CommandFailed(f"{' '.join(command)} ended with status {process.returncode} after {seconds:.1f} s:\n{end}")
    peak = max(usage.ru_maxrss * 1024, sampler.peak_bytes)
    cpu_seconds = max(usage.ru_utime + usage.ru_stime, sum(sampler.cpu_seconds.values()))
    return Run(seconds, cpu_seconds, peak / 1e6, sampler.num_processes)


def session_processes(session: int) -> dict[int, float]:
    """The processes of a session, and how many seconds of CPU each has had."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:  # it has ended
                continue
            if int(fields[_STAT_SESSION]) == session:
                found[int(name)] = (int(fields[_STAT_USER]) + int(fields[_STAT_SYSTEM])) / TICKS_PER_SECOND
    return found


def kill_session(session: int) -> None:
    """End the processes that `run` started."""
    for process in session_processes(session):
        try:
            os.kill(process, signal.SIGKILL)
        except ProcessLookupError:
            continue


def proportional_bytes(process: int) -> int:
    """Memory of a process with shared pages divided among those that share them; 0 where it has ended."""
    try:
        with open(f"/proc/{process}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0


class _Sampler(threading.Thread):
    """Adds up the memory of a session's processes every SAMPLE_SECONDS. One process alone costs a look at /proc."""

    def __init__(self, session: int, deadline: float) -> None:
        super().__init__(daemon=True)
        self.peak_bytes = 0
        self.num_processes = 1
        self.cpu_seconds: dict[int, float] = {}
        self._session = session
        self._deadline = deadline
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            processes = session_processes(self._session)
            self.cpu_seconds |= processes
            self.num_processes = max(self.num_processes, len(processes))
            if len(processes) > 1:
                self.peak_bytes = max(self.peak_bytes, sum(map(proportional_bytes, processes)))
            if time.perf_counter() > self._deadline:
                kill_session(self._session)

    def stop(self) -> None:
        self._ended.set()
        self.join()
