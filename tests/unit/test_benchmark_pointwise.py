"""benchmarks/pointwise.py runs and says what it should."""

import json
import sys

import pytest

from benchmarks import pointwise


def test_small_run(tmp_path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pointwise.py", "--small", "--output", str(tmp_path / "found.json")])
    pointwise.main()
    report = json.loads((tmp_path / "found.json").read_text())
    assert [row["case"] for row in report["rows"]] == [case for case in pointwise.MOVED for _ in range(2)]
    for row in report["rows"]:
        assert set(row["seconds"]) == {"torch", "ours", "compile"}
        assert row["of_torch"]["torch"] == 1
        assert all(len(times) == 2 for times in row["rounds"].values())
    assert "| bias_gelu | 64 | 32 | bfloat16 |" in capsys.readouterr().out
