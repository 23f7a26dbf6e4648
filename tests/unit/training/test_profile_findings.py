"""What is said of measured numbers: what limits the run, what to try, and the page and the lines that say it."""

from dataclasses import replace
from typing import Any

import pytest

from megagpt.config_file import load_config
from megagpt.plan import RunPlan, make_plan
from megagpt.training.profile_findings import Finding, findings, limit
from megagpt.training.profile_groups import Group
from megagpt.training.profile_memory import Holder, MemoryUse
from megagpt.training.profile_page import ProfileReport, console_lines, profile_page
from megagpt.training.profile_rank import RankProfile
from megagpt.training.profile_trace import BETWEEN_PASSES, Collective, CostlyOperator, HostWaits, StepTimes
from megagpt.training.progress import Phase

GIB = 2**30
COMPUTING = {("forward pass", Group.GEMM): 0.7, ("backward pass", Group.ATTENTION): 0.2}


def plan(*arguments: str, num_ranks: int = 2) -> RunPlan:
    shape = ("--train.batch_tokens=8192", "--train.micro_batch_size=2", "--train.steps=100")
    shape = (*shape, "--train.batch_ramp_tokens=0", "--train.warmup_tokens=0", *arguments)
    return make_plan(load_config("gpt3-base", list(shape)), num_ranks, 32_000)


def times(by_phase: dict[tuple[str, Group], float], on_device: bool = True, **changes: Any) -> StepTimes:
    """Of a step of one second: what is not named is idle, in the passes."""
    rest = 1 - sum(by_phase.values())
    parts = by_phase | ({(BETWEEN_PASSES, Group.HOST): rest} if rest > 1e-9 else {})
    made = StepTimes(2, 1.0, on_device, parts, 0.0, (), (), (), 3e14, 1000.0)
    return replace(made, **changes)


def rank(number: int, of: StepTimes, memory: MemoryUse | None = None, **changes: Any) -> RankProfile:
    full = MemoryUse(of.on_device, 20 * GIB, 50 * GIB, 80 * GIB, reserved=75 * GIB)
    place = f"pipeline 0, tensor 0, data {number}"
    device = "NVIDIA H100 80GB HBM3" if of.on_device else "CPU"
    made = RankProfile(number, place, device, 1, of, memory or full, 0.98, 1.0)
    return replace(made, **changes)


def said(profiles: list[RankProfile], of_plan: RunPlan | None = None, peak: float | None = None) -> list[Finding]:
    return findings(of_plan or plan(), profiles, peak)


def only(profiles: list[RankProfile], words: str, of_plan: RunPlan | None = None) -> Finding:
    """The one finding with these words."""
    (found,) = [finding for finding in said(profiles, of_plan) if words in finding.what]
    return found


def test_a_run_that_computes() -> None:
    profiles = [rank(0, times(COMPUTING | {("forward pass", Group.POINTWISE): 0.1}))]
    assert limit(profiles).startswith("computing: matrix multiplications and attention are 90% of the step")
    (finding,) = said(profiles, peak=989.4)
    assert "take 90% of it. Matrices are multiplied at 429 TFLOP/s, 43% of the device's dense peak" in finding.what
    assert finding.to_try == ("a larger train.batch_tokens (now 8,192): a rank's micro-batch is all it has in a step",)


def test_the_costliest_comes_first() -> None:
    parts = {
        (Phase.DATA.value, Group.DATA): 0.5,
        ("forward pass", Group.GEMM): 0.3,
        (Phase.UPDATE.value, Group.OPTIMIZER): 0.2,
    }
    profiles = [rank(0, times(parts))]
    assert [finding.group for finding in said(profiles)] == [Group.DATA, Group.GEMM, Group.OPTIMIZER]
    assert limit(profiles) == "data: 50% of the step, beside 30% of matrix multiplications and attention"


def test_a_gpu_that_waits_for_its_host() -> None:
    waits = (HostWaits("forward pass", 0.1, 12),)
    profiles = [rank(0, times({("forward pass", Group.GEMM): 0.4}, waits=waits))]
    finding = only(profiles, "The GPU computes nothing", plan("--train.micro_batch_size=1"))
    assert (
        "in 60% of the step, most of it in between passes (60%); it runs 1,000 kernels a step of 400 µs" in finding.what
    )
    assert finding.to_try == (
        "a larger train.micro_batch_size (now 1 of the 2 sequences that a data rank has in a step)",
    )
    stands = only(profiles, "stands still 12 times a step inside forward and backward until the GPU is done (10%")
    assert "cudaStreamSynchronize" in stands.to_try[0]


def test_communication_by_where_it_is() -> None:
    parts = COMPUTING | {(Phase.UPDATE.value, Group.COMMUNICATION): 0.1}
    reduces = (Collective("allreduce over DATA", Phase.UPDATE.value, 0.15, 1),)
    profiles = [rank(0, times(parts, collectives=reduces, hidden_communication=0.05))]
    finding = only(profiles, "Communication that hides behind nothing")
    assert (
        "takes 10% of the step, most of it in reducing gradients and updating (10%: allreduce over DATA)"
        in finding.what
    )
    assert "a further 5% runs while something is computed" in finding.what
    assert finding.to_try == ("a larger train.batch_tokens (now 8,192): gradients are summed once a step",)

    profiles = [rank(0, times(COMPUTING | {("forward pass", Group.COMMUNICATION): 0.1}))]
    tensor = only(profiles, "Communication", plan("--parallel.tensor=2"))
    assert tensor.to_try == (
        "fewer tensor ranks (now 2), within one machine at most",
        "parallel.sequence_parallel = true",
    )
    zero = only(profiles, "Communication", plan("--parallel.zero_stage=3"))
    assert zero.to_try == ("a lower parallel.zero_stage (now 3) if memory allows: it sends less",)
    pipeline = only(profiles, "Communication", plan("--parallel.pipeline=2"))
    assert pipeline.to_try[0] == "--trace, which shows what pipeline ranks wait for"

    profiles = [rank(0, times(COMPUTING | {(Phase.SIGNS.value, Group.COMMUNICATION): 0.1}))]
    assert "--profile-ranks all" in only(profiles, "Communication").to_try[0]


def test_ranks_that_wait_for_a_slow_one() -> None:
    slow = times(COMPUTING | {(Phase.SIGNS.value, Group.COMMUNICATION): 0.1})
    quick = times({("forward pass", Group.GEMM): 0.6, (Phase.SIGNS.value, Group.COMMUNICATION): 0.4})
    finding = only([rank(0, quick), rank(1, slow)], "Rank 1 works 0.900 s of a step and rank 0 0.600 s")
    assert "rank 0 waits for it 30% of the step" in finding.what
    other_stage = rank(1, slow, place="pipeline 1, tensor 0, data 0")
    assert not [one for one in said([rank(0, quick), other_stage]) if "works" in one.what]  # stages differ by design


def test_pointwise_copies_and_what_has_no_name() -> None:
    parts = {
        ("forward pass", Group.POINTWISE): 0.3,
        ("forward pass", Group.COPY): 0.3,
        ("forward pass", Group.OTHER): 0.4,
    }
    costly = (CostlyOperator("gelu [2, 4]", Group.POINTWISE, 0.2, 24), CostlyOperator("odd", Group.OTHER, 0.1, 1))
    dropout = plan("--model.hidden_dropout=0.1")
    profiles = [rank(0, times(parts, operators=costly))]
    finding = only(profiles, "Operators that only pass over memory", dropout)
    assert finding.what.endswith("take 30% of the step; the costliest: gelu [2, 4] (20.0%)")
    assert finding.to_try == (
        "train.compile = true, which fuses more of them on some machines",
        "no dropout (model.hidden_dropout 0.1, model.attention_dropout 0), if the run sees its data once",
    )
    assert only(profiles, "Copies, casts and fills take 30%").to_try == ()
    assert only(profiles, "no name for take 40% of the step; the costliest: odd (10.0%)").to_try == ()


def test_the_update() -> None:
    profiles = [rank(0, times(COMPUTING | {(Phase.UPDATE.value, Group.OPTIMIZER): 0.1}))]
    offloaded = plan("--parallel.zero_stage=2", "--parallel.offload_optimizer=cpu")
    words = " ".join(only(profiles, "The update", offloaded).to_try)
    assert "a larger train.batch_tokens" in words
    assert 'parallel.offload_optimizer = "none"' in words
    unsharded = plan("--parallel.zero_stage=0", "--train.precision=fp32")
    assert "parallel.zero_stage = 1" in " ".join(only(profiles, "The update", unsharded).to_try)


def test_memory_of_a_gpu() -> None:
    roomy = MemoryUse(True, 10 * GIB, 20 * GIB, 80 * GIB, reserved=40 * GIB)
    finding = only(
        [rank(0, times(COMPUTING), roomy)], "of the GPU's memory is never used", plan("--train.recompute=full")
    )
    assert finding.what.startswith("50% of the GPU's memory is never used on the fullest rank (0)")
    assert 'train.recompute = "none"' in finding.to_try
    pressed = MemoryUse(True, 10 * GIB, 60 * GIB, 80 * GIB, reserved=79 * GIB, retries=3)
    finding = only([rank(0, times(COMPUTING), pressed)], "had to empty its cache 3 times on rank 0")
    assert finding.to_try[0] == "a smaller train.micro_batch_size (now 2)"


def test_a_cpu_whose_core_others_use() -> None:
    starved = rank(1, times(COMPUTING, on_device=False), cpu_seconds=0.4)
    assert limit([starved]) == "the machine: rank 1 had no core for 60% of the step"
    assert "OMP_NUM_THREADS no more than its cores" in only([starved], "Rank 1 had no core for 60%").to_try[0]
    waiting = times({("forward pass", Group.GEMM): 0.4, (Phase.SIGNS.value, Group.COMMUNICATION): 0.6}, on_device=False)
    assert not [one for one in said([rank(0, waiting, cpu_seconds=0.4)]) if "no core" in one.what]


@pytest.mark.parametrize("on_device", [True, False])
def test_the_page_and_the_lines(on_device: bool) -> None:
    costly = (CostlyOperator("mm [4, 5] × [5, 6]", Group.GEMM, 0.5, 12),)
    collectives = (Collective("all_reduce", Phase.UPDATE.value, 0.05, 2),)
    of = times(
        COMPUTING | {(Phase.UPDATE.value, Group.OPTIMIZER): 0.1}, on_device, operators=costly, collectives=collectives
    )
    holders = () if on_device else (Holder("mm", 3 * 2**20, 2),)
    memory = MemoryUse(on_device, 20 * GIB, 2**20, 80 * GIB, reserved=75 * GIB, holders=holders)
    profiles = (rank(0, of, memory), rank(1, of, memory))
    files = ("trace-rank0.json.gz", *(("memory-rank0.pickle",) if on_device else ()))
    found = tuple(said(list(profiles)))
    report = ProfileReport(plan(), range(3, 5), "runs/mine", "2026-11-23 12:00:00 UTC", profiles, found, files, 989.4)
    page = profile_page(report)
    print(page)
    assert page.startswith("# Profile of steps 4 to 5 of runs/mine\n\n**Limited by computing: ")
    assert "A step took 1.000 s (0.980 s without the profiler: +2%): 8,359 tokens/s and " in page
    assert "| matrix multiplications | 700.0 | 70.0% | 70.0% | QKV" in page
    assert "| optimizer | 100.0 | 10.0% | 10.0% |" in page
    assert "| forward pass | 700.0 | 70.0% | matrix multiplications 100% |" in page
    assert "| `mm [4, 5] × [5, 6]` | matrix multiplications | 12 | 500.0 | 50.0% | 41,667 |" in page
    assert "| all_reduce | reducing gradients and updating | 2 | 50.0 |" in page
    assert ("the plan's estimate of the first stage" in page) is on_device
    assert ("| `mm` | 3.0 MiB | 2 |" in page) is not on_device
    assert ("drop it on https://pytorch.org/memory_viz" in page) is on_device
    for table in page.split("\n\n"):  # every row has as many cells as its title
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1, table
    lines = console_lines(report)
    assert lines[0] == "profile of steps 4 to 5 on ranks 0, 1: 1.000 s a step (0.980 s without the profiler: +2%)"
    assert lines[1] == f"  {'matrix multiplications':26}  70.0%  {'█' * 21}"
    assert lines[4].startswith("limited by computing: ")


def test_many_ranks_and_steps_unlike_others() -> None:
    profiles = tuple(rank(number, times(COMPUTING), plain_seconds=0.5) for number in range(20))
    report = ProfileReport(
        plan("--train.micro_batch_size=1", num_ranks=4),
        range(6, 7),
        "runs/mine",
        "now",
        profiles,
        (),
        ("trace-rank0.json.gz",),
    )
    page = profile_page(report)
    assert page.startswith("# Profile of step 7 of runs/mine")
    assert "| part | ms a step | least | mean | most | what it is |" in page
    assert "Profiled: ranks 0, 1, 2, 3, 4, 5, 6, 7 and 12 more" in page
    assert "(0.500 s without the profiler: +100%)" in page
    assert "The profiled steps are unlike the others" in page
    assert console_lines(report)[-1].startswith("The profiled steps are unlike the others")
