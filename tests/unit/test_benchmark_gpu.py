"""The GPU suite: what it chooses, what it makes of results, and that its programs run, on the CPU with a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_cases
import gpu_report
from gpu_breakdown import idle_us, profiled
from gpu_peers import Shape, make_model

ROOT = Path(__file__).resolve().parents[2]
H200 = gpu_cases.Memory(139.7, 128.0)
FLOPS = gpu_cases.plan_of("gpt3-2.7b", ()).flops.total


def test_what_fits_a_device() -> None:
    for size in gpu_cases.SIZES[:4]:
        assert gpu_cases.settings_that_fit(size, H200) == gpu_cases.SETTINGS[0], size
    assert gpu_cases.settings_that_fit("gpt3-13b", H200) is None, "234 GB of state"
    layers = gpu_cases.layers_that_fit("gpt3-13b", H200)
    assert 10 < layers < 40
    more = gpu_cases.plan_of("gpt3-13b", (f"--model.num_layers={layers + 1}",), 2)
    assert not gpu_cases.fits(more, H200)
    assert gpu_cases.settings_that_fit("gpt3-13b", gpu_cases.Memory(139.7, 400.0)) == gpu_cases.SETTINGS[3]


def test_micro_batches_are_the_largest_that_fit() -> None:
    found = gpu_cases.micro_batches_to_try("gpt3-2.7b", (), H200, 32, 2)
    assert found == [found[0], found[0] // 2]
    assert gpu_cases.fits(gpu_cases.plan_of("gpt3-2.7b", (), found[0]), H200)
    assert not gpu_cases.fits(gpu_cases.plan_of("gpt3-2.7b", (), 2 * found[0]), H200)
    assert gpu_cases.micro_batches_to_try("gpt3-base", (), H200, 4, 5) == [4, 2, 1]


def line(kind: str, seconds: list[float], tag: str = "", **more: Any) -> dict[str, Any]:
    """A line of raw.jsonl."""
    case = gpu_cases.Case(kind, "gpt3-2.7b", 8, len(seconds), (), tag)
    return {
        "key": case.key,
        "case": case._asdict(),
        "date": "2026-11-23",
        "commit": "abc",
        "command": "run",
        "device": "NVIDIA H200",
        "versions": {"torch": "2.11"},
        "tokens_per_step": 131_072,
        "flops_per_token": FLOPS,
        "result": {"seconds": seconds, "breakdown": {"attention": 1.0, "optimizer": 3.0}, **more},
    }


def test_the_table_and_the_goals() -> None:
    at_60_percent = 131_072 * FLOPS / (0.6 * 989.4e12)
    curve = [3.0 + 0.1 * (number % 7) for number in range(500)]
    lines = [
        {**line("ceiling", []), "result": {"tflops": {"bf16": [780.0, 791.52], "fp8": [1300.0]}}},
        line("ours", [9.0] * 3 + [at_60_percent * 0.999] * 4),
        line("ours", [9.0] * 3 + [at_60_percent / 1.2] * 4, "fp8"),
        line("nanogpt", [9.0] * 3 + [at_60_percent * 1.2] * 4),
        line("huggingface", [9.0] * 3 + [at_60_percent * 2] * 4),
        {**line("huggingface", []), "key": "huggingface 16", "result": {"failed": "out of memory"}},
        line("ours", [1.0], "curve-bf16", losses=curve),
        line("ours", [1.0], "curve-fp8", losses=[loss + 0.001 for loss in curve]),
        line("ours", [1.0], "curve-seed", losses=[loss + 0.01 * (-1) ** n for n, loss in enumerate(curve)]),
    ]
    rows = gpu_report.make_rows(lines)
    slower = line("ours", [9.0], "compile"), line("ours", [0.1], "12 layers")
    assert gpu_report.best(gpu_report.make_rows([*lines, *slower]), "gpt3-2.7b", "ours bf16") == rows[0]
    assert [row.name for row in rows] == ["ours bf16", "ours fp8", "nanogpt", "huggingface"]
    assert rows[0].mfu == pytest.approx(0.6 / 0.999)
    assert rows[0].of_ceiling == pytest.approx(0.6 / 0.999 * 989.4 / 791.52)
    text = "\n".join(gpu_report.report_lines(lines))
    assert "| gpt3-2.7b: MFU of 60% | 60.1% | yes |" in text
    assert "| gpt3-2.7b: 1.10 × nanogpt | 1.20 | yes |" in text
    assert "| gpt3-2.7b: fp8 1.25 × bf16 | 1.20 | no |" in text
    assert "| gpt3-2.7b | ours bf16 | 8 | 25.0% | 75.0% |" in text
    assert "fp8 minus bf16 +0.0010 nats; noise, from another seed, 0.0020: fp8 is within it" in text
    assert "- huggingface 16: out of memory" in text
    assert gpu_report.report_lines([]) == ["Nothing has been measured yet."]


def test_idle_time_is_what_no_kernel_covers() -> None:
    assert idle_us([(0, 4), (1, 2), (6, 7), (6.5, 9), (12, 13)]) == pytest.approx(5)
    assert idle_us([]) == 0


def test_a_profiled_step_has_its_products() -> None:
    found: dict[str, float] = {}
    matrix = torch.randn(300, 300)
    with profiled(found):
        for _ in range(20):
            matrix = torch.nn.functional.gelu(matrix @ matrix / 300)
    assert found["matrix multiplications"] > 0
    assert found["pointwise, norms, softmax"] > 0


@pytest.mark.parametrize("kind", ["nanogpt", "huggingface"])
def test_peers_have_the_shape_of_ours(kind: str) -> None:
    plan = gpu_cases.plan_of("gpt3-base", ("--model.num_layers=2",))
    spec = plan.spec
    shape = Shape(spec.num_layers, spec.num_heads, spec.hidden_size, spec.sequence_length, spec.padded_vocab_size)
    parameters, loss = make_model(kind, shape, torch.device("cpu"), compiled=False)
    assert sum(parameter.numel() for parameter in parameters) == plan.parameters.total
    tokens = torch.randint(0, 1000, (1, 9))
    assert float(loss(tokens[:, :-1], tokens[:, 1:]).detach()) == pytest.approx(10.8, abs=0.7)  # ln of the vocabulary


def suite(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The suite's command with a tiny model."""
    return subprocess.run(
        ["bash", str(ROOT / "benchmarks/gpu.sh"), "--folder", str(folder), *words],
        capture_output=True,
        text=True,
        timeout=500,
        env={**os.environ, "SMALL": "1", "PYTHON": sys.executable, "SUITE_DATA": str(folder / "data")},
    )


@pytest.mark.timeout(600)
def test_the_command_runs_and_goes_on(tmp_path: Path) -> None:
    """A size of the suite, which knows none but `small.toml` here, by both its kinds of process; then nothing again."""
    small = f"{tmp_path}/small.toml"
    done = suite(tmp_path, "ceiling", f"{small}-fp8")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = gpu_report.read_raw(tmp_path / "raw.jsonl")
    assert [entry["case"]["kind"] for entry in lines] == ["ceiling", "ours"]
    assert lines[1]["case"]["micro_batch"] == 2
    for entry in lines[1:]:
        assert "--train.fp8=true" in entry["case"]["arguments"]
        assert len(entry["result"]["seconds"]) == 7
        assert all(second > 0 for second in entry["result"]["seconds"])
        assert entry["result"]["breakdown"]["matrix multiplications"] > 0
        assert entry["tokens_per_step"] == 256
    assert "| small | ours fp8 | 2 |" in (tmp_path / "gpu-train.md").read_text()
    (tmp_path / "ceiling.done").unlink()
    again = suite(tmp_path, "ceiling")
    assert again.returncode == 0, again.stdout + again.stderr
    assert gpu_report.read_raw(tmp_path / "raw.jsonl") == lines


def test_the_pieces_are_listed_and_known() -> None:
    listed = subprocess.run(["bash", "benchmarks/gpu.sh", "list"], cwd=ROOT, capture_output=True, text=True, check=True)
    pieces = listed.stdout.split()
    assert {"tests", "attention", "head", "optimizer", "curve-fp8"} <= set(pieces)
    sizes = {piece for piece in pieces if piece.startswith("gpt3-")}
    assert {size for size in gpu_cases.SIZES if size in sizes} == set(gpu_cases.SIZES)
    assert {f"{size}-fp8" for size in gpu_cases.FP8_SIZES} <= sizes


def test_the_optimizers_are_timed(tmp_path: Path) -> None:
    output = tmp_path / "optimizer.json"
    command = [sys.executable, "benchmarks/gpu_optimizer.py", "--small", "--rounds=2", f"--output={output}"]
    # without a compiler DeepSpeed's says why it is missing, and does not take minutes
    environment = {**os.environ, "CXX": "false"}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, env=environment)
    assert done.returncode == 0, done.stderr
    updates = json.loads(output.read_text())["updates"]["100000"]
    assert len(updates["torch fused"]["seconds"]) == 2
    assert "missing" in updates["apex FusedAdam"]
    assert "| 100,000 | torch fused |" in output.with_suffix(".md").read_text()
