"""`--profile` of real runs: the files are whole, the parts add up to the step, and profiling changes no number."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from megagpt.training.profile_groups import Group
from megagpt.training.profile_options import ProfiledSteps
from megagpt.training.profile_trace import read_trace, step_times
from megagpt.training.progress import Phase
from megagpt.training.stop import StopSignals
from tests.parallel.harness import run_ranks
from tests.parallel.runs import prepare_small, read_metrics, run_arguments, run_prepared, train_rank


def train_profiled(
    arguments: list[str], profiled: ProfiledSteps, trace: bool = False, stop_after: int | None = None
) -> str:
    """One rank of `megagpt train --profile`; returns what it printed."""
    console = Console(record=True, width=400, file=open(os.devnull, "w"), quiet=os.environ["RANK"] != "0")  # noqa: SIM115
    signals = None
    if stop_after is not None:
        signals = StopSignals()
        asked = iter(range(100))
        type(signals).requested = property(  # type: ignore[assignment,method-assign]
            lambda _: signal.SIGTERM if next(asked) >= stop_after else 0
        )
    run_prepared(prepare_small(arguments), console, trace, signals, profiled)
    return console.export_text()


def ranges(trace: dict[str, Any]) -> list[str]:
    """Names of the ranges on the main thread, in order."""
    found = [event for event in trace["traceEvents"] if event.get("cat") == "user_annotation"]
    found = [event for event in found if not event["name"].startswith(("gloo:", "Optimizer."))]
    return [event["name"] for event in sorted(found, key=lambda event: (event["ts"], -event["dur"]))]


def test_a_profile_of_two_ranks(data: Path) -> None:
    arguments = run_arguments(data, "--evaluation.interval_steps=4")
    said = run_ranks(2, train_profiled, arguments, ProfiledSteps(range(3, 5), (0, 1)))
    folder = data / "run" / "profile" / "steps-4-5"
    assert sorted(path.name for path in folder.iterdir()) == [
        *("profile.md", "trace-rank0.json.gz", "trace-rank1.json.gz"),
    ]
    assert "profile of steps 4 to 5 on ranks 0, 1: " in said[0]
    assert f"wrote {folder}/profile.md; beside it trace-rank0.json.gz, trace-rank1.json.gz" in said[0]
    assert said[1] == ""
    page = (folder / "profile.md").read_text()
    assert page.startswith(f"# Profile of steps 4 to 5 of {data}/run\n\n**Limited by ")
    assert "without the profiler: " in page
    for rank in range(2):
        trace = read_trace(folder / f"trace-rank{rank}.json.gz")
        named = ranges(trace)
        assert [name for name in named if name.startswith("step ")] == ["step 4", "step 5"]
        # two micro-batches a rank, and the evaluation after step 4 belongs to no step
        assert [named.count(name) for name in ("forward pass", "backward pass", Phase.UPDATE.value)] == [4, 4, 2]
        assert Phase.EVALUATE.value not in named
        times = step_times(trace)
        assert sum(times.by_phase.values()) == pytest.approx(times.seconds)
        for group in (Group.GEMM, Group.ATTENTION, Group.POINTWISE, Group.OPTIMIZER, Group.COMMUNICATION, Group.DATA):
            assert times.group(group) > 0, group
        assert times.group(Group.OTHER) == 0
        assert {one.name for one in times.collectives} >= {"all_reduce"}
        curves = {event["name"] for event in trace["traceEvents"] if event["ph"] == "C"}
        assert curves == {"tensors since the profile began (MiB)", "resident memory (MiB)"}
        # by their shapes the products are what the model's cost says: its count has attention apart
        flops = prepare_small(arguments).plan.flops
        assert times.gemm_flops == (flops.layers + flops.head) * 256 / 2

    profiled_metrics = read_metrics(data)
    plain = data / "plain"
    (plain / "run").mkdir(parents=True)
    run_ranks(2, train_rank, [*arguments, f"--run.folder={plain}/run"])
    assert read_metrics(plain) == profiled_metrics
    assert not (plain / "run" / "profile").exists()


@pytest.mark.parametrize(
    "layout",
    [
        ["--parallel.pipeline=2"],
        ["--parallel.tensor=2", "--parallel.sequence_parallel=true"],
        ["--parallel.zero_stage=3", "--train.recompute=full", "--train.precision=bf16"],
    ],
)
def test_layouts(data: Path, tmp_path: Path, layout: list[str]) -> None:
    """One of two ranks is profiled, and the run is traced in one of the same steps, too."""
    arguments = run_arguments(data, f"--run.folder={tmp_path}/run", "--train.steps=4", *layout)
    run_ranks(2, train_profiled, arguments, ProfiledSteps(range(2, 4), (1,)), True)
    trace = read_trace(tmp_path / "run" / "profile" / "steps-3-4" / "trace-rank1.json.gz")
    assert (tmp_path / "run" / "trace.json").exists()
    times = step_times(trace)
    assert times.num_steps == 2
    assert sum(times.by_phase.values()) == pytest.approx(times.seconds)
    assert times.group(Group.OTHER) == 0
    num_micro_batches = 4 if layout[0] != "--parallel.zero_stage=3" else 2
    assert ranges(trace).count("backward pass") == num_micro_batches  # of step 4: --trace has the passes of step 3
    assert times.group(Group.COMMUNICATION) > 0


def test_the_first_and_only_step(data: Path, tmp_path: Path) -> None:
    arguments = run_arguments(data, f"--run.folder={tmp_path}/run", "--train.steps=1", "--train.batch_tokens=64")
    (said,) = run_ranks(1, train_profiled, arguments, ProfiledSteps(range(1), (0,)))
    assert "profile of step 1 on rank 0: " in said
    assert "without the profiler" not in said
    assert (tmp_path / "run" / "profile" / "step-1" / "profile.md").exists()


def test_files_that_cannot_be_written_do_not_stop_the_run(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").write_text("in the way")
    arguments = run_arguments(data, f"--run.folder={tmp_path}/run", "--train.steps=3", "--train.batch_tokens=64")
    (said,) = run_ranks(1, train_profiled, arguments, ProfiledSteps(range(1, 2), (0,)))
    assert f"{tmp_path}/run/profile/step-2 could not be written: Not a directory; training goes on" in said
    assert [record["step"] for record in read_metrics(tmp_path) if "grad_norm" in record] == [1, 2, 3]


def test_a_run_that_stops_before_its_profile_is_done(data: Path, tmp_path: Path) -> None:
    arguments = run_arguments(data, f"--run.folder={tmp_path}/run", "--train.batch_tokens=64")
    (said,) = run_ranks(1, train_profiled, arguments, ProfiledSteps(range(1, 5), (0,)), False, 3)
    assert "stopped" in said
    assert not (tmp_path / "run" / "profile").exists()
