"""The training command under torchrun, as a user meets it: each error once, no traceback of ours, nothing lost."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megagpt.errors import TrainingError
from megagpt.parallel.agree import on_every_rank
from megagpt.parallel.mesh import build_mesh
from megagpt.training import prepare
from megagpt.training.cli import main
from tests.parallel.harness import run_ranks
from tests.parallel.runs import make_data, run_arguments, train_rank

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = str(REPOSITORY / "pretrain" / "pretrain_gpt.py")
LAUNCHER = [
    *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"),
    *("--nproc-per-node", "2", SCRIPT),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_data(tmp_path)
    (tmp_path / "small.toml").write_text("", encoding="utf-8")
    return tmp_path


def command(folder: Path, *extra: str) -> list[str]:
    return [str(folder / "small.toml"), *run_arguments(folder, *extra)]


def environment(**extra: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), **extra}


def launch(folder: Path, *extra: str, **variables: str) -> tuple[int, list[str], str]:
    """Two ranks: the launcher's exit status, the lines `error: …`, and everything that was printed."""
    ended = subprocess.run(
        [*LAUNCHER, *command(folder, *extra)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(**variables),
        timeout=120,
    )
    return ended.returncode, [line for line in ended.stdout.splitlines() if line.startswith("error: ")], ended.stdout


def test_an_error_is_told_also_where_rank_0_is_the_last_to_find_it(folder: Path) -> None:
    """torchrun ends every rank when the first one ends: a silent rank 1 would take rank 0's words away."""
    site = folder / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import os, time\nif os.environ.get('RANK') == '0':\n    time.sleep(1.5)\n")
    status, errors, _ = launch(folder, "--train.lrr=3", PYTHONPATH=f"{site}{os.pathsep}{REPOSITORY}")
    assert status != 0
    assert errors == ["error: unknown argument --train.lrr (command line); did you mean --train.lr or --train.fp8?"]


def test_a_rank_that_is_alone_with_its_error_tells_it(folder: Path) -> None:
    alone = environment(RANK="1", LOCAL_RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="1")
    ended = subprocess.run(
        [sys.executable, SCRIPT, *command(folder, "--data.path=nowhere")], env=alone, capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: rank 1: dataset file nowhere.idx does not exist")


def test_a_file_without_rights_is_an_error_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", "secret/corpus.bin")

    monkeypatch.setattr(prepare, "prepare_run", fail)
    assert main(["gpt3-base"]) == 2
    message = "error: secret/corpus.bin may not be used by this user (Permission denied); give it the rights\n"
    assert capsys.readouterr().err == message


def share(bad_rank: int) -> str:
    """What one rank gets of an action that fails on `bad_rank` as on a full disk (-1: on none)."""
    mesh = build_mesh(1, 1)

    def action() -> str:
        if mesh.rank == bad_rank:
            raise OSError(28, "No space left on device", "run/config.toml")
        return f"done on {mesh.rank}"

    try:
        return on_every_rank(action, mesh)
    except TrainingError as error:
        return str(error)


def test_what_one_rank_cannot_do_fails_on_all() -> None:
    assert run_ranks(2, share, -1) == ["done on 0", "done on 1"]
    message = "No space left on device: run/config.toml; free space or give this user rights there"
    assert run_ranks(2, share, 1) == [f"rank 1: {message}"] * 2
    assert run_ranks(2, share, 0) == [message] * 2


def test_a_damaged_shard_of_one_rank_ends_both_with_one_line(folder: Path) -> None:
    layout = "--parallel.tensor=2"
    run_ranks(2, train_rank, run_arguments(folder, layout, "--train.steps=2"))
    damaged = folder / "run" / "checkpoints" / "step-00000002" / "moments-rank00001.safetensors"
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    status, errors, printed = launch(folder, layout)
    assert status != 0
    assert len(errors) == 1, printed
    assert re.match(
        r"error: every checkpoint .* is damaged: .*: rank 1: .*moments-rank00001\.safetensors is damaged: ",
        errors[0],
    )
    assert "[rank0]" not in printed, "rank 0 must not be left waiting for rank 1"


def test_a_last_save_that_fails_is_said_once(folder: Path) -> None:
    """A file where the checkpoint's folder has to be made: no rank can save."""
    (folder / "run" / "checkpoints").mkdir(parents=True)
    (folder / "run" / "checkpoints" / "step-00000002.writing").write_text("")
    (folder / "run" / "checkpoints" / "step-00000002").write_text("")
    status, errors, printed = launch(folder, "--train.steps=2")
    assert status != 0
    assert len(errors) == 1, printed
    assert re.match(r"error: rank 0 could not write .*step-00000002.*earlier checkpoints are untouched", errors[0])


def test_interrupted(folder: Path) -> None:
    """Ctrl-C: no traceback, exit status 130, and the checkpoints stay; also while one is written, as always here."""
    endless = ["--train.steps=100000", "--evaluation.interval_steps=0", "--checkpoint.interval_steps=1"]
    # Whoever starts the tests in the background (nohup ... &) has SIGINT ignored, and children inherit that.
    process = subprocess.Popen(
        ["env", "--default-signal=INT", sys.executable, SCRIPT, *command(folder, *endless)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    latest = folder / "run" / "checkpoints" / "latest"
    deadline = time.monotonic() + 60
    while not latest.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "interrupted; the same command continues from the latest checkpoint" in errors
    assert "Traceback" not in errors
    assert latest.exists()
