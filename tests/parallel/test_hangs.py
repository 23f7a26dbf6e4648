"""A rank that hangs, stops answering or dies: all end with a status that means "start again", and say who it was."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from megagpt.checkpoint.retention import latest_step
from megagpt.parallel.mesh import build_mesh
from megagpt.training.exit_status import RESTART
from megagpt.training.run_record import read_sessions
from tests.parallel.faulty import Ended, Fault, die, doze, sleep_forever, stop_answering, train_with_faults
from tests.parallel.harness import run_ranks
from tests.parallel.runs import run_arguments

TIMEOUT_SECONDS = 4.0
WATCHED = f"--faults.hang_timeout_seconds={TIMEOUT_SECONDS}"


def train(data: Path, folder: Path, faults: list[Fault], *extra: str, seconds: float = 40) -> list[Ended]:
    shutil.copytree(data, folder)
    return train_with_faults(folder, run_arguments(folder, *extra), faults, seconds)


def test_a_rank_that_sleeps_is_named_and_all_print_their_stacks(data: Path, tmp_path: Path) -> None:
    """Asleep where data is read: the others wait in the next sum."""
    folder = tmp_path / "run"
    ended = train(data, folder, [Fault(1, "reduce_num_loss_tokens", 4, sleep_forever)], WATCHED)
    assert [rank.status for rank in ended] == [RESTART] * 2, ended
    for rank, end in enumerate(ended):
        kept = (folder / "run" / "logs" / f"stacks-rank{rank:05}.txt").read_text()
        for text in (end.printed, kept):
            assert f"rank {rank} on " in text
            assert "s in step 4 (counting the batch's tokens)" in text
        assert "sleep_forever" in kept if rank else "all_reduce" in kept
        assert "rank 1 on " in end.printed
        assert "in no collective: the others wait in one" in end.printed
        assert "ends with status 75; the same command goes on from the latest checkpoint" in end.printed
    session = read_sessions(folder / "run")[-1]
    assert session.end is not None
    assert session.end.reason.startswith("hang in step 4 (counting the batch's tokens): no progress for 4 s")
    assert session.end.status == RESTART


def test_a_rank_that_is_stopped_is_named_by_the_other(data: Path, tmp_path: Path) -> None:
    """SIGSTOP on rank 0: it prints nothing itself."""
    folder = tmp_path / "run"
    ended = train(data, folder, [Fault(0, "dropout_seed", 3, stop_answering)], WATCHED)
    assert ended[0].status is None
    assert ended[1].status == RESTART, ended[1]
    assert "rank 1: rank 0 reported nothing: stopped, gone, or on a machine that does not answer" in ended[1].printed


def test_nothing_is_watched_with_a_timeout_of_0(data: Path, tmp_path: Path) -> None:
    ended = train(
        data,
        tmp_path / "run",
        [Fault(1, "reduce_num_loss_tokens", 4, sleep_forever)],
        "--faults.hang_timeout_seconds=0",
        seconds=8,
    )
    assert [rank.status for rank in ended] == [None, None]
    assert "no progress" not in ended[0].printed + ended[1].printed


@pytest.mark.parametrize(
    ("function", "call", "place", "layout"),
    [
        ("dropout_seed", 4, "step 4 (forward and backward)", "--parallel.pipeline=2"),
        ("sum_losses", 3, "step 3 (telling all ranks of the step)", "--parallel.zero_stage=1"),
        ("_evaluate", 1, "step 3 (evaluating)", "--parallel.tensor=2"),
    ],
)
def test_the_peer_of_a_killed_rank_ends_at_once(
    data: Path, tmp_path: Path, function: str, call: int, place: str, layout: str
) -> None:
    folder = tmp_path / "run"
    in_place = "--checkpoint.asynchronous=false"  # so that it is known which checkpoint is there
    dead, left = train(data, folder, [Fault(0, function, call, die)], layout, in_place)
    assert dead.status == -9
    assert left.status == RESTART, left
    saved = latest_step(folder / "run" / "checkpoints")
    line = f"rank 1: lost the connection to another rank in {place}; training goes on from step {saved} when the run"
    assert line in left.printed
    assert "Traceback" not in left.printed
    assert "Traceback" in (folder / "run" / "logs" / "errors-rank00001.txt").read_text()
    assert left.seconds - dead.seconds < 3


def group_timeouts() -> list[float]:
    """Seconds that collectives of each group may take."""
    dist.destroy_process_group()
    build_mesh(1, 1, timeout_seconds=5040)
    groups = dist.distributed_c10d._world.pg_map
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]


def test_no_collective_fails_before_the_watchdog_speaks() -> None:
    (timeouts,) = run_ranks(1, group_timeouts)
    assert len(timeouts) > 5
    assert set(timeouts) == {5040}


def test_a_peer_lost_before_the_first_checkpoint(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    left, dead = train(data, folder, [Fault(1, "dropout_seed", 1, die)])
    assert (left.status, dead.status) == (RESTART, -9)
    assert "training begins anew when the run is started again" in left.printed
    session = read_sessions(folder / "run")[-1]
    assert session.end is not None
    assert session.end.reason.startswith("lost a peer in step 1 (")


def fail() -> None:
    raise RuntimeError("our own mistake")


def test_another_error_keeps_its_traceback(data: Path, tmp_path: Path) -> None:
    failed, left = train(data, tmp_path / "run", [Fault(0, "dropout_seed", 2, fail)])
    assert failed.status == 1
    assert "RuntimeError: our own mistake" in failed.printed
    assert left.status == RESTART


def test_a_slow_rank_is_named(data: Path, tmp_path: Path) -> None:
    """Rank 1 dozes in every step: the log names it, and each record of a step says by how much."""
    doze_always = [Fault(1, "dropout_seed", 1, doze, again=True)]
    long = ("--train.steps=21", "--evaluation.interval_steps=0", "--checkpoint.interval_steps=0")
    ended = train(data, tmp_path / "run", doze_always, *long)
    assert [rank.status for rank in ended] == [0, 0], ended
    (line,) = [line for line in ended[0].printed.splitlines() if line.startswith("slow: ")]
    assert re.fullmatch(
        r"slow: rank 1 on \S+ takes [\d.]+ times as long as the other data ranks \(median of 20 steps\)", line
    )
    assert "slow: " not in ended[1].printed
    lines = (tmp_path / "run" / "run" / "metrics.jsonl").read_text().splitlines()
    records = [record for record in map(json.loads, lines) if "loss" in record]
    assert sum(record["slowest_rank"] == 1 and record["slowest_ratio"] > 1.5 for record in records) > 15
    ended = train(data, tmp_path / "unnamed", doze_always, *long, "--faults.slow_rank_ratio=0")
    assert "slow: " not in ended[0].printed
