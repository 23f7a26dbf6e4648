"""benchmarks/gpu_attention.py: on a CPU it measures every way that runs there, and takes up where it stopped."""

import json
import os
import subprocess
import sys
from pathlib import Path

from megagpt.kernels.attention_backends import BACKENDS

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "gpu_attention.py"


def start(output: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--small", "--widths=80", f"--output={output}"]
    environment = os.environ | {"TRITON_INTERPRET": "0"}
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)


def measure(output: Path) -> str:
    done = start(output)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(output: Path) -> str:
    done = start(output)
    assert done.returncode == 1, done.stdout
    return done.stderr


def test_a_small_measurement(tmp_path: Path) -> None:
    output = tmp_path / "results" / "attention.json"
    printed = measure(output)
    report = json.loads(output.read_text())
    assert output.with_suffix(".md").read_text() == printed
    assert len(report["shapes"]) == 2 * 3 + 3
    for shape in report["shapes"]:
        rows = {row["backend"]: row for row in shape["rows"]}
        assert "sdpa" in rows
        assert set(rows) <= set(BACKENDS)
        assert rows["sdpa"]["forward_ms"] > 0 < rows["sdpa"]["backward_tflops"]
        for row in rows.values():
            assert row.get("difference", 0.0) < 0.05, (shape["name"], row)
        assert f"| {shape['name']} | " in printed
        assert shape["auto"] in BACKENDS
    report["shapes"][0]["rows"][0]["forward_ms"] = 12345.0
    lost = report["shapes"][1]["rows"].pop()
    output.write_text(json.dumps(report))
    assert "12345.000" in measure(output), "what stands there already is not measured again"
    again = json.loads(output.read_text())
    assert [row["backend"] for row in again["shapes"][1]["rows"]][-1] == lost["backend"]
    report["versions"]["torch"] = "1.0"
    output.write_text(json.dumps(report))
    assert "name another file" in refused(output)
