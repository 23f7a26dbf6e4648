"""benchmarks/gpu_head.py runs on a tiny head, and writes what it measured."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_head.py"


def test_a_small_measurement(tmp_path: Path) -> None:
    output = tmp_path / "head.json"
    command = [sys.executable, str(SCRIPT), "--cpu", "--small", "--rounds=2", f"--output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(output.read_text())["results"]
    assert {"chosen", "whole", "4 chunks, wide", "16 chunks"} <= set(result["seconds"])
    assert all(len(times) == 2 for times in result["seconds"].values())
    assert done.stdout == output.with_suffix(".md").read_text()
    assert "| chosen |" in done.stdout
