"""`megagpt runs`: every state, wide and narrow, damaged and foreign folders, and that it is quick."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from megagpt import cli
from megagpt.runs import summary
from megagpt.runs.find import find_runs
from megagpt.runs.page import sparkline
from megagpt.runs.summary import summarise
from megagpt.runs.table import shown_age
from tests.unit.runs.folders import checkpoint, every_state, metrics, session, state

Printed = Callable[..., str]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """./runs with a run in each state."""
    monkeypatch.chdir(tmp_path)
    lock = every_state(tmp_path / "runs")
    yield tmp_path / "runs"
    lock.close()


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Printed:
    """What `megagpt runs …` prints on a terminal of some width."""

    def run(width: int, *arguments: str) -> str:
        monkeypatch.setattr("megagpt.runs.cli._console", lambda: Console(width=width))
        assert cli.main(["runs", *arguments]) == 0
        return capsys.readouterr().out

    return run


def test_a_wide_terminal(root: Path, printed: Printed) -> None:
    assert [line.rstrip() for line in printed(150).splitlines()] == [
        "run               state            step    loss  tokens/s  checkpoint              restarts  last reason",
        "runs/lab/running  running     250/1,000  4.2500    12,346  200 (12 min ago)               1  "
        "signal SIGUSR1 after step 100",
        "runs/complete     complete  1,000/1,000  3.1000    12,346  1,000 (3 days ago)             0  complete",
        "runs/stopped      stopped     130/1,000  4.2500    12,346  none                           0  interrupted",
        "runs/failed       failed       42/1,000  4.2500    12,346  40 (5 s ago) not whole         0  "
        "error: the loss of step 43 is not finite on rank 1; trai…",
        "runs/killed       killed       77/1,000  4.2500    12,346  none                           0  "
        "killed after step 77",
        "5 runs: 1 running, 1 complete, 1 stopped, 1 failed, 1 killed",
    ]


def test_a_narrow_terminal(root: Path, printed: Printed) -> None:
    assert [line.rstrip() for line in printed(52).splitlines()] == [
        "run               state            step    loss",
        "runs/lab/running  running     250/1,000  4.2500",
        "runs/complete     complete  1,000/1,000  3.1000",
        "runs/stopped      stopped     130/1,000  4.2500",
        "runs/failed       failed       42/1,000  4.2500",
        "runs/killed       killed       77/1,000  4.2500",
        "5 runs: 1 running, 1 complete, 1 stopped, 1 failed,",
        "1 killed",
    ]


@pytest.mark.parametrize("width", [20, 30, 40, 60, 80, 100, 120])
def test_no_line_is_wider_than_the_terminal(root: Path, printed: Printed, width: int) -> None:
    session(root / ("long" * 20), 1, "complete", 1000)
    lines = printed(width).splitlines()
    assert max(map(len, lines)) <= width
    assert sum(line.startswith("runs/") for line in lines) == 6


def test_json(root: Path, printed: Printed) -> None:
    runs = json.loads(printed(80, "--json"))
    assert [run["state"] for run in runs] == ["running", "complete", "stopped", "failed", "killed"]
    assert runs[0] == {
        "folder": str(root / "lab" / "running"),
        "state": "running",
        "step": 250,
        "steps": 1000,
        "loss": 4.25,
        "tokens_per_second": 12345.6,
        "eta_seconds": 3600.0,
        "checkpoint": {"step": 200, "written": pytest.approx(time.time() - 720, abs=60), "problem": None},
        "restarts": 1,
        "reason": "signal SIGUSR1 after step 100",
        "active": pytest.approx(time.time(), abs=60),
    }
    assert runs[3]["checkpoint"]["problem"] == "weights has 9 bytes, not 10"


def test_folders_can_be_named(root: Path, printed: Printed) -> None:
    one = printed(150, "runs/lab/running", "runs/lab", str(root / "complete"))
    assert [line.split()[0] for line in one.splitlines()[1:-1]] == ["runs/lab/running", "runs/complete"], "each once"
    (root / "empty").mkdir()
    (root / "empty" / "state.json").write_text("{}")  # of something else
    assert printed(80, "runs/empty") == "no runs in runs/empty\n"


def test_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["runs"]) == 2
    message = "error: runs is no folder; name run folders, or folders that hold some: megagpt runs FOLDER\n"
    assert capsys.readouterr().err == message
    assert cli.main(["runs", "show", "."]) == 2
    assert capsys.readouterr().err == "error: . is no run folder; `megagpt runs FOLDER` lists those below a folder\n"


GARBAGE = [
    b"",
    b"\x00\xff",
    b"[]",
    b"{",
    b'{"event": "start", "session": "x"}',
    b'{"step": "a", "loss": []}',
    b"[" * 9999,
]


@pytest.mark.parametrize("garbage", GARBAGE)
def test_damaged_files_break_nothing(root: Path, printed: Printed, garbage: bytes) -> None:
    broken = root / "broken"
    checkpoint(broken, 10, 60)
    (broken / "checkpoints" / "step-00000010" / "manifest.json").write_bytes(garbage)
    (broken / "checkpoints" / "latest").write_bytes(garbage)
    for name in ("sessions.jsonl", "state.json", "metrics.jsonl", "config.toml", "environment.json", "lock"):
        (broken / name).write_bytes(garbage)
    lines = [line for line in printed(150).splitlines() if "runs/broken" in line]
    assert len(lines) == 1
    assert "unknown" in lines[0]
    assert "not whole" in lines[0]
    page = printed(150, "show", "runs/broken")
    assert "config.toml cannot be read" in page
    assert " ago  not whole: its manifest.json is missing or damaged" in page


def test_files_that_are_folders_and_folders_that_are_files(root: Path, printed: Printed) -> None:
    for name in ("sessions.jsonl", "state.json", "metrics.jsonl", "lock", "config.toml"):
        (root / "odd" / name).mkdir(parents=True)
    (root / "odd" / "checkpoints").write_text("")
    assert sum("runs/odd" in line for line in printed(150).splitlines()) == 1
    printed(150, "show", "runs/odd")


def test_a_folder_that_may_not_be_read_is_told(
    root: Path, printed: Printed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    closed, scandir = root / "lab", os.scandir

    def refuse(path: str) -> object:
        if Path(path).absolute() == closed:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert cli.main(["runs"]) == 0
    captured = capsys.readouterr()
    assert captured.err == "warning: runs/lab could not be read: Permission denied\n"
    assert "4 runs" in captured.out


def test_links_in_a_circle_end(root: Path) -> None:
    (root / "lab" / "again").symlink_to(root)
    (root / "elsewhere").symlink_to(root / "complete")
    assert len(find_runs([root]).folders) == 5


def test_a_run_of_an_earlier_megagpt(root: Path) -> None:
    """It has no sessions.jsonl: what its metrics and checkpoints say is shown."""
    old = root / "old"
    checkpoint(old, 10, 60)
    metrics(old, 12)
    (old / "config.toml").write_text("")
    found = summarise(old)
    assert (found.state, found.step, found.steps, found.loss, found.restarts) == ("unknown", 12, None, 5.0, 0)
    assert found.checkpoint is not None
    assert found.checkpoint.step == 10


def test_latest_is_the_one_that_is_named(root: Path) -> None:
    checkpoint(root / "complete", 2000, 5)
    (root / "complete" / "checkpoints" / "latest").write_text("step-00001000\n")
    found = summarise(root / "complete").checkpoint
    assert found is not None
    assert found.step == 1000


@pytest.mark.parametrize(("age_seconds", "word"), [(100, "running"), (700, "killed")])
def test_a_run_on_another_machine_is_known_by_its_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, age_seconds: float, word: str
) -> None:
    """Its lock may not be seen from here."""
    session(tmp_path, 1, host="elsewhere")
    state(tmp_path, 1, "running", 50, host="elsewhere")
    monkeypatch.setattr(summary, "seconds_since", lambda text: age_seconds)
    assert summarise(tmp_path).state == word


def test_slow_steps_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session(tmp_path, 1, host="elsewhere")
    state(tmp_path, 1, "running", 50, host="elsewhere")
    values = json.loads((tmp_path / "state.json").read_text())
    (tmp_path / "state.json").write_text(json.dumps({**values, "seconds_per_step": 300}))
    monkeypatch.setattr(summary, "seconds_since", lambda text: 1400)
    assert summarise(tmp_path).state == "running"


@pytest.mark.parametrize("word", ["running", "killed"])
def test_without_locks_the_process_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    pid = os.getpid() if word == "running" else 2**22 + 1
    session(tmp_path, 1)
    text = (tmp_path / "sessions.jsonl").read_text()
    (tmp_path / "sessions.jsonl").write_text(text.replace(str(2**22 + 1), str(pid)))
    monkeypatch.setattr(summary, "is_locked", lambda folder: None)
    assert summarise(tmp_path).state == word


CONFIG = """
[run]
seed = 1
[model]
name = "gpt3-base"
num_layers = 12
num_heads = 12
hidden_size = 768
sequence_length = 2048
[data]
path = "data/corpus"
[train]
tokens = 300000000000
batch_tokens = 524288
precision = "bf16"
lr = 0.0006
lr_schedule = "cosine"
[parallel]
tensor = 2
pipeline = 1
context = 1
zero_stage = 1
"""


def test_the_page_of_a_run(root: Path, printed: Printed) -> None:
    folder = root / "lab" / "running"
    checkpoint(folder, 100, 7000)
    (folder / "checkpoints" / "latest").write_text("step-00000200\n")
    (folder / "config.toml").write_text(CONFIG)
    metrics(folder, 250)
    environment = {
        "commit": "603294bd01437d4a9f6fa365330636aa698ce74d",
        "dirty": True,
        "megagpt": "0.1.0",
        "packages": {"torch": "2.13.0", "deepspeed": "0.19.8", "megatron-core": "0.16.1"},
        "python": "3.11.7",
        "hosts": {"node1": {"ranks": [0, 1], "devices": ["NVIDIA H200"]}},
        "command": "python pretrain/pretrain_gpt.py small.toml",
    }
    (folder / "environment.json").write_text(json.dumps(environment))
    host = os.uname().nodename
    page = printed(160, "show", "runs/lab/running").splitlines()
    running = page[-4]
    assert running.startswith("    2  2026-11-23 12:00:00 UTC  ")
    assert running.endswith(f"  steps 100 to 250  2 ranks on {host}: running")
    assert [line for line in page if line != running] == [
        "run            runs/lab/running",
        "state          running, step 250 of 1,000, loss 4.2500, 12,346 tokens/s, ETA 1:00:00; "
        "signal SIGUSR1 after step 100",
        "model          gpt3-base: 12 layers, 12 heads, hidden 768, context 2048",
        "training       300,000,000,000 tokens, 524,288 tokens a step, bf16, lr 0.0006 cosine, seed 1",
        "data           data/corpus",
        "layout         tensor 2, pipeline 1, context 1, ZeRO 1",
        "software       megagpt 0.1.0 at 603294bd0143-dirty, torch 2.13.0, deepspeed 0.19.8, megatron-core 0.16.1, "
        "Python 3.11.7",
        "machines       node1: 2 ranks on NVIDIA H200",
        "command        python pretrain/pretrain_gpt.py small.toml",
        "loss           ████▇▇▇▇▇▇▇▆▆▆▆▆▆▅▅▅▅▅▅▅▄▄▄▄▄▄▄▃▃▃▃▃▃▃▂▂▂▂▂▂▁▁▁▁  5.9960 after step 1 → 5.0000 after step 250",
        "validation     ▁  5.5000 after step 250 → 5.5000 after step 250",
        "sessions (2)",
        f"    1  2026-11-23 12:00:00 UTC   1:30:05  steps 0 to 100  2 ranks on {host}: signal SIGUSR1 after step 100",
        "checkpoints",
        "  step 200  12 min ago  whole  (latest)",
        "  step 100  2 h ago  whole",
    ]


def test_sparklines() -> None:
    assert sparkline([]) == ""
    assert sparkline([3.0, 3.0]) == "▁▁"
    assert sparkline([0.0, 7.0, 3.0]) == "▁█▄"
    assert len(sparkline([float(n) for n in range(1000)])) == 48


def test_ages() -> None:
    ages = {-3: "0 s", 59: "59 s", 720: "12 min", 6000: "2 h", 86400 * 1.5: "36 h", 86400 * 5: "5 days"}
    assert {seconds: shown_age(seconds) for seconds in ages} == ages


def test_hundreds_of_runs_are_quick_and_import_nothing_heavy(tmp_path: Path) -> None:
    for number in range(300):
        folder = tmp_path / "runs" / f"run-{number}"
        session(folder, 1, "complete", 1000)
        state(folder, 1, "complete", 1000)
    script = """if True:
        import sys
        from megagpt import cli
        assert cli.main(["runs"]) == 0
        heavy = {"torch", "numpy", "pydantic", "deepspeed", "tokenizers"} & set(sys.modules)
        assert not heavy, heavy
    """
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
        seconds.append(time.perf_counter() - started)
        assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("complete") == 601
    assert min(seconds) < 1.0  # 0.2 s where it was written
