"""Saving behind the training, on two ranks: the same bytes as saving in place, and a rank that fails harms nothing."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from megagpt.checkpoint.index import file_of
from megagpt.checkpoint.pieces import KINDS
from megagpt.checkpoint.read import find_checkpoint, read_manifest
from megagpt.checkpoint.retention import saved_steps
from megagpt.config_file import load_config
from megagpt.plan import make_plan
from tests.parallel.harness import run_ranks
from tests.parallel.runs import read_metrics, run_arguments, train_rank_aloud


def train_slowly_written(arguments: list[str]) -> str:
    """Copied late, so that the next update waits for it; and every file written several updates after that."""
    from megagpt.checkpoint import save
    from megagpt.checkpoint.host_copy import HostCopy

    def slowly(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            time.sleep(seconds)
            return function(*arguments)

        return call

    save.write_tensors = slowly(save.write_tensors, 0.3)
    HostCopy.take = slowly(HostCopy.take, 0.1)  # type: ignore[method-assign]
    return train_rank_aloud(arguments)


def train_failing_once(arguments: list[str], bad_rank: int) -> str:
    """The first save cannot be written on one rank."""
    from megagpt.checkpoint import save
    from megagpt.parallel.launcher import launched_rank

    real, calls = save.write_tensors, 0

    def write(*files: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1 and launched_rank() == bad_rank:
            raise OSError(28, "No space left on device")
        return real(*files)

    save.write_tensors = write
    return train_rank_aloud(arguments)


@pytest.mark.parametrize(
    "layout",
    [[], ["--parallel.zero_stage=3", "--train.precision=bf16"], ["--parallel.zero_stage=0"], ["--parallel.pipeline=2"]],
)
def test_asynchronous_saves_hold_the_same_bytes(data: Path, tmp_path: Path, layout: list[str]) -> None:
    """Written while updates go on: what is in the files is of their own step."""
    folders = {}
    for name, function, extra in (
        ("in place", train_rank_aloud, "--checkpoint.asynchronous=false"),
        ("behind", train_slowly_written, "--checkpoint.asynchronous=true"),
    ):
        folder = shutil.copytree(data, tmp_path / name)
        arguments = run_arguments(folder, *layout, "--checkpoint.keep=9", "--checkpoint.interval_steps=3", extra)
        run_ranks(2, function, arguments)
        folders[name] = folder / "run" / "checkpoints"
    assert [saved_steps(folder) for folder in folders.values()] == [[3, 6]] * 2
    for step in ("step-00000003", "step-00000006"):
        left, right = (read_manifest(folder / step) for folder in folders.values())
        tensors = [name for name in left.files if name.endswith(".safetensors")]
        assert len(tensors) == 4
        assert all(left.files[name] == right.files[name] for name in tensors)
        assert left.optimizer == right.optimizer
    metrics = [read_metrics(folder.parents[1]) for folder in folders.values()]
    assert metrics[0] == metrics[1]
    plan = make_plan(load_config(None, arguments), 2, 400)  # knows how much memory the copies take
    ranks = [saved_bytes(folders["behind"] / "step-00000006", rank) for rank in range(2)]
    assert sum(ranks) == plan.checkpoint_bytes
    assert 0.9 * plan.checkpoint_copy_bytes < max(ranks) < 1.01 * plan.checkpoint_copy_bytes


def saved_bytes(folder: Path, rank: int) -> int:
    return sum(value.nbytes for kind in KINDS[:2] for value in load_file(folder / file_of(rank, kind)).values())


def test_a_save_that_fails_on_one_rank(data: Path, tmp_path: Path) -> None:
    """It is said, training goes on, and the next save is whole."""
    folder = shutil.copytree(data, tmp_path / "run")
    said = run_ranks(2, train_failing_once, run_arguments(folder), 1)[0].splitlines()
    (failed,) = (line for line in said if "failed" in line)
    assert failed.startswith("checkpoint after step 2 failed: rank 1 could not write ")
    assert failed.endswith(
        "No space left on device; free space or give rights to run.folder; earlier checkpoints are untouched; "
        "training goes on"
    )
    assert sum(line.startswith("saved ") for line in said) == 2
    assert saved_steps(folder / "run" / "checkpoints") == [4, 6]
    assert find_checkpoint(folder / "run").name == "step-00000006"
