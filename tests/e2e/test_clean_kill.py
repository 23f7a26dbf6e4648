"""Cleaning a Chinese corpus on two processes, killed (SIGKILL) in several stages: it ends as one that was not."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.data.chinese_corpus import write_corpus
from tests.unit.tokenizer.toy import train_toy

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_TASKS = 4


def start(folder: Path, output: str) -> subprocess.Popen[str]:
    script = str(REPOSITORY / "data_tools" / "clean_chinese.py")
    options = ["--tokenizer", "tokenizer.model", "--output", output, "--tasks", str(NUM_TASKS), "--workers", "2"]
    return subprocess.Popen(
        [sys.executable, script, "a.jsonl", "b.jsonl", *options],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def kill_when_there_is(path: Path, process: subprocess.Popen[str]) -> None:
    """kill -9 the process that was started; those that it started must end by themselves."""
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)  # waits for all that could still print
    assert process.returncode == -signal.SIGKILL, f"ended before {path} was there"


def finish(process: subprocess.Popen[str]) -> str:
    printed, errors = process.communicate(timeout=240)
    assert process.returncode == 0, printed + errors
    return printed


@pytest.mark.timeout(600)
def test_a_cleaning_that_is_killed_in_three_stages_ends_as_one_that_is_not(tmp_path: Path) -> None:
    write_corpus(tmp_path)
    train_toy(tmp_path / "tokenizer.model")
    finish(start(tmp_path, "whole"))
    for stage in ("clean", "signatures", "tokenize"):
        marker = tmp_path / "data.cleaning" / "logs" / stage / "completions" / "00000"
        kill_when_there_is(marker, start(tmp_path, "data"))
    printed = finish(start(tmp_path, "data"))
    assert printed.count("done before") >= 5
    for kind in ("bin", "idx", "json", "cleaning.json"):
        assert (tmp_path / f"data.{kind}").read_bytes() == (tmp_path / f"whole.{kind}").read_bytes(), kind
    assert json.loads((tmp_path / "data.cleaning.json").read_text())["num_documents"] == 60
