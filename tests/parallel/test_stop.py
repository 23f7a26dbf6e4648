"""SIGTERM and SIGUSR1 on one of two ranks: both save the same step; the run that goes on is the unbroken one."""

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megagpt.checkpoint.read import find_checkpoint
from megagpt.training.run_record import read_sessions
from megagpt.training.stop import StopSignals
from tests.parallel.elastic import leaving_worker, start_agent
from tests.parallel.harness import run_ranks
from tests.parallel.runs import prepare_small, read_metrics, run_arguments, run_prepared, same_weights, train_rank


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two ranks that nothing stopped."""
    folder = shutil.copytree(data, tmp_path_factory.mktemp("unbroken") / "data")
    run_ranks(2, train_rank, run_arguments(folder))
    return folder


def assert_equal_runs(folder: Path, unbroken: Path) -> None:
    assert read_metrics(folder) == read_metrics(unbroken)
    assert same_weights(folder, unbroken)


def train_with_signal(arguments: list[str], name: str, rank: int, call: int, number: int) -> str:
    """A session in which `rank` gets a signal as it begins its `call`-th call (from 1) of a function of the session."""
    from megagpt.training import loop, session

    module: Any = session if hasattr(session, name) else loop
    function: Callable[..., Any] = getattr(module, name)
    calls = 0
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115
    stop = StopSignals()

    def call_with_signal(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call and os.environ["RANK"] == str(rank):
            os.kill(os.getpid(), number)
            while not stop.requested:
                time.sleep(0.001)
        return function(*arguments, **options)

    setattr(module, name, call_with_signal)
    run_prepared(prepare_small(arguments), console, signals=stop)
    return console.export_text().splitlines()[-1]


MOMENTS = {
    # function, which call of it, rank, signal; checkpoint that the session leaves (saves are due after steps 2, 4, 6)
    "in a step after which nothing is due": ("sum_losses", 3, 1, signal.SIGUSR1, "step-00000003"),
    "in a step after which a save is due": ("sum_losses", 4, 0, signal.SIGTERM, "step-00000004"),
    "in an evaluation": ("_evaluate", 1, 1, signal.SIGTERM, "step-00000004"),
    "in a save": ("take_snapshot", 1, 1, signal.SIGUSR1, "step-00000003"),
    "in the first step": ("sum_losses", 1, 1, signal.SIGUSR1, "step-00000001"),
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_all_ranks_save_and_the_rest_is_the_unbroken_run(
    data: Path, unbroken: Path, tmp_path: Path, moment: str
) -> None:
    name, call, rank, number, left = MOMENTS[moment]
    folder = shutil.copytree(data, tmp_path / "data")
    said = run_ranks(2, train_with_signal, run_arguments(folder), name, rank, call, int(number))
    wanted = f"stopped by {number.name} after step {int(left[-2:])}; the same command goes on from there"
    assert said == [wanted] * 2
    assert find_checkpoint(folder / "run").name == left
    end = read_sessions(folder / "run")[-1].end
    assert end is not None
    assert (end.reason, end.status) == (f"signal {number.name} after step {int(left[-2:])}", 0)
    run_ranks(2, train_rank, run_arguments(folder))
    assert_equal_runs(folder, unbroken)


def test_before_the_first_step_nothing_is_saved(data: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    said = run_ranks(2, train_with_signal, run_arguments(folder), "build_engine", 1, 1, int(signal.SIGUSR1))
    message = "stopped by SIGUSR1 before this session's first step; the same command goes on from there"
    assert said == [message] * 2
    assert not (folder / "run" / "checkpoints").exists()


def test_in_the_last_step_the_run_is_complete(data: Path, unbroken: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(data, tmp_path / "data")
    said = run_ranks(2, train_with_signal, run_arguments(folder), "sum_losses", 0, 6, int(signal.SIGTERM))
    assert "stopped" not in said[0]
    assert_equal_runs(folder, unbroken)


LONG = ("--train.steps=150", "--evaluation.interval_steps=0", "--checkpoint.interval_steps=0")


def test_sigterm_to_torchrun_ends_in_a_checkpoint(data: Path, tmp_path: Path) -> None:
    """torchrun hands it on and waits for its ranks; started again, the run's losses are the unbroken one's."""
    folder, whole = shutil.copytree(data, tmp_path / "broken"), shutil.copytree(data, tmp_path / "whole")
    (folder / "small.toml").write_text("", encoding="utf-8")
    log, metrics = folder / "log", folder / "run" / "metrics.jsonl"
    process = start_agent(leaving_worker, [str(folder / "small.toml"), *run_arguments(folder, *LONG)], log)
    deadline = time.monotonic() + 60
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= 5) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    process.join(60)
    printed = log.read_text()
    assert "forcefully" not in printed, printed
    assert "stopped by SIGTERM after step" in printed, printed
    done = len(read_metrics(folder))
    assert 5 <= done < 150
    assert find_checkpoint(folder / "run").name == f"step-{done:08}"
    end = read_sessions(folder / "run")[-1].end
    assert end is not None
    assert (end.reason, end.status) == (f"signal SIGTERM after step {done}", 0)
    run_ranks(2, train_rank, run_arguments(folder, *LONG))
    run_ranks(2, train_rank, run_arguments(whole, *LONG))
    assert_equal_runs(folder, whole)
