"""torchrun's own agent, with two ranks that have the libraries loaded: seconds less than the command takes to start."""

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

from tests.parallel.harness import PRELOADED

Worker = Callable[[list[str]], None]


def train_worker(arguments: list[str]) -> None:
    """A rank as torchrun starts it: `megagpt train ARGUMENTS`, and its exit status."""
    from megagpt.training.cli import main

    os.environ["OMP_NUM_THREADS"] = "1"
    status = main(arguments)
    if status:
        os._exit(status)


def leaving_worker(arguments: list[str]) -> None:
    """The same, of an agent that is asked to stop: it would not take what the function returns, and the rank waits."""
    train_worker(arguments)
    os._exit(0)


def start_agent(worker: Worker, arguments: list[str], log: Path, max_restarts: int = 0) -> BaseProcess:
    """`torchrun --standalone --nproc-per-node 2 --max-restarts N`; all that is printed goes to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_agent, args=(worker, arguments, log, max_restarts))
    process.start()
    return process


def _agent(worker: Worker, arguments: list[str], log: Path, max_restarts: int) -> None:
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with log.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=2,
        run_id="elastic",
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=max_restarts,
        monitor_interval=0.1,
        start_method="fork",
    )
    elastic_launch(config, entrypoint=worker)(arguments)
