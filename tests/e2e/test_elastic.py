"""torchrun over one or two machines: one is lost, the other goes on with another layout, then both when it is back.

Two agents on this machine stand for two machines. The run's losses are those of one that nothing disturbs, within the
bound for other layouts.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megagpt.training.run_record import read_sessions
from tests.e2e.slurm_lab import process_tree
from tests.e2e.test_launchers import REPOSITORY, free_port
from tests.parallel.harness import run_ranks
from tests.parallel.runs import make_data, read_metrics, run_arguments, train_rank

SECONDS = 150
PARITY = 1e-5  # relative, between layouts; worst measured here: 9.0e-08
RUN = (
    *("--train.steps=200", "--evaluation.interval_steps=0", "--checkpoint.interval_steps=20"),
    *("--parallel.tensor=2", "--parallel.elastic=true"),
)


class Machines:
    """Agents of one run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        self.started: list[subprocess.Popen[bytes]] = []

    def arguments(self, name: str) -> list[str]:
        return [*run_arguments(self.folder), *RUN, f"--run.folder={self.folder}/{name}/run"]

    def machine(self) -> subprocess.Popen[bytes]:
        """An agent that may train alone or with another one. The first one holds the place where they meet."""
        log = (self.folder / f"machine-{len(self.started)}.log").open("wb")
        where = ("--ranks", "1", "--nnodes", "1:2", "--rendezvous", f"localhost:{self.port}")
        words = ("megagpt", "launch", "torchrun", "run.toml", *where, *self.arguments("elastic"))
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", *words]
        found = subprocess.Popen(command, cwd=self.folder, env=environment, stdout=log, stderr=log)
        self.started.append(found)
        deadline = time.monotonic() + SECONDS
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("localhost", int(self.port))) == 0:
                    return found
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def sessions(self) -> list[int]:
        """The numbers of ranks of the sessions so far."""
        return [session.start.ranks for session in read_sessions(self.folder / "elastic" / "run")]

    def wait_for_step_of_session(self, number: int, steps: int) -> None:
        """Until so many steps of a session are done."""
        metrics = self.folder / "elastic" / "run" / "metrics.jsonl"
        deadline = time.monotonic() + SECONDS
        while True:
            found = read_sessions(self.folder / "elastic" / "run")
            if len(found) >= number:
                done = len(metrics.read_bytes().splitlines()) if metrics.exists() else 0
                if done >= found[number - 1].start.first_step + steps:
                    return
            assert time.monotonic() < deadline, (self.sessions(), self.logs())
            time.sleep(0.1)

    def wait_for_signal(self, pid: int) -> None:
        """Until torchrun has sent SIGTERM to a process that is stopped."""
        deadline = time.monotonic() + SECONDS
        bit = 1 << (signal.SIGTERM - 1)
        while True:
            status = Path(f"/proc/{pid}/status").read_text()
            pending = [int(line.split()[1], 16) for line in status.splitlines() if line.startswith("ShdPnd")]
            if pending[0] & bit:
                return
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(path.read_text(errors="replace") for path in sorted(self.folder.glob("*.log")))

    def lose(self, machine: subprocess.Popen[bytes]) -> None:
        """kill -9 of an agent and its ranks."""
        for pid in process_tree(machine.pid):
            os.kill(pid, signal.SIGKILL)
        machine.wait()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    make_data(tmp_path)
    (tmp_path / "run.toml").write_text("")
    found = Machines(tmp_path)
    yield found
    for process in found.started:
        if process.poll() is None:
            found.lose(process)


def test_a_run_that_loses_a_machine_and_gets_it_back(machines: Machines) -> None:
    run_ranks(2, train_rank, machines.arguments("unbroken"))
    first = machines.machine()
    second = machines.machine()
    machines.wait_for_step_of_session(1, 30)
    machines.lose(second)
    machines.wait_for_step_of_session(2, 30)  # more than the broken session had
    rank = read_sessions(machines.folder / "elastic" / "run")[1].start.pid
    os.kill(rank, signal.SIGSTOP)  # or it would be done before the other machine has started
    third = machines.machine()
    machines.wait_for_signal(rank)
    os.kill(rank, signal.SIGCONT)
    assert first.wait(SECONDS) == 0, machines.logs()
    assert third.wait(SECONDS) == 0, machines.logs()
    assert machines.sessions() == [2, 1, 2], machines.logs()
    records = [record for record in read_metrics(machines.folder / "elastic") if "tokens" in record]
    expected = [record for record in read_metrics(machines.folder / "unbroken") if "tokens" in record]
    assert [(record["step"], record["tokens"]) for record in records] == [
        (record["step"], record["tokens"]) for record in expected
    ]
    worst = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(records, expected, strict=True))
    assert worst < PARITY, worst
    one, two, three = read_sessions(machines.folder / "elastic" / "run")
    assert "tensor 2 × pipeline 1 × data 1" in one.start.layout
    assert "tensor 1 × pipeline 1 × data 1" in two.start.layout
    assert two.start.first_step == 20
    assert two.end is not None
    assert two.end.last_step > two.start.first_step
    assert two.end.reason.startswith("signal SIGTERM after step ")  # saved before it grew
    assert three.start.first_step == two.end.last_step
    assert three.end is not None
    assert three.end.reason == "complete"
    note = "note: parallel.elastic: on 1 ranks with parallel.tensor = 1 instead of 2, as parallel.tensor = 2"
    assert note in machines.logs()
