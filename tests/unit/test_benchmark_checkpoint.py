"""benchmarks/checkpoint.py: it measures what it says on a small model, and its tables hold every way of saving."""

import json
import subprocess
import sys
from pathlib import Path

from tests.parallel.runs import make_data

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "checkpoint.py"
MODEL = """
[model]
num_layers = 2
num_heads = 2
hidden_size = 64
sequence_length = 256
[data]
split = [0.8, 0.2, 0.0]
"""


def test_a_small_measurement(tmp_path: Path) -> None:
    make_data(tmp_path)
    (tmp_path / "small.toml").write_text(MODEL, encoding="utf-8")
    output = tmp_path / "results" / "checkpoint.json"
    words = ["--ranks=2", "--rounds=1", "--steps=9", f"--model={tmp_path}/small.toml", f"--folder={tmp_path}"]
    data = [f"--dataset={tmp_path}/corpus", f"--tokenizer={tmp_path}/tokenizer.model", f"--output={output}"]
    done = subprocess.run([sys.executable, str(SCRIPT), *words, *data], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(output.read_text())
    found = report["files"]["2"]
    assert all(len(seconds) == 1 and seconds[0] > 0 for kind in ("write", "read") for seconds in found[kind].values())
    # 12 bytes of each of 50,304 x 64 and 256 x 64 embedding values, and of two layers and the last norm
    layer = 12 * 64 * 64 + 13 * 64
    assert found["bytes"] == 12 * (50_304 * 64 + 256 * 64 + 2 * layer + 2 * 64)
    training = report["training"]
    assert list(training) == ["no saves", "behind training", "in place"]
    assert [len(run["waited_seconds"]) for run in training.values()] == [1, 3, 3]  # after steps 4, 8 and 9
    assert all(list(run["seconds_of_steps"]) == ["5", "6", "7", "8", "9"] for run in training.values())
    table = output.with_suffix(".md").read_text()
    assert table == done.stdout
    rows = [line.split(" | ")[0].removeprefix("| ") for line in table.splitlines() if line.startswith("| ")]
    assert [name for name in rows if name.startswith("ours")] == ["ours"] * 2 + [
        "ours, no hashes",
        "ours, no hashes, a quarter",
    ]
    assert not list(tmp_path.glob("checkpoint-benchmark-*"))
