"""Signals that ask a run to stop: remembered on the rank that gets one, told to all in the step's sum (signs.py).

In: SIGTERM, SIGUSR1. Out: the number of the first one. A second SIGTERM ends the process at once. Knows no ranks.
"""

import os
import signal
import socket
import threading
import time
import weakref
from types import FrameType
from typing import Any, NamedTuple

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
# one wish can come twice: SLURM and torchrun, which SLURM told too, both send it to a rank
SAME_WISH_SECONDS = 3.0


class Stopped(NamedTuple):
    """Why training ended before the plan's end."""

    by: str  # name of the signal
    done: int  # updates of the run when it stopped; a checkpoint has them unless this session did none
    was_saved: bool  # False: the session did no step

    def describe(self) -> str:
        """What a person is told."""
        if not self.was_saved:
            return f"stopped by {self.by} before this session's first step; the same command goes on from there"
        return f"stopped by {self.by} after step {self.done}; the same command goes on from there"

    def reason(self) -> str:
        """The same in the record of the session."""
        return f"signal {self.by} after step {self.done}"


class StopSignals:
    """Listens for signals while it is entered, in the main thread of a process; every rank has one.

    Signals are noticed at once, also while the main thread waits in a collective: a thread reads what Python's own
    handler writes to a socket (`signal.set_wakeup_fd`). Processes forked meanwhile get the default handlers.
    """

    def __init__(self) -> None:
        self.requested = 0  # number of the first signal; 0: none came
        self._first_sigterm: float | None = None

    def __enter__(self) -> "StopSignals":
        self._process = os.getpid()
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._previous_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._previous = {number: signal.signal(number, _noticed) for number in STOP_SIGNALS}
        _restore_in_forks(self)
        threading.Thread(target=self._listen, name="stop signals", daemon=True).start()
        return self

    def __exit__(self, *reason: Any) -> None:
        signal.set_wakeup_fd(self._previous_fd)
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._writer.close()  # ends the thread

    def arrived(self, number: int, now: float) -> None:
        """Take note of a signal; `now` in seconds of `time.monotonic`."""
        if number not in STOP_SIGNALS:
            return
        self.requested = self.requested or number
        if number != signal.SIGTERM:
            return
        if self._first_sigterm is None:
            self._first_sigterm = now
        elif now - self._first_sigterm > SAME_WISH_SECONDS:
            os._exit(128 + signal.SIGTERM)

    def restore_in_fork(self) -> None:
        """In a process that was forked off: signals do there what they do by default."""
        if os.getpid() != self._process and signal.getsignal(STOP_SIGNALS[0]) is _noticed:
            signal.set_wakeup_fd(-1)
            for number in STOP_SIGNALS:
                signal.signal(number, signal.SIG_DFL)

    def _listen(self) -> None:
        with self._reader:
            while number := self._reader.recv(1):
                self.arrived(number[0], time.monotonic())


def _noticed(number: int, frame: FrameType | None) -> None:
    """The thread does the rest; without a handler the signal would end the process."""


def _restore_in_forks(signals: StopSignals) -> None:
    kept = weakref.ref(signals)  # what is registered stays for the life of the process

    def restore() -> None:
        if (found := kept()) is not None:
            found.restore_in_fork()

    os.register_at_fork(after_in_child=restore)
