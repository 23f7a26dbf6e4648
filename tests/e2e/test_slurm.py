"""Jobs on a real SLURM of two nodes: submitted, killed, warned of the time limit, without a node; and their losses.

`megagpt launch slurm` submits; every run that was broken ends with the losses of the one that was not, to the last bit.
"""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from megagpt.training.run_record import read_sessions
from tests.e2e.slurm_lab import SlurmLab, missing_for_slurm
from tests.e2e.test_launchers import REPOSITORY, Checkout, free_port
from tests.parallel.runs import read_metrics, run_arguments

pytestmark = pytest.mark.skipif(missing_for_slurm() is not None, reason=str(missing_for_slurm()))
STEPS = 120
EXTRA = (f"--train.steps={STEPS}", "--evaluation.interval_steps=0", "--checkpoint.interval_steps=20")
SECONDS = 120


class Cluster:
    """A repository with data on two nodes. Its name has a blank and Chinese in it."""

    def __init__(self, folder: Path, lab: SlurmLab) -> None:
        self.lab = lab
        self.checkout = Checkout(folder)
        self.folder = folder

    def arguments(self, name: str) -> list[str]:
        return ["run.toml", *run_arguments(self.folder), *EXTRA, f"--run.folder={self.folder}/{name}/run"]

    def launch(self, *words: str, **variables: str) -> str:
        command = [sys.executable, "-m", "megagpt", "launch", *words]
        environment = {**self.lab.environment, "PYTHONPATH": str(REPOSITORY), **variables}
        ended = subprocess.run(
            command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    def submit(self, name: str, **variables: str) -> str:
        """The number of a job of two nodes with a rank each."""
        nodes = ("--nodes", "2", "--gpus-per-node", "0", "--cpus-per-task", "1", "--time", "20")
        printed = self.launch("slurm", *self.arguments(name), *nodes, MASTER_PORT=free_port(), **variables)
        found = re.search(r"^submitted job (\d+): 2 nodes with 1 ranks each", printed, re.MULTILINE)
        assert found is not None, printed
        return found[1]

    def run(self, name: str) -> Path:
        return self.folder / name / "run"

    def log(self, name: str, job: str) -> str:
        path = self.run(name) / "logs" / f"slurm-{job}.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def wait(self, name: str, job: str, what: str, is_so: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while not is_so():
            assert time.monotonic() < deadline, f"{what}: {self.lab.run('squeue')}{self.log(name, job)}"
            time.sleep(0.1)

    def wait_for_step(self, name: str, job: str, step: int) -> None:
        def reached() -> bool:
            path = self.run(name) / "metrics.jsonl"
            return path.exists() and len(path.read_bytes().splitlines()) >= step

        self.wait(name, job, f"step {step}", reached)

    def reasons(self, name: str) -> list[str]:
        return ["killed" if session.end is None else session.end.reason for session in read_sessions(self.run(name))]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(prefix="三国 ") as repository:
        Path(folder).chmod(0o755)
        Path(repository).chmod(0o755)
        lab = SlurmLab(Path(folder))
        try:
            yield Cluster(Path(repository), lab)
        finally:
            lab.stop()


@pytest.fixture(scope="module")
def unbroken(cluster: Cluster) -> list[dict[str, Any]]:
    """The records of a run that nothing disturbs, which `megagpt launch torchrun` starts."""
    cluster.launch("torchrun", *cluster.arguments("unbroken"), "--ranks", "2")
    return read_metrics(cluster.folder / "unbroken")


def ranks_of(folder: Path) -> list[int]:
    """The processes that train in a folder, started by an agent."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if f"--run.folder={folder}" in words and any(word.endswith("pretrain_gpt.py") for word in words[:4]):
            found.append(int(path.parent.name))
    return found


def test_a_job_whose_rank_is_killed_and_whose_time_runs_out(cluster: Cluster, unbroken: list[dict[str, Any]]) -> None:
    job = cluster.submit("life")
    cluster.wait_for_step("life", job, 30)
    os.kill(ranks_of(cluster.run("life"))[-1], signal.SIGKILL)
    cluster.wait("life", job, "a new start", lambda: len(read_sessions(cluster.run("life"))) == 2)
    cluster.wait_for_step("life", job, 60)
    cluster.lab.run("scancel", "--batch", "--signal=USR1", job)
    cluster.lab.wait_for_job(job)
    log = cluster.log("life", job)
    assert read_metrics(cluster.folder / "life") == unbroken, log
    assert re.search(r"^node1  ok: no GPU.*all-reduce .* GB/s, clock .*configuration \w+$", log, re.MULTILINE), log
    assert re.search(r"rank \d on node\d ended with signal 9", log), log
    assert "starting all ranks again" in log
    assert "asked to requeue: the ranks save after the step they are in" in log
    assert "all ranks saved and ended; the job goes back to the queue" in log
    assert f"job {job}, start number 2, 1 ranks on each of node[1-2]" in log
    assert "training is complete" in log
    first, second, third = cluster.reasons("life")
    assert first == "killed" or first.startswith("lost a peer")
    assert re.fullmatch(r"signal SIGUSR1 after step \d+", second)
    assert third == "complete"
    starts = cluster.run("life") / "logs" / f"slurm-{job}"
    assert sorted(path.name for path in starts.glob("start-*")) == ["start-1", "start-2", "start-3"]
    assert len(list(starts.glob("start-1/**/stderr.log"))) == 2  # a folder each for two ranks


def test_a_job_that_loses_a_node(cluster: Cluster, unbroken: list[dict[str, Any]]) -> None:
    job = cluster.submit("crash", HEALTH="0")
    cluster.wait_for_step("crash", job, 30)
    cluster.lab.crash("node2")
    cluster.wait(
        "crash", job, "node2 is down", lambda: "down" in cluster.lab.run("sinfo", "-h", "-n", "node2", "-o", "%t")
    )
    cluster.wait(
        "crash", job, "the job waits", lambda: cluster.lab.run("squeue", "-h", "-j", job, "-o", "%t") == "PD\n"
    )
    cluster.lab.start_node("node2")
    cluster.lab.wait_for_job(job)
    log = cluster.log("crash", job)
    assert read_metrics(cluster.folder / "crash") == unbroken, log
    assert f"job {job}, start number 2" in log
    assert cluster.reasons("crash")[-1] == "complete"


def test_a_node_that_is_not_fit_is_named_before_training(cluster: Cluster) -> None:
    run = cluster.run("unfit")
    run.mkdir(parents=True)
    cluster.lab.enter("node2", "mount", "-t", "tmpfs", "-o", "ro", "tmpfs", str(run))
    try:
        job = cluster.submit("unfit")
        cluster.lab.wait_for_job(job)
    finally:
        cluster.lab.enter("node2", "umount", str(run))
    log = cluster.log("unfit", job)
    assert re.search(r"^node1  ok: ", log, re.MULTILINE), log
    assert re.search(r"^node2  NOT FIT: run\.folder = .*cannot be written: Read-only file system", log, re.MULTILINE), (
        log
    )
    assert "not fit to train on: node2" in log
    assert not read_sessions(run)
    assert "JobState=FAILED" in cluster.lab.run("scontrol", "show", "job", job)
