"""`--profile` on a GPU: kernels have groups, parts add up to the step, the snapshot is whole. Not run on a GPU yet."""

import io
import pickle
from pathlib import Path

import pytest
from rich.console import Console

from megagpt.training.profile_groups import Group
from megagpt.training.profile_options import ProfiledSteps
from megagpt.training.profile_trace import read_trace, step_times
from tests.parallel.runs import make_data, prepare_small, run_arguments, run_prepared

pytestmark = pytest.mark.gpu


def test_a_profile(tmp_path: Path) -> None:
    make_data(tmp_path)
    arguments = run_arguments(tmp_path, "--train.precision=bf16")
    console = Console(file=io.StringIO(), width=400)
    run_prepared(prepare_small(arguments), console, profiled=ProfiledSteps(range(3, 5), (0,)))
    folder = tmp_path / "run" / "profile" / "steps-4-5"
    names = ["memory-rank0.pickle", "profile.md", "trace-rank0.json.gz"]
    assert sorted(path.name for path in folder.iterdir()) == names
    times = step_times(read_trace(folder / "trace-rank0.json.gz"))
    print((folder / "profile.md").read_text())
    assert times.on_device
    assert sum(times.by_phase.values()) == pytest.approx(times.seconds)
    for group in (Group.GEMM, Group.ATTENTION, Group.POINTWISE, Group.OPTIMIZER):
        assert times.group(group) > 0, group
    assert times.group(Group.OTHER) < 0.05 * times.seconds  # names that profile_groups.py should learn are on the page
    assert times.gemm_flops > 0
    assert pickle.loads((folder / "memory-rank0.pickle").read_bytes())["segments"]
