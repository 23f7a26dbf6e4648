"""`megagpt train` on ranks of the fork server, as processes that may die: each one's exit status and what it printed.

A fault is what a rank does as it begins a call of one of the loop's functions: it may kill, stop or delay itself.
"""

import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.parallel.harness import PRELOADED

_SECONDS_AFTER_THE_OTHER = 5.0


class Fault(NamedTuple):
    """What happens on one rank: `action` before the `call`-th call, from 1, of `megagpt.training.loop`'s `function`.

    With `again`, before all later calls too.
    """

    rank: int
    function: str
    call: int
    action: Callable[[], None]
    again: bool = False


class Ended(NamedTuple):
    """How a rank's process ended."""

    status: int | None  # None: it had to be killed
    printed: str
    seconds: float  # until it ended, since the start


def sleep_forever() -> None:
    """As a read of a file system that does not answer."""
    time.sleep(3600)


def stop_answering() -> None:
    """As a machine that swaps or is frozen: no thread of the process runs."""
    os.kill(os.getpid(), signal.SIGSTOP)


def die() -> None:
    """As the kernel without memory would have it."""
    os.kill(os.getpid(), signal.SIGKILL)


def doze() -> None:
    """As a slow machine, in a small step."""
    time.sleep(0.1)


def train_with_faults(folder: Path, arguments: list[str], faults: list[Fault], seconds: float) -> list[Ended]:
    """Train on two ranks. Both are killed after `seconds`, and one, as by a launcher, soon after the other ended."""
    (folder / "faulty.toml").write_text("", encoding="utf-8")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    logs = [folder / f"rank{rank}.log" for rank in range(2)]
    started = time.monotonic()
    processes = [
        context.Process(target=_rank_main, args=(rank, port, logs[rank], folder, arguments, faults), daemon=True)
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    ended: dict[int, Ended] = {}
    while len(ended) < 2:
        for rank, process in enumerate(processes):
            took = time.monotonic() - started
            patience = min([seconds, *(end.seconds + _SECONDS_AFTER_THE_OTHER for end in ended.values())])
            if rank in ended or (process.is_alive() and took < patience):
                continue
            status = None if process.is_alive() else process.exitcode
            process.kill()
            process.join()
            ended[rank] = Ended(status, logs[rank].read_text(), took)
        time.sleep(0.02)
    return [ended[rank] for rank in range(2)]


def _rank_main(rank: int, port: int, log: Path, folder: Path, arguments: list[str], faults: list[Fault]) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2", OMP_NUM_THREADS="1")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    from megagpt.training import loop
    from megagpt.training.cli import main

    for fault in faults:
        if fault.rank == rank:
            insert(loop, fault)
    os._exit(main([str(folder / "faulty.toml"), *arguments]))


def insert(module: Any, fault: Fault) -> None:
    """Make a function of a module begin with a fault."""
    function: Callable[..., Any] = getattr(module, fault.function)
    calls = 0

    def with_fault(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == fault.call or (fault.again and calls > fault.call):
            fault.action()
        return function(*arguments, **options)

    setattr(module, fault.function, with_fault)
