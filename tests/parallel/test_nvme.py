"""ZeRO 3 with parameters in files, stopped and continued: the same run as in memory, bit for bit."""

import contextlib
import io
from pathlib import Path

import pytest
import torch

from megagpt.checkpoint.read import read_model
from megagpt.parallel.cpu import patch_deepspeed_for_cpu
from tests.parallel.harness import run_ranks
from tests.parallel.runs import make_data, read_metrics, run_arguments, train_rank


def can_swap() -> bool:
    patch_deepspeed_for_cpu()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    with contextlib.redirect_stdout(io.StringIO()):
        return bool(AsyncIOBuilder().is_compatible(verbose=False))


@pytest.mark.skipif(not can_swap(), reason="needs libaio and a C++ compiler")
@pytest.mark.timeout(600)
def test_parameters_in_files(tmp_path: Path) -> None:
    """DeepSpeed has five buffers to read files into; each of three layers has two matrices large enough for a file."""
    folder = tmp_path / "nvme"
    folder.mkdir()
    large = ["--model.num_layers=3", "--model.hidden_size=384", "--parallel.zero_stage=3", "--train.steps=4"]
    large += ["--parallel.check_replicas_interval_steps=1"]
    nvme = [*large, "--parallel.offload_parameters=nvme", f"--parallel.nvme_folder={folder}"]
    runs = {"memory": [large], "files": [[*nvme, "--train.steps=2"], nvme]}
    for name, sessions in runs.items():
        (tmp_path / name).mkdir()
        make_data(tmp_path / name)
        for arguments in sessions:
            run_ranks(2, train_rank, run_arguments(tmp_path / name, *arguments), timeout_seconds=300)
    assert list(folder.rglob("*.swp")), "nothing was written to files"
    expected = read_metrics(tmp_path / "memory")
    assert [r for r in read_metrics(tmp_path / "files") if r["step"] != 2 or "loss" in r] == expected
    weights = {name: read_model(tmp_path / name / "run").parameters for name in runs}
    for name, value in weights["memory"].items():
        assert torch.equal(weights["files"][name], value), name
