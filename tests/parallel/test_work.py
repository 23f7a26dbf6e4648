"""The work of a step, counted on every rank: over all ranks together it is model/cost.py's, however it is laid out."""

import sys
from pathlib import Path

import pytest

from megagpt.model.cost import flops_per_token
from megagpt.training.totals import dropout_seed
from tests.parallel.cases import build_small_engine, micro_batches, plan_mesh, small_plan
from tests.parallel.harness import run_ranks

BATCH_TOKENS = 128
# the rank's share where all have the same, None where the ends of the pipeline have more
CASES = {
    "one rank": (1, []),
    "data 2": (2, []),
    "data 2, ZeRO 3": (2, ["--parallel.zero_stage=3"]),
    "tensor 2": (2, ["--parallel.tensor=2"]),
    "tensor 2, sequence parallel": (2, ["--parallel.tensor=2", "--parallel.sequence_parallel=true"]),
    "context 2": (2, ["--parallel.context=2"]),
    "pipeline 2": (2, ["--parallel.pipeline=2"]),
    "pipeline 2, interleaved": (2, ["--parallel.pipeline=2", "--parallel.virtual_stages=2"]),
    "tensor 2, pipeline 2": (4, ["--parallel.tensor=2", "--parallel.pipeline=2"]),
}


def counted_work(num_ranks: int, arguments: list[str]) -> int:
    """Operations of this rank's passes of one step."""
    sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))
    from flops import CountedFlops

    plan = small_plan(num_ranks, ["--train.precision=fp32", *arguments])
    mesh = plan_mesh(plan)
    engine = build_small_engine(plan, mesh)
    batches = micro_batches(plan, 0, mesh.data_rank, False)
    if mesh.context_size > 1:
        from megagpt.data.batch import context_part

        batches = [context_part(batch, mesh.context_rank, mesh.context_size) for batch in batches]
    with CountedFlops() as counter:
        engine.forward_backward(batches, 1e-3, dropout_seed(7, 0, 0))
    return counter.get_total_flops()


@pytest.mark.parametrize("case", CASES)
def test_ranks_together_do_the_models_work(case: str) -> None:
    num_ranks, arguments = CASES[case]
    work = run_ranks(num_ranks, counted_work, num_ranks, arguments)
    assert sum(work) == flops_per_token(small_plan(num_ranks, arguments).spec).total * BATCH_TOKENS
    if "pipeline" not in case:
        assert len(set(work)) == 1, "every rank has the same share"
