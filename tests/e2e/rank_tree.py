"""`megagpt train` on several ranks as a real process tree whose ranks can be killed, stopped and signalled.

Ranks are children of the tests' fork server (tests/parallel/harness.py), which has everything imported, so that one
starts in milliseconds; what they run is the command line, and they meet as ranks of torchrun do, through MASTER_ADDR.
"""

import multiprocessing
import os
import signal
import socket
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.parallel.harness import PRELOADED


class RankTree:
    """The ranks of one session. They print to FOLDER/rank-N.txt, one session after the other."""

    def __init__(self, folder: Path, num_ranks: int, argv: list[str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.folder = folder
        self.processes: list[Any] = []
        port = _free_port()
        for rank in range(num_ranks):
            arguments = (rank, num_ranks, port, str(folder / f"rank-{rank}.txt"), argv)
            process = context.Process(target=_rank_main, args=arguments, daemon=True)
            process.start()
            self.processes.append(process)

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to a rank; one that has ended already gets none."""
        with suppress(ProcessLookupError):
            os.kill(self.processes[rank].pid, number)

    def kill(self) -> None:
        """SIGKILL to all ranks."""
        for rank in range(len(self.processes)):
            self.signal(rank, signal.SIGKILL)

    @property
    def alive(self) -> bool:
        """Whether any rank runs."""
        return any(process.is_alive() for process in self.processes)

    def wait(self, timeout_seconds: float) -> list[int]:
        """Exit statuses of all ranks, negative for a signal. Raises AssertionError with what they printed after it."""
        until = time.monotonic() + timeout_seconds
        for process in self.processes:
            process.join(max(0.0, until - time.monotonic()))
        statuses = [process.exitcode for process in self.processes]
        if None in statuses:
            self.kill()
            raise AssertionError(f"statuses {statuses} after {timeout_seconds} s:\n{self.said()}")
        return statuses

    def end_as_launchers_do(self, patience_seconds: float) -> list[int]:
        """What launchers do where a rank has died: SIGTERM to the others, later SIGKILL. Exit statuses of all."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            until = time.monotonic() + patience_seconds
            while self.alive and time.monotonic() < until:
                time.sleep(0.005)
            for rank, process in enumerate(self.processes):
                if process.is_alive():
                    self.signal(rank, number)
        return self.wait(30)

    def said(self) -> str:
        """The last that each rank printed."""
        files = sorted(self.folder.glob("rank-*.txt"))
        return "\n".join(f"--- {file.name}\n{file.read_text(errors='replace')[-3000:]}" for file in files)


def _rank_main(rank: int, num_ranks: int, port: int, output: str, argv: list[str]) -> None:
    handle = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_WORLD_SIZE=str(num_ranks))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from megagpt.cli import main

    status = 1
    try:
        status = main(["train", *argv])
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without the fork server's own ways of ending


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
