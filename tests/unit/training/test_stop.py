"""Signals that ask to stop: the first is remembered, a second SIGTERM ends the process, forks are left alone."""

import os
import signal
import subprocess
import sys
import time

import pytest

from megagpt.training.signs import RankSigns, stop_asked
from megagpt.training.stop import SAME_WISH_SECONDS, Stopped, StopSignals


def wait_for(stop: StopSignals) -> int:
    deadline = time.monotonic() + 10
    while not stop.requested and time.monotonic() < deadline:
        time.sleep(0.001)
    return stop.requested


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_remembered_and_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with StopSignals() as stop:
        assert stop.requested == 0
        os.kill(os.getpid(), number)
        assert wait_for(stop) == number
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_ctrl_c_is_no_wish_to_stop() -> None:
    """The socket hears of every signal that Python handles; tests/parallel/test_command_errors.py presses Ctrl-C."""
    stop = StopSignals()
    stop.arrived(signal.SIGINT, 0.0)
    assert stop.requested == 0


def test_the_first_signal_counts_and_only_a_later_sigterm_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    stop = StopSignals()
    stop.arrived(signal.SIGUSR1, 0.0)
    stop.arrived(signal.SIGUSR1, 50.0)
    stop.arrived(signal.SIGTERM, 100.0)  # SLURM's time limit, while the run saves
    stop.arrived(signal.SIGTERM, 100.0 + SAME_WISH_SECONDS)  # the same wish, told by the launcher too
    stop.arrived(signal.SIGINT, 101.0)
    assert (stop.requested, ended) == (signal.SIGUSR1, [])
    stop.arrived(signal.SIGTERM, 100.1 + SAME_WISH_SECONDS)
    assert ended == [143]


# as in a collective that never ends, no Python runs in the main thread: it waits for a lock that it holds itself
BLOCKED = """
from megagpt.training.stop import StopSignals
with StopSignals():
    print("ready", flush=True)
    import ctypes
    libc = ctypes.CDLL(None)
    mutex = ctypes.create_string_buffer(64)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
"""


def test_a_second_sigterm_ends_a_rank_that_hangs_in_a_collective() -> None:
    process = subprocess.Popen([sys.executable, "-c", BLOCKED], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(SAME_WISH_SECONDS + 0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(10) == 143
    process.stdout.close()


def test_a_forked_process_ends_by_its_own_signals() -> None:
    with StopSignals() as stop:
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        time.sleep(0.1)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGTERM
        time.sleep(0.05)
        assert stop.requested == 0


def test_what_a_person_is_told() -> None:
    after = Stopped("SIGUSR1", 12, was_saved=True).describe()
    assert after == "stopped by SIGUSR1 after step 12; the same command goes on from there"
    before = Stopped("SIGTERM", 12, was_saved=False).describe()
    assert before == "stopped by SIGTERM before this session's first step; the same command goes on from there"


def test_one_rank_that_was_asked_stops_all() -> None:
    fine = RankSigns(True, True)
    assert stop_asked([fine, fine]) is None
    assert stop_asked([fine, fine._replace(stop_signal=signal.SIGUSR1)]) == "SIGUSR1"
    both = [fine._replace(stop_signal=signal.SIGTERM), fine._replace(stop_signal=signal.SIGUSR1)]
    assert stop_asked(both) == "SIGTERM"
