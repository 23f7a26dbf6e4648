"""What stops a run, and that it stops before harm: numbers that are not finite, a full disk, a missing share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megagpt.checkpoint import save
from megagpt.checkpoint.save import save_checkpoint
from megagpt.parallel.mesh import build_mesh
from megagpt.training.build import build_engine
from megagpt.training.signs import OwnSigns, check_finite, gather_signs
from megagpt.training.totals import dropout_seed, sum_losses
from tests.parallel.cases import micro_batches, small_plan
from tests.parallel.harness import run_ranks
from tests.parallel.runs import make_data, run_arguments


def poisoned_step(what: str, bad_rank: int, precision: str, zero_stage: int = 1) -> tuple[str, bool]:
    """One step with a number that is not finite on one rank: the error's text, and whether any weight changed."""
    plan = small_plan(2, [f"--train.precision={precision}", f"--parallel.zero_stage={zero_stage}"])
    mesh = build_mesh(1, 1)
    engine = build_engine(plan, mesh)
    before = {name: value.clone() for name, value in engine.model_state().items()}
    batches = micro_batches(plan, 0, mesh.data_rank, False)
    if mesh.rank == bad_rank and what == "gradient":
        engine.named_parameters["layers.1.mlp.up.weight"].register_hook(lambda gradient: gradient * float("inf"))
    losses = engine.forward_backward(batches, 1e-3, dropout_seed(7, 0, 0))
    if mesh.rank == bad_rank and what == "loss":
        losses[0] = losses[0]._replace(sum=torch.tensor(float("nan")))
    message = ""
    try:
        own = OwnSigns(sum_losses(losses, mesh.device), engine.local_gradients_finite())
        check_finite(gather_signs(own, mesh), 41)
    except Exception as error:
        message = f"{type(error).__name__}: {error}"
    after = engine.model_state()
    return message, any(not torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_not_finite_stops_every_rank_before_the_update(what: str, precision: str) -> None:
    for message, changed in run_ranks(2, poisoned_step, what, 1, precision):
        assert message.startswith(f"TrainingError: the {what} of step 42 is not finite on rank 1; training stopped")
        assert not changed


@pytest.mark.parametrize("zero_stage", [0, 2, 3])
def test_a_gradient_that_is_not_finite_stops_every_zero_stage(zero_stage: int) -> None:
    """ZeRO 2 and 3 hold reduced shards, so the ranks named are those whose shard is bad."""
    results = run_ranks(2, poisoned_step, "gradient", 1, "fp32", zero_stage)
    for message, changed in results:
        assert message.startswith("TrainingError: the gradient of step 42 is not finite on rank ")
        assert not changed


def finite_step() -> str:
    return poisoned_step("nothing", 0, "fp32")[0]


def test_a_finite_step_goes_on() -> None:
    assert run_ranks(2, finite_step) == ["", ""]


def save_without_room(folder: str, free_bytes: int) -> str:
    """Save where the disk says it has this much room; the error's text."""
    import shutil

    from tests.unit.checkpoint.samples import sample_contents

    mesh = build_mesh(1, 1)
    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(10**12, 10**12 - free_bytes, free_bytes)  # type: ignore
    try:
        save_checkpoint(Path(folder), sample_contents(1), mesh, keep=3)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_no_disk_space_is_found_before_writing(tmp_path: Path) -> None:
    (message,) = run_ranks(1, save_without_room, str(tmp_path), 1000)
    assert message.startswith("CheckpointError: a checkpoint needs ")
    assert "has 0 MiB free" in message
    assert "earlier checkpoints are untouched" in message
    assert list(tmp_path.iterdir()) == []


def save_with_failing_write(folder: str, fail_on_rank: int) -> str:
    """Two saves; writing the second fails on one rank as on a full disk. The error's text."""
    from tests.unit.checkpoint.samples import sample_contents

    mesh = build_mesh(1, 1)
    save_checkpoint(Path(folder), sample_contents(1, mesh.rank, 2), mesh, keep=3)
    if mesh.rank == fail_on_rank:

        def fail(*arguments: object, **options: object) -> None:
            raise OSError(28, "No space left on device")

        save.write_tensors = fail  # type: ignore[assignment]
    contents = sample_contents(2, mesh.rank, 2)
    try:
        save_checkpoint(Path(folder), contents, mesh, keep=3)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def test_a_failed_write_on_one_rank_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    for message in run_ranks(2, save_with_failing_write, str(tmp_path), 1):
        assert message.startswith("CheckpointError: rank 1 could not write")
        assert "No space left on device" in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step-00000001"]
    assert (tmp_path / "latest").read_text() == "step-00000001\n"


REPOSITORY = Path(__file__).resolve().parents[2]


def start(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(REPOSITORY / "pretrain" / "pretrain_gpt.py"), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)


def test_bad_input_ends_before_a_process_group_starts(tmp_path: Path) -> None:
    """Every problem of configuration, tokenizer and data is an `error:` line and exit code 2."""
    make_data(tmp_path)
    good = run_arguments(tmp_path)
    # without a launcher the entry point needs a configuration file
    config = tmp_path / "small.toml"
    config.write_text("[train]\nsteps = 2\n", encoding="utf-8")

    found = start(str(config), *good, "--tokenizer.path=nowhere.model")
    assert (found.returncode, "nowhere.model does not exist" in found.stderr) == (2, True), found.stderr
    assert "Traceback" not in found.stderr
    found = start(str(config), *good, f"--data.path={tmp_path}/none", "--parallel.tensor=3")
    assert found.returncode == 2
    assert "parallel.tensor = 3" in found.stderr
    found = start(str(config), *good, f"--data.path={tmp_path}/none")
    assert (found.returncode, f"{tmp_path}/none" in found.stderr) == (2, True), found.stderr
    found = start(str(config))
    assert found.returncode == 2
    assert "tokenizer.path = unset (default): training needs a tokenizer file" in found.stderr
    assert "data.path = unset (default): training needs an indexed dataset" in found.stderr
    assert "Traceback" not in found.stderr
