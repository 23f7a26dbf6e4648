"""ZeRO 3 with parameters in files, stopped and continued: the same run as in memory, bit for bit."""

from pathlib import Path

import pytest
import torch

from megagpt.checkpoint.read import read_model
from tests.parallel.compiled import skip_unless_files_are_possible
from tests.parallel.harness import run_ranks
from tests.parallel.runs import make_data, read_metrics, run_arguments, train_rank


@pytest.mark.timeout(600)
def test_parameters_in_files(tmp_path: Path) -> None:
    """DeepSpeed has five buffers to read files into; each of three layers has two matrices large enough for a file."""
    skip_unless_files_are_possible()
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
