"""faults.not_finite = "skip": a step that is not finite leaves no trace but in the records, on any layout."""

import io
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from rich.console import Console
from torch import Tensor

from megagpt.checkpoint.fault_history import FaultHistory
from megagpt.checkpoint.manifest import OptimizerProgress
from megagpt.checkpoint.read import find_checkpoint, read_manifest, read_model
from megagpt.errors import TrainingError
from megagpt.parallel.mesh import build_mesh
from megagpt.training.build import build_engine
from megagpt.training.policies import Policies
from megagpt.training.signs import OwnSigns, gather_signs
from megagpt.training.totals import StepTotals, dropout_seed, sum_losses
from tests.parallel.cases import micro_batches, small_plan
from tests.parallel.harness import run_ranks
from tests.parallel.runs import prepare_small, read_metrics, run_arguments, run_prepared

CASES = {
    "ZeRO 0": ["--parallel.zero_stage=0"],
    "ZeRO 1": ["--parallel.zero_stage=1"],
    "ZeRO 2": ["--parallel.zero_stage=2"],
    "ZeRO 3": ["--parallel.zero_stage=3"],
    "ZeRO 1, bf16": ["--parallel.zero_stage=1", "--train.precision=bf16"],
    "ZeRO 2, bf16": ["--parallel.zero_stage=2", "--train.precision=bf16"],
    "ZeRO 3, bf16": ["--parallel.zero_stage=3", "--train.precision=bf16"],
    "ZeRO 1, offloaded": ["--parallel.zero_stage=1", "--parallel.offload_optimizer=cpu"],
    "ZeRO 2, offloaded, bf16": [
        *("--parallel.zero_stage=2", "--parallel.offload_optimizer=cpu", "--train.precision=bf16"),
    ],
    "ZeRO 3, offloaded, bf16": [
        *("--parallel.zero_stage=3", "--parallel.offload_optimizer=cpu", "--parallel.offload_parameters=cpu"),
        "--train.precision=bf16",
    ],
    "pipeline 2, ZeRO 1": ["--parallel.pipeline=2"],
    "tensor 2, ZeRO 2": ["--parallel.tensor=2", "--parallel.sequence_parallel=true", "--parallel.zero_stage=2"],
}
# where the gradient of fp16 is not finite, its loss scaling acts; a loss that is not finite is the policy's
FP16_CASES = {
    f"ZeRO {stage}, fp16": [f"--parallel.zero_stage={stage}", "--train.precision=fp16"] for stage in (1, 2, 3)
}
FP16_CASES["ZeRO 2, fp16, offloaded"] = [*FP16_CASES["ZeRO 2, fp16"], "--parallel.offload_optimizer=cpu"]
FP16_CASES["ZeRO 3, fp16, offloaded"] = [*FP16_CASES["ZeRO 3, fp16"], "--parallel.offload_optimizer=cpu"]
BAD = 1  # the step that goes wrong, of three


class Seen(NamedTuple):
    """What a rank saw: weights after each step that was computed, progress, and what was said."""

    weights: list[dict[str, Tensor]]
    progress: list[OptimizerProgress]
    said: str


def some_steps(arguments: list[str], what: str, bad_rank: int) -> Seen:
    """Three steps; in step BAD `what` is not finite on one rank, or ("absent") that step is not computed at all."""
    plan = small_plan(2, ["--faults.not_finite=skip", "--train.precision=fp32", *arguments])
    layout = plan.layout
    mesh = build_mesh(layout.tensor, layout.pipeline, layout.virtual_stages, layout.context)
    engine = build_engine(plan, mesh)
    said = io.StringIO()
    policies = Policies(plan.config, FaultHistory(), Console(file=said, quiet=mesh.rank != 0, width=1000))
    poison: list[float] = []

    def poisoned(gradient: Tensor) -> Tensor:
        return gradient * poison[0] if poison else gradient

    name = next(name for name in engine.named_parameters if name.endswith("mlp.up.weight"))
    engine.named_parameters[name].register_hook(poisoned)
    seen = Seen([], [], "")
    for step in range(3):
        bad = step == BAD and mesh.rank == bad_rank
        if step == BAD and what == "absent":
            continue
        poison[:] = [float(what)] if bad and what != "loss" else []
        batches = micro_batches(plan, step, mesh.data_rank, False)
        losses = engine.forward_backward(batches, 1e-3, dropout_seed(7, step, 0))
        engine.reduce_model_parallel_gradients()
        if bad and what == "loss":
            losses = [losses[0]._replace(sum=torch.tensor(float("nan"))), *losses[1:]] if losses else losses
        own = OwnSigns(sum_losses(losses, mesh.device), engine.local_gradients_finite())
        fit = policies.may_update(gather_signs(own, mesh), step)
        update = engine.update(1e-3) if fit else engine.skip_update(1e-3)
        assert update.applied == (step != BAD)
        policies.end_step(step, StepTotals(1.0, 1), update)
        seen.weights.append({name: value.clone() for name, value in engine.model_state().items()})
        seen.progress.append(engine.progress())
    return seen._replace(said=said.getvalue())


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def skipped_and_absent(arguments: list[str], what: str) -> list[tuple[Seen, Seen]]:
    # the last rank: of a pipeline, the one that has losses
    skipped = run_ranks(2, some_steps, arguments, what, 1)
    return list(zip(skipped, run_ranks(2, some_steps, arguments, "absent", 1), strict=True))


def check_no_trace(pairs: list[tuple[Seen, Seen]]) -> None:
    for skipped, absent in pairs:
        assert same(skipped.weights[BAD], skipped.weights[BAD - 1])
        assert not same(skipped.weights[BAD], skipped.weights[BAD + 1])
        del skipped.weights[BAD]
        assert all(same(*weights) for weights in zip(skipped.weights, absent.weights, strict=True))
        assert [progress.updates for progress in skipped.progress] == [1, 1, 2]
        assert skipped.progress[-1] == absent.progress[-1]


@pytest.mark.parametrize("case", CASES)
def test_a_skipped_step_leaves_no_trace(case: str) -> None:
    pairs = skipped_and_absent(CASES[case], "inf")
    check_no_trace(pairs)
    assert "step 2 skipped: the gradient is not finite on rank" in pairs[0][0].said


@pytest.mark.parametrize("case", FP16_CASES)
def test_a_skipped_step_of_fp16_leaves_no_trace(case: str) -> None:
    """Not in the loss scale either: it lies with the loss, which no scale has touched."""
    pairs = skipped_and_absent(FP16_CASES[case], "loss")
    check_no_trace(pairs)
    assert "step 2 skipped: the loss is not finite on rank 1; its update is left out" in pairs[0][0].said


def test_a_gradient_of_fp16_is_left_to_the_loss_scale() -> None:
    for skipped, absent in skipped_and_absent(FP16_CASES["ZeRO 1, fp16"], "inf"):
        assert same(skipped.weights[BAD], skipped.weights[BAD - 1])
        assert skipped.progress[-1] != absent.progress[-1]
        assert skipped.said == ""


def train_with_bad_steps(arguments: list[str], bad_steps: list[int], bad_rank: int) -> str:
    """Train one rank as `megagpt train` does, its gradient not finite in some 0-based steps. What it says."""
    from megagpt.parallel.engine import Engine
    from megagpt.training import loop

    rank = int(os.environ["RANK"])
    now: list[int] = []
    real_seed, real_pass = loop.dropout_seed, Engine.forward_backward

    def note_step(seed: int, step: int, data_rank: int) -> int:
        now[:] = [step]
        return real_seed(seed, step, data_rank)

    def poisoned_pass(engine: Engine, batches: Any, loss_weight: float, *others: Any) -> Any:
        bad = rank == bad_rank and now[0] in bad_steps
        return real_pass(engine, batches, float("inf") if bad else loss_weight, *others)

    loop.dropout_seed, Engine.forward_backward = note_step, poisoned_pass  # type: ignore[assignment,method-assign]
    said = io.StringIO()
    run_prepared(prepare_small(arguments), Console(file=said, quiet=rank != 0, width=1000))
    return said.getvalue()


def skipping(data: Path, folder: Path, *extra: str) -> list[str]:
    shutil.copytree(data, folder)
    return run_arguments(folder, "--faults.not_finite=skip", "--evaluation.interval_steps=0", *extra)


def test_a_run_is_resumed_across_skipped_steps(data: Path, tmp_path: Path) -> None:
    """The batch of a skipped step counts as read; a checkpoint right after it has no loss."""
    unbroken, broken = skipping(data, tmp_path / "unbroken"), skipping(data, tmp_path / "broken")
    said = run_ranks(2, train_with_bad_steps, unbroken, [3, 4], 1)
    assert "step 4 skipped: the gradient is not finite on rank 1" in said[0]
    assert 'faults.not_finite = "skip"; 2 in a row, at most 10' in said[0]
    assert "step 4/6  skipped  lr" in said[0]
    run_ranks(2, train_with_bad_steps, [*broken, "--train.steps=4"], [3, 4], 1)
    manifest = read_manifest(find_checkpoint(tmp_path / "broken" / "run"))
    assert (manifest.step, manifest.tokens, manifest.loss) == (4, 4 * 256, None)
    assert manifest.optimizer == OptimizerProgress(3)
    assert manifest.faults == FaultHistory(skipped_in_a_row=1)
    run_ranks(2, train_with_bad_steps, broken, [3, 4], 1)
    records, expected = read_metrics(tmp_path / "broken"), read_metrics(tmp_path / "unbroken")
    assert [record for record in records if "validation_loss" not in record or record["step"] != 4] == expected
    steps = [record for record in expected if "loss" in record]
    assert [record["applied"] for record in steps] == [True, True, True, False, False, True]
    assert [record["loss"] is None for record in steps] == [False, False, False, True, True, False]
    assert [record["tokens"] for record in steps] == [256 * done for done in range(1, 7)]
    left, right = (read_model(tmp_path / name / "run").parameters for name in ("broken", "unbroken"))
    assert same(left, right)


def test_too_many_skipped_steps_in_a_row_stop_the_run(data: Path, tmp_path: Path) -> None:
    """Counted across a resume; a step that is applied between begins the count anew."""
    arguments = skipping(data, tmp_path / "run", "--faults.most_skipped_steps=1", "--log.interval_steps=10")
    run_ranks(1, train_with_bad_steps, [*arguments, "--train.steps=4"], [1, 3], 0)
    steps = [record for record in read_metrics(tmp_path / "run") if "loss" in record]
    assert [(record["step"], record["loss"]) for record in steps] == [(2, None), (4, None)]
    message = (
        r"TrainingError: step 5: the gradient is not finite on rank 0; so it was in the 1 steps before it, .*more in a "
        r"row than faults\.most_skipped_steps = 1 .*`megagpt data show RUN --step 4`"
    )
    with pytest.raises(RuntimeError, match=message):
        run_ranks(1, train_with_bad_steps, arguments, [4], 0)


def test_without_the_policy_a_run_stops(data: Path, tmp_path: Path) -> None:
    arguments = skipping(data, tmp_path / "run", "--faults.not_finite=stop")
    with pytest.raises(RuntimeError, match=r"TrainingError: the gradient of step 3 is not finite on rank 0; training"):
        run_ranks(1, train_with_bad_steps, arguments, [2], 0)


def test_a_norm_that_is_not_finite_as_a_whole_is_found() -> None:
    """The norm of every parameter's gradient is finite, that of all is not: no update, and the policy is asked."""
    for message, changed in run_ranks(2, overflowing_norm):
        assert message.startswith("TrainingError: the norm of the gradient of step 42, over all ranks, is not finite")
        assert not changed


def overflowing_norm() -> tuple[str, bool]:
    """One step with gradients whose norms squared are just below the largest fp32, their sum above it."""
    plan = small_plan(2, ["--train.precision=fp32", "--parallel.zero_stage=0"])
    mesh = build_mesh(1, 1)
    engine = build_engine(plan, mesh)
    before = {name: value.clone() for name, value in engine.model_state().items()}
    losses = engine.forward_backward(micro_batches(plan, 0, mesh.data_rank, False), 1e-3, dropout_seed(7, 0, 0))
    for layer in range(2):
        gradient = engine.gradient(engine.named_parameters[f"layers.{layer}.mlp.up.weight"])
        gradient.zero_().view(-1)[0] = 1.7e19
    policies = Policies(plan.config, FaultHistory(), Console(quiet=True))
    own = OwnSigns(sum_losses(losses, mesh.device), engine.local_gradients_finite())
    assert policies.may_update(gather_signs(own, mesh), 41)
    message = ""
    try:
        policies.end_step(41, StepTotals(1.0, 1), engine.update(1e-3))
    except TrainingError as error:
        message = f"TrainingError: {error}"
    after = engine.model_state()
    return message, any(not torch.equal(before[name], after[name]) for name in before)
