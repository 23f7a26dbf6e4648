"""A run that stopped and continued is, bit for bit, the run that did not stop; and what a checkpoint refuses."""

import re
import shutil
from pathlib import Path

import pytest

from megagpt.checkpoint.manifest import LATEST_NAME
from megagpt.checkpoint.read import find_checkpoint, read_manifest
from megagpt.errors import CheckpointError, ConfigError
from tests.parallel.harness import run_ranks
from tests.parallel.runs import (
    flip_bit,
    prepare_small,
    read_metrics,
    run_arguments,
    same_weights,
    train_rank,
    train_rank_aloud,
)

LAYOUTS = {
    "one rank, ZeRO 0": (1, ["--parallel.zero_stage=0"]),
    "one rank": (1, []),
    "data 2, ZeRO 1": (2, []),
    "data 2, ZeRO 2": (2, ["--parallel.zero_stage=2"]),
    "data 2, ZeRO 3": (2, ["--parallel.zero_stage=3"]),
    "tensor 2": (2, ["--parallel.tensor=2", "--parallel.sequence_parallel=true"]),
    "pipeline 2": (2, ["--parallel.pipeline=2"]),
    "pipeline of 1 and 3 layers": (
        2,
        ["--parallel.pipeline=2", "--model.num_layers=4", "--parallel.stage_layers=1,3"],
    ),
    "context 2": (2, ["--parallel.context=2"]),
    "optimizer in host memory, ZeRO 1": (2, ["--parallel.offload_optimizer=cpu"]),
    "optimizer in host memory, ZeRO 2": (2, ["--parallel.offload_optimizer=cpu", "--parallel.zero_stage=2"]),
    "all in host memory, ZeRO 3, bf16": (
        2,
        [
            *("--parallel.zero_stage=3", "--parallel.offload_optimizer=cpu", "--parallel.offload_parameters=cpu"),
            "--train.precision=bf16",
        ],
    ),
    "bf16": (2, ["--train.precision=bf16"]),
    "bf16, ZeRO 3": (2, ["--train.precision=bf16", "--parallel.zero_stage=3"]),
    "fp16 with dropout": (
        2,
        ["--train.precision=fp16", "--model.hidden_dropout=0.1", "--train.fp16_scale_window_steps=2"],
    ),
}


def copy_data(data: Path, target: Path) -> Path:
    shutil.copytree(data, target)
    return target


@pytest.mark.parametrize("layout", LAYOUTS)
def test_resumed_run_equals_unbroken_run(data: Path, tmp_path: Path, layout: str) -> None:
    num_ranks, extra = LAYOUTS[layout]
    unbroken, broken = copy_data(data, tmp_path / "unbroken"), copy_data(data, tmp_path / "broken")
    run_ranks(num_ranks, train_rank, run_arguments(unbroken, *extra))
    run_ranks(num_ranks, train_rank, run_arguments(broken, "--train.steps=4", *extra))
    assert find_checkpoint(broken / "run").name == "step-00000004"
    run_ranks(num_ranks, train_rank, run_arguments(broken, *extra))
    records, expected = read_metrics(broken), read_metrics(unbroken)
    # the first part ends with an evaluation of its own after step 4
    assert [r for r in records if r["step"] != 4 or "loss" in r] == expected
    assert same_weights(broken, unbroken)


def test_a_run_goes_on_with_other_ranks(data: Path, tmp_path: Path) -> None:
    """The whole command, without a word about the layout: two ranks, then one, then two again in another layout."""
    unbroken, broken = copy_data(data, tmp_path / "unbroken"), copy_data(data, tmp_path / "broken")
    run_ranks(1, train_rank, run_arguments(unbroken, "--evaluation.interval_steps=0"))
    parts = [
        (2, ["--parallel.tensor=2", "--parallel.sequence_parallel=true", "--train.steps=2"]),
        (1, ["--parallel.zero_stage=0", "--train.steps=4"]),
        (2, ["--parallel.zero_stage=3"]),
    ]
    for num_ranks, extra in parts:
        run_ranks(num_ranks, train_rank, run_arguments(broken, "--evaluation.interval_steps=0", *extra))
    records, expected = ([r for r in read_metrics(folder) if "loss" in r] for folder in (broken, unbroken))
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    for record, wanted in zip(records, expected, strict=True):
        assert record["tokens"] == wanted["tokens"]
        assert record["loss"] == pytest.approx(wanted["loss"], rel=1e-5)  # the bound of tests/parity
        assert record["grad_norm"] == pytest.approx(wanted["grad_norm"], rel=1e-5)
    layouts = [
        read_manifest(path).layout.describe() for path in sorted((broken / "run" / "checkpoints").glob("step-*"))
    ]
    assert layouts[-1] == "tensor 1 × pipeline 1 × data 2, virtual stages 1, ZeRO 3"


def test_loss_falls_and_checkpoints_are_kept(data: Path, tmp_path: Path) -> None:
    folder = copy_data(data, tmp_path / "run")
    run_ranks(
        1,
        train_rank,
        run_arguments(folder, "--train.steps=40", "--checkpoint.keep=2", "--checkpoint.interval_steps=10"),
    )
    losses = [record["loss"] for record in read_metrics(folder) if "loss" in record]
    assert losses[-1] < losses[0] - 1
    steps = sorted(path.name for path in (folder / "run" / "checkpoints").iterdir() if path.name != LATEST_NAME)
    assert steps == ["step-00000030", "step-00000040"]


def trained(data: Path, folder: Path, *extra: str) -> Path:
    copy_data(data, folder)
    run_ranks(1, train_rank, run_arguments(folder, "--train.steps=2", *extra))
    return folder


def test_what_a_checkpoint_refuses(data: Path, tmp_path: Path) -> None:
    folder = trained(data, tmp_path / "run")
    cases = {
        r"  model.hidden_size +32 +→ 64 +\(command line\)": ["--model.hidden_size=64"],
        r'  train.precision  "fp32" → "bf16"  \(command line\)': ["--train.precision=bf16"],
        r"  run.seed  1234 → 5  \(command line\)": ["--run.seed=5"],
        r"  data.split +\[0.9, 0.1, 0.0\] +→ \[0.8, 0.2, 0.0\] +\(command line\)": ["--data.split=0.8,0.2,0.0"],
    }
    for message, extra in cases.items():
        with pytest.raises(CheckpointError, match=message):
            prepare_small(run_arguments(folder, *extra))
    with pytest.raises(ConfigError, match=r"checkpoint\.resume = .never. .*holds a checkpoint \(step-00000002\)"):
        prepare_small(run_arguments(folder, "--checkpoint.resume=never"))


def test_a_damaged_file_is_named(data: Path, tmp_path: Path) -> None:
    folder = trained(data, tmp_path / "run")
    damaged = folder / "run" / "checkpoints" / "step-00000002" / "moments-rank00000.safetensors"
    flip_bit(damaged)
    with pytest.raises(RuntimeError, match=r"every checkpoint in .* is damaged: .*moments-rank00000\.safetensors is"):
        run_ranks(1, train_rank, run_arguments(folder))


def test_the_newest_whole_checkpoint_is_used(data: Path, tmp_path: Path) -> None:
    """Damage of which only one rank's hashes know: all ranks take the next older one, with the data that follows it."""
    unbroken, broken = copy_data(data, tmp_path / "unbroken"), copy_data(data, tmp_path / "broken")
    run_ranks(2, train_rank, run_arguments(unbroken))
    run_ranks(2, train_rank, run_arguments(broken))
    flip_bit(broken / "run" / "checkpoints" / "step-00000006" / "weights-rank00001.safetensors")
    (broken / "run" / "checkpoints" / "step-00000004" / "moments-rank00001.safetensors").unlink()
    with pytest.raises(RuntimeError, match=r"rank 1: .*weights-rank00001\.safetensors is damaged: its hash differs"):
        run_ranks(2, train_rank, run_arguments(broken, "--train.steps=8", "--checkpoint.resume=latest"))
    said = run_ranks(2, train_rank_aloud, run_arguments(broken, "--train.steps=8"))[0]
    run_ranks(2, train_rank, run_arguments(unbroken, "--train.steps=8"))
    wanted = [
        "continuing from .*step-00000006 ",
        "step-00000006 is passed over: rank 1: .*weights-rank00001.safetensors is damaged: its hash differs",
        "continuing from .*step-00000004 ",
        "step-00000004 is passed over: rank 1: .*moments-rank00001.safetensors is missing",
        "continuing from .*step-00000002 ",
    ]
    for message in wanted:
        assert re.search(message, said), (message, said)
    assert read_metrics(broken) == read_metrics(unbroken)
    assert same_weights(broken, unbroken)


def test_a_save_that_was_killed_leaves_the_last_checkpoint(data: Path, tmp_path: Path) -> None:
    """A crash inside a save leaves a .writing folder; the run continues from `latest` and cleans it up."""
    folder = trained(data, tmp_path / "run")
    torn = folder / "run" / "checkpoints" / "step-00000004.writing"
    torn.mkdir()
    (torn / "moments-rank00000.safetensors").write_bytes(b"torn")
    run_ranks(1, train_rank, run_arguments(folder))
    assert find_checkpoint(folder / "run").name == "step-00000006"
    assert not torn.exists()
