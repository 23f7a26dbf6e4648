"""Evaluation gives the same sums on every layout, also where samples do not fill micro-batches, ranks or pipelines."""

import math
from pathlib import Path

import pytest

from megagpt.errors import CheckpointError
from megagpt.parallel.mesh import build_mesh
from megagpt.training.build import build_engine
from megagpt.training.evaluate import evaluate
from megagpt.training.progress import Progress
from tests.parallel.harness import run_ranks
from tests.parallel.runs import make_data, prepare_small, run_arguments, train_rank


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


def evaluated(arguments: list[str]) -> tuple[float, int, int]:
    """Sum of losses, tokens counted, and validation sequences, on one rank of a new model."""
    prepared = prepare_small(arguments)
    assert prepared.data.validation is not None
    (held_out,) = prepared.data.validation.parts
    layout = prepared.plan.layout
    mesh = build_mesh(layout.tensor, layout.pipeline, layout.virtual_stages, layout.context)
    totals = evaluate(prepared, held_out, mesh, build_engine(prepared.plan, mesh), Progress())
    return totals.loss_sum, totals.num_tokens, held_out.num_sequences


LAYOUTS = {
    "data 2": (2, []),
    "tensor 2": (2, ["--parallel.tensor=2"]),
    "sequence parallel": (2, ["--parallel.tensor=2", "--parallel.sequence_parallel=true"]),
    "pipeline 2": (2, ["--parallel.pipeline=2"]),
    "interleaved": (2, ["--parallel.pipeline=2", "--parallel.virtual_stages=2"]),
    "ZeRO 3": (2, ["--parallel.zero_stage=3"]),
    "context 2": (2, ["--parallel.context=2"]),
    "pipeline of 1 and 3 layers": (2, ["--parallel.pipeline=2", "--parallel.stage_layers=1,3"]),
    "parameters in host memory": (2, ["--parallel.zero_stage=3", "--parallel.offload_parameters=cpu"]),
}
SHAPE = ["--model.num_layers=4", "--evaluation.max_batches=100", "--train.micro_batch_size=4"]


def test_every_layout_counts_the_same_tokens_and_loss(data: Path) -> None:
    base = run_arguments(data, *SHAPE)
    ((loss, num_tokens, num_sequences),) = run_ranks(1, evaluated, base)
    assert num_tokens == num_sequences * 32, "each held-out token once"
    assert num_sequences % 4 or (num_sequences // 4) % 2, "the case must leave a group to fill up"
    assert loss / num_tokens == pytest.approx(math.log(400), abs=0.1), "a new model knows nothing of 400 ids"
    for name, (num_ranks, extra) in LAYOUTS.items():
        for found, counted, _ in run_ranks(num_ranks, evaluated, [*base, *extra]):
            assert counted == num_tokens, name
            assert found == pytest.approx(loss, rel=1e-6), name


def test_a_run_does_not_go_on_with_another_batch(data: Path, tmp_path: Path) -> None:
    """Another batch cuts the order of samples elsewhere: some would be read twice and others never."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in data.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    run_ranks(1, train_rank, run_arguments(folder, "--train.steps=2"))
    prepare_small(run_arguments(folder, "--train.steps=8", "--train.micro_batch_size=4"))  # the same tokens a step
    wanted = r"the steps done would be others\n  tokens of its 2 steps  512 → 1,024\n  train\.batch_tokens +256 → 512"
    with pytest.raises(CheckpointError, match=wanted):
        prepare_small(run_arguments(folder, "--train.batch_tokens=512"))
