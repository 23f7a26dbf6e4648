"""Copies of weights stay equal on every layout; a difference of one bit stops the run, naming parameter and rank."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megagpt.parallel.engine import Engine
from megagpt.parallel.mesh import Mesh, build_mesh
from megagpt.parallel.replicas import (
    ReplicaCheck,
)
from megagpt.training.build import build_engine
from megagpt.training.totals import dropout_seed, reduce_num_loss_tokens
from tests.parallel.cases import micro_batches, small_plan
from tests.parallel.harness import run_ranks
from tests.parallel.runs import make_data, read_metrics, run_arguments, train_rank

TABLE, NORM, MATRIX = "embedding.tokens.weight", "layers.1.mlp_norm.weight", "layers.1.mlp.up.weight"
HOST_MEMORY = ["--parallel.offload_parameters=cpu", "--parallel.offload_optimizer=cpu"]
SIX = ["--train.batch_tokens=96", "--train.micro_batch_size=1", "--model.hidden_size=64"]
LAYOUTS = {
    "data 2, ZeRO 0": (2, ["--parallel.zero_stage=0"]),
    "data 2, ZeRO 1": (2, ["--parallel.zero_stage=1"]),
    "data 2, ZeRO 2": (2, ["--parallel.zero_stage=2"]),
    "data 2, ZeRO 3": (2, ["--parallel.zero_stage=3"]),
    "tensor 2": (2, ["--parallel.tensor=2"]),
    "tensor 2, ZeRO 3": (2, ["--parallel.tensor=2", "--parallel.zero_stage=3"]),
    "tensor 2 with sequence parallelism": (2, ["--parallel.tensor=2", "--parallel.sequence_parallel=true"]),
    "pipeline 2": (2, ["--parallel.pipeline=2"]),
    "pipeline 2 interleaved": (2, ["--parallel.pipeline=2", "--parallel.virtual_stages=2"]),
    "tensor 2, data 2, ZeRO 3": (4, ["--parallel.tensor=2", "--parallel.zero_stage=3"]),
    "tensor 2, context 2": (4, ["--parallel.tensor=2", "--parallel.context=2"]),
    "tensor 2, ZeRO 3 in host memory": (
        2,
        ["--parallel.tensor=2", "--parallel.zero_stage=3", *HOST_MEMORY],
    ),
    "tensor 2, pipeline 2, bf16": (4, ["--parallel.tensor=2", "--parallel.pipeline=2", "--train.precision=bf16"]),
    # the tables drift apart here unless one is sent to the other: sums over three ranks depend on their order
    "pipeline 2, data 3": (6, ["--parallel.pipeline=2", "--model.vocab_size=3000", *SIX]),
}


def flip_bit(values: Tensor) -> None:
    """Change the lowest bit of the last number, in place."""
    bits = values.detach().view(-1).view({4: torch.int32, 2: torch.int16}[values.element_size()])
    bits[-1] ^= 1


def checked_steps(num_ranks: int, arguments: list[str], bad_rank: int | None, name: str) -> tuple[str, int]:
    """Three steps, copies compared after each; before the third, one bit of a weight is flipped on `bad_rank`.

    Returns the error's text and the steps done.
    """
    precision = [] if any("precision" in argument for argument in arguments) else ["--train.precision=fp32"]
    plan = small_plan(num_ranks, [*precision, *arguments])
    layout = plan.layout
    mesh: Mesh = build_mesh(layout.tensor, layout.pipeline, layout.virtual_stages, layout.context)
    engine = build_engine(plan, mesh)
    replicas = ReplicaCheck(engine.named_parameters, mesh, layout.zero_stage, 1)
    done = 0
    try:
        replicas.check_when_due(done)
        for step in range(3):
            batches = micro_batches(plan, step, mesh.data_rank, False)
            weight = mesh.gradient_size / reduce_num_loss_tokens(batches, mesh)
            engine.forward_backward(batches, weight, dropout_seed(7, step, mesh.data_rank))
            engine.reduce_model_parallel_gradients()
            engine.update(plan.learning_rate(step))
            done += 1
            if step == 2 and mesh.rank == bad_rank:
                parameter = engine.named_parameters[name]
                flip_bit(parameter.ds_tensor if layout.zero_stage == 3 else parameter)
            replicas.check_when_due(done)
    except Exception as error:
        return f"{type(error).__name__}: {error}", done
    return "", done


@pytest.mark.parametrize("layout", LAYOUTS)
def test_copies_stay_equal(layout: str) -> None:
    num_ranks, arguments = LAYOUTS[layout]
    assert run_ranks(num_ranks, checked_steps, num_ranks, arguments, None, "") == [("", 3)] * num_ranks


FLIPS = {
    "a norm of one tensor rank": (2, ["--parallel.tensor=2"], 1, NORM, "ranks 0, 1 hold different values"),
    "a norm in bf16": (2, ["--parallel.tensor=2", "--train.precision=bf16"], 1, NORM, "ranks 0, 1 hold different"),
    "a norm of one of four ranks": (4, ["--parallel.tensor=2"], 3, NORM, "rank 3 differs from the 3 other ranks"),
    "the tied table at the pipeline's end": (2, ["--parallel.pipeline=2"], 1, TABLE, "ranks 0, 1 hold different"),
    "a matrix of one data rank": (2, [], 1, MATRIX, "ranks 0, 1 hold different values"),
    "a matrix of one of four data ranks": (4, [], 2, MATRIX, "rank 2 differs from the 3 other ranks that hold it"),
    "a part of a norm under ZeRO 3": (
        4,
        ["--parallel.tensor=2", "--parallel.zero_stage=3"],
        1,
        NORM,
        "ranks 0, 1 hold different values",
    ),
}


@pytest.mark.parametrize("flip", FLIPS)
def test_one_flipped_bit_stops_every_rank(flip: str) -> None:
    num_ranks, arguments, bad_rank, name, words = FLIPS[flip]
    for message, done in run_ranks(num_ranks, checked_steps, num_ranks, arguments, bad_rank, name):
        what = "TrainingError: after step 3 weights that must be copies of one another differ"
        assert message.startswith(f"{what} ({name}: {words}")
        assert "They were equal after step 2: write the name of a checkpoint of that step or an earlier one" in message
        assert done == 3


@pytest.mark.parametrize(
    ("num_ranks", "arguments", "name"),
    [
        (2, ["--parallel.tensor=2"], MATRIX),  # each tensor rank's own slice
        (2, ["--parallel.pipeline=2"], NORM),  # on the first stage alone
        (2, ["--parallel.zero_stage=3"], MATRIX),  # each data rank's own part
    ],
)
def test_what_is_no_copy_may_differ(num_ranks: int, arguments: list[str], name: str) -> None:
    holder = 0
    assert run_ranks(num_ranks, checked_steps, num_ranks, arguments, holder, name) == [("", 3)] * num_ranks


def broken_run(arguments: list[str], bad_rank: int) -> str:
    """`megagpt train`, one rank of it, whose fourth update flips one bit of a norm on `bad_rank`; the error's text."""
    plain_update = Engine.update
    updates = 0

    def update(engine: Engine, lr: float) -> object:
        nonlocal updates
        result = plain_update(engine, lr)
        updates += 1
        if updates == 4 and engine.mesh.rank == bad_rank:
            flip_bit(engine.named_parameters[NORM])
        return result

    Engine.update = update  # type: ignore[assignment, method-assign]
    try:
        train_rank(arguments)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(("interval", "stopped_after"), [(2, 4), (0, None)])
def test_a_real_run_stops_at_the_next_check(tmp_path: Path, interval: int, stopped_after: int | None) -> None:
    make_data(tmp_path)
    arguments = run_arguments(
        tmp_path, "--parallel.tensor=2", f"--parallel.check_replicas_interval_steps={interval}", "--data.split=1,0,0"
    )
    messages = run_ranks(2, broken_run, arguments, 1)
    steps = [record["step"] for record in read_metrics(tmp_path)]
    if stopped_after is None:
        assert (messages, steps) == (["", ""], [1, 2, 3, 4, 5, 6])
        return
    for message in messages:
        assert message.startswith(f"TrainingError: after step {stopped_after} weights that must be copies")
        assert f"{NORM}: ranks 0, 1 hold different values). They were equal after step 2" in message
    assert steps == [1, 2, 3, 4]
    assert (tmp_path / "run" / "checkpoints" / "latest").read_text() == "step-00000002\n", "what differs is not saved"
