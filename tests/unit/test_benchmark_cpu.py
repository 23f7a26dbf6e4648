"""benchmarks/cpu_train.py: a whole run with a tiny model, and the table's numbers from known times."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks"))

import cpu_train

ROOT = Path(__file__).resolve().parents[2]


def found(**seconds: list[list[float]]) -> dict[str, Any]:
    """Results of contenders by the seconds of their steps, round by round."""
    parts = [{"products": 1.5, "attention": 0.4, "update": 0.1}]
    return {
        name.replace("_", "-"): {"seconds": rounds, "parts": parts, "memory_gib": 2.0}
        for name, rounds in seconds.items()
    }


def test_ratios_are_medians_over_rounds_of_pairs() -> None:
    results = found(
        ours=[[2.0, 2.2], [4.0, 4.0], [1.0, 1.0]],
        nanogpt_eager=[[4.2, 4.2], [4.0, 4.0], [3.0, 3.0]],
        huggingface_fused=[[9.0, 9.0], [9.0, 9.0], [9.0, 9.0]],
        floor=[[1.05, 1.05], [4.0, 4.0], [0.9, 0.9]],
    )
    assert cpu_train.ratio(results, "nanogpt-eager") == 2.0  # of 2, 1 and 3
    assert cpu_train.best_peer(results) == "nanogpt-eager"
    said = cpu_train.summary("bf16 4x256", results)
    assert "2.00 times the best peer (nanogpt-eager), 90% of the floor" in said
    assert "products 1.50, attention 0.40, update 0.10" in said


@pytest.mark.timeout(600)
def test_a_small_measurement(tmp_path: Path) -> None:
    """Ours, a peer and the floor, stopped and continued, and two ranks beside one."""
    output = tmp_path / "cpu.json"
    command = ["--small", "--cases", "bf16 4x256", "--peers", "nanogpt-fused", "--rounds", "2", "--output", str(output)]
    ended = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks/cpu_train.py"), *command], capture_output=True, text=True, timeout=560
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    report = json.loads(output.read_text(encoding="utf-8"))
    case = report["cases"]["bf16 4x256"]
    assert set(case) == {"ours", "nanogpt-fused", "floor"}
    for contender in [*case.values(), *report["ranks"].values()]:
        assert [len(steps) for steps in contender["seconds"]] == [2, 2]
        assert all(second > 0 for steps in contender["seconds"] for second in steps)
    assert set(report["ranks"]) == {"1 × 2", "2 × 1"}
    text = output.with_suffix(".md").read_text(encoding="utf-8")
    assert "| ours |" in text
    assert "a tiny model" in text
