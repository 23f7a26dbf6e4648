"""torchrun with what it lacks: a rank's exit status, signals that reach ranks, no restart where none helps."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from torch.distributed import run

from megagpt.launch.agent import NodeReport, RankEnd, read_reports, this_node

AGENT = [sys.executable, "-m", "megagpt.launch.agent"]
ONE = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
RANK = """
import os, signal, sys, time
from pathlib import Path
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
signal.signal(signal.SIGTERM, lambda *_: caught.append(2))
Path(f"ready-{os.environ['RANK']}").touch()
if sys.argv[1] == "fail" and os.environ["RANK"] == "1":
    sys.exit(75)
while not caught:
    time.sleep(0.01)
time.sleep(0.5)  # saves
Path(f"saved-{os.environ['RANK']}").touch()
"""


def start(folder: Path, *words: str) -> "subprocess.Popen[str]":
    (folder / "rank.py").write_text(RANK)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[3])}
    pipe = subprocess.PIPE
    return subprocess.Popen([*AGENT, *words], cwd=folder, env=environment, stdout=pipe, stderr=pipe, text=True)


def wait_for(folder: Path, *names: str) -> None:
    deadline = time.monotonic() + 60
    while not all((folder / name).exists() for name in names):
        assert time.monotonic() < deadline, names
        time.sleep(0.05)


def test_signals_reach_the_ranks_which_end_well(tmp_path: Path) -> None:
    can_keep_sigterm = "--signals-to-handle" in run.get_args_parser().format_help()  # newer than torch 2.6
    for number in (signal.SIGUSR1, signal.SIGTERM) if can_keep_sigterm else (signal.SIGUSR1,):
        agent = start(tmp_path, *ONE, "rank.py", "wait")
        wait_for(tmp_path, "ready-0", "ready-1")
        agent.send_signal(number)
        output = agent.communicate(timeout=60)
        assert agent.returncode == 0, output
        for rank in (0, 1):
            (tmp_path / f"saved-{rank}").unlink()
            (tmp_path / f"ready-{rank}").unlink()


def test_the_status_of_a_rank_is_passed_on_and_written_down(tmp_path: Path) -> None:
    agent = start(tmp_path, "--report", "reports", *ONE, "rank.py", "fail")
    error = agent.communicate(timeout=60)[1]
    assert agent.returncode == 75, error
    assert read_reports(tmp_path / "reports") == [NodeReport(this_node(), (RankEnd(1, 75),))]


def test_what_no_restart_helps_is_not_started_again(tmp_path: Path) -> None:
    words = ("--max-restarts", "3", "--module", "megagpt.launch.rank", "missing.toml")
    agent = start(tmp_path, *ONE, *words)
    error = agent.communicate(timeout=60)[1]
    assert agent.returncode == 2, error
    assert error.count("error: missing.toml: no such configuration file") == 1
    assert "a rank ended with status 2: a restart would meet the same error" in error
