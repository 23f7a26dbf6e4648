"""A loss spike: the run goes back to a checkpoint, leaves samples out and goes on, and any resume reads the same."""

import io
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from megagpt.checkpoint.read import find_checkpoint, read_manifest
from megagpt.data.sample_skips import SampleSkip
from megagpt.data.show_run import show_step
from tests.parallel.harness import run_ranks
from tests.parallel.runs import flip_bit, prepare_small, read_metrics, run_arguments, run_prepared, same_weights

POLICY = [
    *("--train.steps=12", "--checkpoint.keep=3", "--evaluation.interval_steps=4"),
    *("--faults.spike_factor=7", "--faults.spike_window_steps=4", "--faults.spike_patience_steps=2"),
    *("--faults.rewind_steps=1", "--faults.skip_steps=1"),
]
BATCH = 8  # samples a step
POISONED = range(8 * BATCH, 10 * BATCH)  # the samples of steps 9 and 10


class Trained(NamedTuple):
    """First sample of every step in the order in which they were done, and what was said."""

    first_samples: list[int]
    said: str


def train_on_poison(arguments: list[str], poisoned: list[range], end: str = "", end_at: int = 0) -> Trained:
    """Train one rank as `megagpt train` does. A batch with poisoned samples has 20 nats a token more.

    `end`: the rank dies in step number `end_at` that it does ("step"), or while it goes back ("rewind").
    """
    from megagpt.training import loop, rewind
    from megagpt.training.read_ahead import ReadAhead

    real_take, real_totals, real_removal = ReadAhead.take, loop.total_loss, rewind.remove_steps
    first_samples: list[int] = []

    def noted_take(reader: ReadAhead, batch: Any) -> Any:
        first_samples.append(batch.first_sample)
        if end == "step" and len(first_samples) == end_at:
            raise KeyboardInterrupt
        return real_take(reader, batch)

    def poisoned_total(signs: Any, mesh: Any) -> Any:
        totals = real_totals(signs, mesh)
        is_bad = any(first_samples[-1] + BATCH > bad.start and first_samples[-1] < bad.stop for bad in poisoned)
        return totals._replace(loss_sum=totals.loss_sum + 20 * totals.num_tokens) if is_bad else totals

    def killed_removal(checkpoints: Path, steps: list[int]) -> None:
        if end == "rewind":
            raise KeyboardInterrupt
        real_removal(checkpoints, steps)

    ReadAhead.take = noted_take  # type: ignore[method-assign]
    loop.total_loss, rewind.remove_steps = poisoned_total, killed_removal  # type: ignore[assignment]
    said = io.StringIO()
    try:
        run_prepared(prepare_small(arguments), Console(file=said, quiet=os.environ["RANK"] != "0", width=1000))
    except KeyboardInterrupt:
        os._exit(1)
    return Trained(first_samples, said.getvalue())


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Trained]:
    """A run on two ranks that goes back once."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    return folder, run_ranks(2, train_on_poison, arguments(data, folder), [POISONED])[0]


def arguments(data: Path, folder: Path, *extra: str) -> list[str]:
    shutil.copytree(data, folder)
    return run_arguments(folder, *POLICY, *extra)


def firsts(*steps: range) -> list[int]:
    """First samples of stretches of the order of samples, in steps of the plan."""
    return [BATCH * step for stretch in steps for step in stretch]


def test_a_run_goes_back_and_leaves_out_the_right_samples(unbroken: tuple[Path, Trained]) -> None:
    """Two bad steps, 9 and 10: back to the checkpoint of step 6, and on with the samples of step 12."""
    folder, trained = unbroken
    # steps 1 to 10, then 7 to 12 once more, with the samples after those of step 11
    assert trained.first_samples == firsts(range(10), range(11, 17))
    said = re.sub(r"\d\.\d{4}", "x", trained.said)
    assert (
        "the loss of steps 9 to 10 is above x, that is the median x of the losses before and 7 deviations of x" in said
    )
    assert "back to step-00000006, rewind 1 of at most 20. Samples 48 to 87 are read by no step any more" in said
    records = [record for record in read_metrics(folder) if "loss" in record]
    assert [record["step"] for record in records] == list(range(1, 13))
    assert [record["tokens"] for record in records] == [256 * step for step in range(1, 13)]
    assert all(record["loss"] < 10 for record in records)
    evaluations = [record["step"] for record in read_metrics(folder) if "validation_loss" in record]
    assert evaluations == [4, 8, 12]
    manifest = read_manifest(find_checkpoint(folder / "run"))
    assert (manifest.step, manifest.faults.skips) == (12, (SampleSkip(6, 40),))
    assert (manifest.faults.num_rewinds, manifest.faults.spiking_steps) == (1, 0)
    assert manifest.faults.losses == tuple(record["loss"] for record in records[-4:])
    assert manifest.optimizer is not None
    assert manifest.optimizer.updates == 12
    steps = sorted(path.name for path in (folder / "run" / "checkpoints").glob("step-*"))
    assert steps == ["step-00000008", "step-00000010", "step-00000012"]


def test_what_a_step_read_is_shown(unbroken: tuple[Path, Trained]) -> None:
    folder = unbroken[0] / "run"
    assert "samples 40 to 47" in show_step(str(folder), 5)
    assert "samples 88 to 95" in show_step(str(folder), 6)


def test_one_rank_goes_back_too(data: Path, tmp_path: Path) -> None:
    """And the weights are those of a run that never read the samples in between: nothing of the spike is left."""
    (trained,) = run_ranks(1, train_on_poison, arguments(data, tmp_path / "poisoned"), [POISONED])
    assert trained.first_samples == firsts(range(10), range(11, 17))
    clean = arguments(data, tmp_path / "clean", "--faults.spike_factor=null")
    run_ranks(1, train_on_poison, [*clean, "--train.steps=6"], [])
    # the rewound checkpoint of the other run stands for the skip
    manifest = read_manifest(find_checkpoint(tmp_path / "poisoned" / "run"))
    path = find_checkpoint(tmp_path / "clean" / "run") / "manifest.json"
    own = read_manifest(path.parent)
    path.write_text(replace(own, faults=replace(own.faults, skips=manifest.faults.skips)).to_json())
    (went_on,) = run_ranks(1, train_on_poison, clean, [])
    assert went_on.first_samples == firsts(range(11, 17))
    assert same_weights(tmp_path / "poisoned", tmp_path / "clean")


@pytest.mark.parametrize(
    ("end", "end_at"), [("step", 10), ("step", 12), ("step", 14), ("rewind", 0)], ids=["before", "after", "saved", "in"]
)
def test_a_run_killed_around_a_rewind_equals_the_unbroken_one(
    data: Path, unbroken: tuple[Path, Trained], tmp_path: Path, end: str, end_at: int
) -> None:
    broken = arguments(data, tmp_path / "run")
    with pytest.raises(RuntimeError, match="died without a word"):
        run_ranks(2, train_on_poison, broken, [POISONED], end, end_at)
    run_ranks(2, train_on_poison, broken, [POISONED])
    assert read_metrics(tmp_path / "run") == read_metrics(unbroken[0])
    assert same_weights(tmp_path / "run", unbroken[0])


LAYOUTS = {
    "ZeRO 0": ["--parallel.zero_stage=0"],
    "ZeRO 2": ["--parallel.zero_stage=2"],
    "ZeRO 1, bf16": ["--train.precision=bf16"],
    "ZeRO 1, fp16": ["--train.precision=fp16", "--train.fp16_initial_scale_power=8"],
    "pipeline 2": ["--parallel.pipeline=2"],
    "all in host memory, ZeRO 3, bf16": [
        *("--parallel.zero_stage=3", "--parallel.offload_optimizer=cpu", "--parallel.offload_parameters=cpu"),
        "--train.precision=bf16",
    ],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_engine_that_goes_back_is_as_a_new_one(data: Path, tmp_path: Path, layout: str) -> None:
    """Killed after going back: the resumed run fills a new engine from the checkpoint that the other's went back to."""
    runs = {end: arguments(data, tmp_path / end, *LAYOUTS[layout]) for end in ("unbroken", "broken")}
    assert run_ranks(2, train_on_poison, runs["unbroken"], [POISONED])[0].first_samples[10] == 11 * BATCH
    with pytest.raises(RuntimeError, match="died without a word"):
        run_ranks(2, train_on_poison, runs["broken"], [POISONED], "step", 12)
    assert run_ranks(2, train_on_poison, runs["broken"], [POISONED])[0].first_samples == firsts(range(11, 17))
    assert read_metrics(tmp_path / "broken") == read_metrics(tmp_path / "unbroken")
    assert same_weights(tmp_path / "broken", tmp_path / "unbroken")


def test_a_run_goes_back_only_so_often(data: Path, tmp_path: Path) -> None:
    """Two places are bad; the count is kept in the checkpoint."""
    poisoned = [POISONED, range(14 * BATCH, 16 * BATCH)]
    limited = arguments(data, tmp_path / "run", "--faults.most_rewinds=1")
    run_ranks(1, train_on_poison, [*limited, "--train.steps=8"], poisoned)
    message = r"TrainingError: the loss of steps 10 to 11 is above .*as often as it may \(faults\.most_rewinds = 1\)"
    with pytest.raises(RuntimeError, match=message):
        run_ranks(1, train_on_poison, limited, poisoned)


def test_a_second_rewind_adds_to_the_first(data: Path, tmp_path: Path) -> None:
    """It goes back further than the first did: the checkpoint from before that takes over its skip."""
    poisoned = [POISONED, range(12 * BATCH, 14 * BATCH)]
    far = arguments(data, tmp_path / "run", "--faults.rewind_steps=3", "--checkpoint.keep=9")
    (trained,) = run_ranks(1, train_on_poison, far, poisoned)
    # steps 1 to 10; back to 4, steps 5 to 7; back to 2, steps 3 to 12
    assert trained.first_samples == firsts(range(10), range(11, 14), range(15, 25))
    faults = read_manifest(find_checkpoint(tmp_path / "run" / "run")).faults
    assert (faults.num_rewinds, faults.skips) == (2, (SampleSkip(2, 13 * BATCH),))


def test_without_an_old_checkpoint_a_run_stops(data: Path, tmp_path: Path) -> None:
    far = arguments(data, tmp_path / "run", "--faults.rewind_steps=8", "--checkpoint.keep=9")
    message = (
        r"there is no whole checkpoint of step 0 or before in .*checkpoints to go back to \(faults\.rewind_steps\)"
    )
    with pytest.raises(RuntimeError, match=message):
        run_ranks(1, train_on_poison, far, [POISONED])


def test_a_damaged_checkpoint_is_passed_over(data: Path, tmp_path: Path) -> None:
    """Its hashes are checked before the run goes back to it."""
    saved = arguments(data, tmp_path / "run")
    run_ranks(2, train_on_poison, [*saved, "--train.steps=8"], [POISONED])
    damaged = tmp_path / "run" / "run" / "checkpoints" / "step-00000006" / "moments-rank00001.safetensors"
    flip_bit(damaged, -1)
    trained = run_ranks(2, train_on_poison, saved, [POISONED])[0]
    assert trained.first_samples == firsts(range(8, 10), range(11, 19))
    assert "moments-rank00001.safetensors is damaged" in trained.said
    assert "back to step-00000004" in trained.said


def test_without_the_policy_a_run_goes_on(data: Path, tmp_path: Path) -> None:
    plain = arguments(data, tmp_path / "run", "--faults.spike_factor=null")
    (trained,) = run_ranks(1, train_on_poison, plain, [POISONED])
    assert trained.first_samples == firsts(range(12))
    assert "spike" not in trained.said
