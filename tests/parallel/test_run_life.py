"""The life of a run on two ranks, as its folder and `megagpt runs` tell it: running, killed, stopped, failed, complete.

Real processes: the ranks are started by the command line, killed with SIGKILL and stopped with SIGTERM.
"""

import json
import signal
import time
from pathlib import Path

import pytest

from megagpt.runs.summary import RunSummary, summarise
from megagpt.training.run_lock import is_locked
from megagpt.training.run_record import read_sessions
from tests.e2e.rank_tree import RankTree
from tests.parallel.runs import make_data, run_arguments

ENDLESS = "--train.steps=1000000"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_data(tmp_path)
    (tmp_path / "small.toml").write_text("", encoding="utf-8")
    return tmp_path


def start(folder: Path, num_ranks: int, *extra: str) -> RankTree:
    settings = ["--evaluation.interval_steps=0", "--checkpoint.interval_steps=5", *extra]
    return RankTree(folder, num_ranks, [str(folder / "small.toml"), *run_arguments(folder), *settings])


def until(tree: RankTree, folder: Path, sessions: int, step: int) -> RunSummary:
    """The run once its state says that its `sessions`-th session has done `step` steps."""
    deadline = time.monotonic() + 60
    while True:
        found = summarise(folder / "run")
        if len(found.sessions) == sessions and found.step is not None and found.step >= step:
            return found
        assert tree.alive, tree.said()
        assert time.monotonic() < deadline, tree.said()
        time.sleep(0.05)


def test_the_life_of_a_run(folder: Path) -> None:
    run = folder / "run"
    first = start(folder, 2, ENDLESS)
    found = until(first, folder, 1, 10)
    assert (found.state, found.steps, found.restarts) == ("running", 1_000_000, 0)
    assert found.loss is not None
    assert found.tokens_per_second is not None

    second = start(folder, 1, ENDLESS)
    assert second.wait(60) == [2]
    refused = (folder / "rank-0.txt").read_text()
    assert f"error: run.folder {run} is being trained by another process: pid {first.processes[0].pid} on " in refused
    assert summarise(run).state == "running", "the second start leaves the first alone"
    assert len(read_sessions(run)) == 1

    first.kill()
    first.wait(30)
    found = summarise(run)
    assert is_locked(run) is False
    assert found.state == "killed"
    assert found.reason == f"killed after step {found.step}"
    assert found.checkpoint is not None
    assert found.checkpoint.problem is None

    third = start(folder, 2, ENDLESS)
    found = until(third, folder, 2, found.checkpoint.step + 5)
    assert found.reason is not None
    assert found.reason.startswith("killed after step "), "why it was started again"
    third.signal(1, signal.SIGTERM)
    assert third.wait(60) == [0, 0]
    found = summarise(run)
    assert found.state == "stopped"
    assert found.reason == f"signal SIGTERM after step {found.step}"

    fourth = start(folder, 2, ENDLESS, "--train.lr=1e38", "--checkpoint.interval_steps=0")  # not to save what it does
    assert fourth.wait(60)[0] == 3
    found = summarise(run)
    assert found.state == "failed"
    assert found.reason is not None
    assert found.reason.startswith("error: the ")
    assert "is not finite" in found.reason

    last = found.sessions[-1].start.first_step + 2
    fifth = start(folder, 2, f"--train.steps={last}", "--log.interval_steps=2")
    assert fifth.wait(60) == [0, 0]
    found = summarise(run)
    assert (found.state, found.step, found.steps, found.restarts) == ("complete", last, last, 3)
    assert found.checkpoint is not None
    assert (found.checkpoint.step, found.checkpoint.problem) == (last, None)

    sessions = read_sessions(run)
    assert [session.end.status if session.end else None for session in sessions] == [None, 0, 3, 0]
    assert [session.start.previous is not None for session in sessions] == [False, True, False, False]
    assert sessions[2].start.changed[0] == "train.lr 0.003 → 1e+38 (command line)"
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    (host,) = environment["hosts"].values()
    assert host["ranks"] == [0, 1]
    log = (run / "train.log").read_text(encoding="utf-8")
    assert [f"session {number} on" in log for number in (1, 2, 3, 4, 5)] == [True] * 4 + [False]
    assert f"the session before this one (number 1, on {sessions[0].start.host} since " in log
    assert log.count("continuing from ") == 3
    assert log.count(f"saved {run}/checkpoints/step-{last:08d} (") >= 1
    assert "error: the " in log
    assert not list(run.glob("*.partial"))


def test_nothing_is_made_where_the_start_is_refused(folder: Path) -> None:
    tree = start(folder, 1, ENDLESS, "--tokenizer.path=nowhere")
    assert tree.wait(60) == [2]
    assert not (folder / "run").exists()
