"""torchrun's agent starts a run again whose rank was killed, and one that hung: it ends as if nothing had happened."""

import os
import shutil
from pathlib import Path

import pytest

from megagpt.training.run_record import read_sessions
from tests.parallel.elastic import start_agent, train_worker
from tests.parallel.faulty import Fault, die, insert, sleep_forever
from tests.parallel.harness import run_ranks
from tests.parallel.runs import make_data, read_metrics, run_arguments, same_weights, train_rank

# what befalls rank 1 in each attempt; saves are due after steps 2, 4 and 6
IN_PLACE = "--checkpoint.asynchronous=false"  # so that a save is whole before the next step
FAULTS = [
    Fault(1, "dropout_seed", 4, die),  # in step 4: goes on from step 2
    Fault(1, "reduce_num_loss_tokens", 3, sleep_forever),  # in step 5: goes on from step 4
]


def faulty_worker(arguments: list[str]) -> None:
    """A rank whose fault depends on the attempt."""
    from megagpt.training import loop

    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt < len(FAULTS) and os.environ["RANK"] == str(FAULTS[attempt].rank):
        insert(loop, FAULTS[attempt])
    train_worker(arguments)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "broken").mkdir()
    make_data(tmp_path / "broken")
    shutil.copytree(tmp_path / "broken", tmp_path / "unbroken")
    return tmp_path


def test_a_killed_and_a_hung_rank_change_nothing(folder: Path) -> None:
    broken, unbroken, log = folder / "broken", folder / "unbroken", folder / "log"
    (folder / "small.toml").write_text("", encoding="utf-8")
    arguments = [str(folder / "small.toml"), *run_arguments(broken, "--faults.hang_timeout_seconds=4", IN_PLACE)]
    process = start_agent(faulty_worker, arguments, log, max_restarts=len(FAULTS))
    process.join(120)
    assert process.exitcode == 0, log.read_text()
    reasons = [session.end.reason for session in read_sessions(broken / "run") if session.end is not None]
    assert len(reasons) == 3, log.read_text()
    assert reasons[0].startswith("lost a peer in step 4 (")
    assert reasons[1].startswith("hang in step 5 (counting the batch's tokens)")
    assert reasons[2] == "complete"
    run_ranks(2, train_rank, run_arguments(unbroken))
    assert read_metrics(broken) == read_metrics(unbroken)
    assert same_weights(broken, unbroken)
