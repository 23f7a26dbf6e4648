"""benchmarks/samples.py: it measures what it says on a small dataset, and the dataset is what was asked for."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from megagpt.data.indexed import IndexedDataset

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "samples.py"


def test_a_small_measurement(tmp_path: Path) -> None:
    sizes = ["--documents=3000", "--tokens=400000", "--length=64", "--samples=640", "--rounds=1"]
    output = tmp_path / "results" / "samples.json"
    command = [sys.executable, str(SCRIPT), *sizes, f"--folder={tmp_path}", f"--output={output}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    dataset = IndexedDataset(tmp_path / "made-up-3000-400000")
    assert (dataset.num_documents, dataset.num_tokens) == (3000, 400_000)
    ends = dataset.document_offsets[1:] - 1
    tokens = dataset.tokens(0, dataset.num_tokens)
    assert np.array_equal(np.flatnonzero(tokens == 1), ends), (
        "every document ends with the end of document, none holds it"
    )
    report = json.loads(output.read_text())
    assert {"ours", "ours in NumPy", "limit"} <= set(report["rounds"])
    (ours,) = report["rounds"]["ours"]
    assert ours["index_bytes"] == (3000 // 16 + 2) * 8
    assert all(ours[key] > 0 for key in ("index_seconds", "samples_per_second", "batches_per_second"))
    table = output.with_suffix(".md").read_text()
    assert table.strip() == done.stdout.strip()
    assert "| ours in NumPy |" in table
