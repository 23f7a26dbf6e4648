"""`megagpt export`: writes the folder, prints the proof, and reports a user's error."""

from pathlib import Path

import pytest

from megagpt.cli import main

pytest.importorskip("transformers")


def test_the_command_exports_and_prints_the_proof(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "hf")
    assert main(["export", str(checkpoint), "--format", "hf", "--output", output, "--dtype", "bfloat16"]) == 0
    printed = capsys.readouterr().out
    assert "parameters in bfloat16, from step-00000007" in printed
    assert "logits: largest difference" in printed
    assert "rounding to bfloat16 changed logits" in printed
    assert "token ids: identical for 3,000 texts" in printed
    assert f"written to {output}" in printed
    assert (tmp_path / "hf" / "model.safetensors").is_file()

    assert main(["export", str(checkpoint), "--output", output]) == 2
    assert "hf exists; choose another --output" in capsys.readouterr().err
    assert main(["export", str(checkpoint), "--output", output, "--overwrite"]) == 0
    assert "parameters in float32" in capsys.readouterr().out
