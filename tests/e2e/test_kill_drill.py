"""kill -9 of one rank and of all ranks at 100 moments of runs, also inside a save: each run ends as the unbroken one.

A moment is a random time after a random step is written to metrics.jsonl, or after a save has begun, or after the
start. The same command starts again after each; its records and its last weights must be those of the unbroken run, bit
for bit.
"""

import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.e2e.rank_tree import RankTree
from tests.parallel.runs import make_data, read_metrics, run_arguments, same_weights

KILLS = 25  # of each layout
STEPS = 120
LAYOUTS = {
    "one rank, ZeRO 0": (1, ["--parallel.zero_stage=0"]),
    "data 2, ZeRO 1, bf16": (2, ["--train.precision=bf16"]),
    "data 2, ZeRO 3": (2, ["--parallel.zero_stage=3"]),
    "pipeline 2, saving in place": (2, ["--parallel.pipeline=2", "--checkpoint.asynchronous=false"]),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


def arguments(data: Path, run: Path, extra: list[str]) -> list[str]:
    config = data / "drill.toml"  # all of it is on the command line
    config.write_text("", encoding="utf-8")
    settings = [f"--run.folder={run}/run", f"--train.steps={STEPS}", "--checkpoint.interval_steps=2"]
    return [str(config), *run_arguments(data), *settings, "--evaluation.interval_steps=20", *extra]


def lines_of(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def until_moment(tree: RankTree, run: Path, kind: str, chance: random.Random) -> None:
    """Return at a random moment of a kind, or when the ranks have ended."""
    metrics, checkpoints = run / "run" / "metrics.jsonl", run / "run" / "checkpoints"
    if kind == "start":
        time.sleep(chance.uniform(0.0, 1.5))
        return
    wanted = lines_of(metrics) + chance.randint(1, 4)
    before = metrics.stat().st_mtime_ns if metrics.exists() else 0
    while tree.alive:
        if kind == "save" and list(checkpoints.glob("*.writing")):
            time.sleep(chance.uniform(0.0, 0.02))
            return
        if kind == "step" and lines_of(metrics) >= wanted and metrics.stat().st_mtime_ns != before:
            time.sleep(chance.uniform(0.0, 0.05))
            return
        time.sleep(0.0005)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_runs_end_as_the_unbroken_one(data: Path, tmp_path: Path, layout: str) -> None:
    num_ranks, extra = LAYOUTS[layout]
    (tmp_path / "unbroken").mkdir()
    (tmp_path / "killed").mkdir()
    unbroken = RankTree(tmp_path / "unbroken", num_ranks, arguments(data, tmp_path / "unbroken", extra))
    assert unbroken.wait(120) == [0] * num_ranks, unbroken.said()
    chance = random.Random(layout)
    kinds: Counter[str] = Counter()
    argv = arguments(data, tmp_path / "killed", extra)
    for number in range(KILLS):
        kind = ("save", "step", "save", "start")[number % 4]
        tree = RankTree(tmp_path / "killed", num_ranks, argv)
        until_moment(tree, tmp_path / "killed", kind, chance)
        if number % 2 or num_ranks == 1:
            tree.kill()
            statuses = tree.wait(30)
        else:
            victim = chance.randrange(num_ranks)
            tree.signal(victim, signal.SIGKILL)
            statuses = tree.end_as_launchers_do(patience_seconds=0.5)
        kinds[kind if -signal.SIGKILL in statuses else "ended before"] += 1
        assert set(statuses) <= {-signal.SIGKILL, -signal.SIGTERM, 0, 1, 75}, (statuses, tree.said())
        assert any((tmp_path / "killed").iterdir())
    last = RankTree(tmp_path / "killed", num_ranks, argv)
    assert last.wait(120) == [0] * num_ranks, last.said()
    print(layout, dict(kinds))
    assert kinds["save"] >= KILLS // 4, kinds
    assert read_metrics(tmp_path / "killed") == read_metrics(tmp_path / "unbroken")
    assert same_weights(tmp_path / "killed", tmp_path / "unbroken")
