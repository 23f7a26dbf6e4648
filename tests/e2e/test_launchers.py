"""torchrun, DeepSpeed's launcher on one and on two machines, and srun start the same run: losses equal to the last bit.

The scripts of launch/ are run as a user runs them, from a folder that looks like the repository; launch/env.sh is a few
lines there, for the tests' Python. `pdsh` and `ssh` are scripts that run a command here with hardly any environment, as
another machine would; SLURM is a real one, where it is installed.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.slurm_lab import SlurmLab, missing_for_slurm
from tests.parallel.runs import make_data, read_metrics, run_arguments

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPTS = ("torchrun.sh", "deepspeed.sh", "slurm.sbatch")
ENV = f"""
export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{REPOSITORY}" OMP_NUM_THREADS=1
"""
SSH = """#!/usr/bin/env bash
# ssh [-o OPTION] HOST COMMAND...
while [ "$1" = -o ]; do shift 2; done
shift
[ "$*" = "hostname -I" ] && echo 127.0.0.1
exit 0
"""
PDSH = """#!/usr/bin/env bash
# pdsh -S -f N -w HOST,HOST COMMAND...: %n is the number of the host
shift 3
[ "$1" = -w ]
IFS=, read -ra hosts <<< "$2"
shift 2
pids=()
for number in "${!hosts[@]}"; do
    env -i HOME="$HOME" PATH=/usr/bin:/bin sh -c "${*//%n/$number}" &
    pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit $?; done
"""
# in place of Python: what the script would have started
PRINTS = '#!/usr/bin/env bash\nprintf "%s\\n" "$@"\n'


class Checkout:
    """A folder with the launch scripts, data for a small run, and commands of its own in bin/."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "launch").mkdir()
        for name in SCRIPTS:
            shutil.copy(REPOSITORY / "launch" / name, folder / "launch")
        (folder / "launch" / "env.sh").write_text(ENV)
        (folder / "pretrain").symlink_to(REPOSITORY / "pretrain")
        (folder / "bin").mkdir()
        self.command("ssh", SSH)
        self.command("pdsh", PDSH)
        make_data(folder)
        (folder / "run.toml").write_text('[run]\nname = "launched"\n')

    def command(self, name: str, text: str) -> None:
        (self.folder / "bin" / name).write_text(text)
        (self.folder / "bin" / name).chmod(0o755)

    def arguments(self, name: str) -> list[str]:
        """A run of 3 steps in the folder NAME/run."""
        extra = ["--train.steps=3", "--evaluation.interval_steps=0", "--checkpoint.interval_steps=0"]
        return ["run.toml", *run_arguments(self.folder), *extra, f"--run.folder={self.folder}/{name}/run"]

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "MASTER_"))}
        environment |= {"PATH": f"{self.folder}/bin:{os.environ['PATH']}", "OMP_NUM_THREADS": "1", **variables}
        return subprocess.run(
            ["bash", str(self.folder / "launch" / script), *arguments],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def launched(self, script: str, name: str, **variables: str) -> list[dict[str, Any]]:
        """The records of a run that a script started."""
        ended = self.start(script, *self.arguments(name), **variables)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return read_metrics(self.folder / name)

    def hostfile(self, text: str) -> str:
        (self.folder / "hosts").write_text(text)
        return "hosts"


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    """Below /tmp and readable for all, as a SLURM node must read it."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Checkout(Path(folder))


@pytest.fixture(scope="module")
def by_torchrun(checkout: Checkout) -> list[dict[str, Any]]:
    records = checkout.launched("torchrun.sh", "torchrun", NPROC="2")
    assert [record["step"] for record in records] == [1, 2, 3, 3]
    return records


def free_port() -> str:
    """DeepSpeed takes a port as it is given."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_deepspeed_on_one_machine(checkout: Checkout, by_torchrun: list[dict[str, Any]]) -> None:
    records = checkout.launched("deepspeed.sh", "deepspeed", NPROC="2", MASTER_PORT=free_port())
    assert records == by_torchrun


def test_megagpt_launch_deepspeed(checkout: Checkout, by_torchrun: list[dict[str, Any]]) -> None:
    words = ["launch", "deepspeed", "--ranks", "2", "--master-port", free_port(), *checkout.arguments("launch")]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "megagpt", *words]
    ended = subprocess.run(
        command, cwd=checkout.folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert read_metrics(checkout.folder / "launch") == by_torchrun


def test_deepspeed_on_two_machines(checkout: Checkout, by_torchrun: list[dict[str, Any]]) -> None:
    """A machine has the cores of all here, so the number of threads is handed on, as docs/running.md says."""
    (checkout.folder / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\n")
    hosts = checkout.hostfile("# two machines\n\nworker-1 slots=1\nworker-2 slots=1\n")
    records = checkout.launched("deepspeed.sh", "pdsh", HOSTFILE=hosts, MASTER_PORT=free_port())
    assert records == by_torchrun


def test_slurm(checkout: Checkout, by_torchrun: list[dict[str, Any]]) -> None:
    missing = missing_for_slurm()
    if missing:
        pytest.skip(missing)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        lab = SlurmLab(Path(folder))
        try:
            nodes = ("--nodes=2", "--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=5")
            # the first job of every SLURM would take the same port, also where these tests run twice
            nodes += (f"--export=ALL,HEALTH=0,MASTER_PORT={free_port()}",)
            submitted = lab.run(
                *("sbatch", *nodes, "--output=job.log", "launch/slurm.sbatch", *checkout.arguments("slurm")),
                cwd=checkout.folder,
            )
            job = re.fullmatch(r"Submitted batch job (\d+)\n", submitted)
            assert job is not None, submitted
            lab.wait_for_job(job[1])
        finally:
            lab.stop()
    log = (checkout.folder / "job.log").read_text()
    assert "3 steps of 256 tokens on 2 ranks" in log, log
    assert read_metrics(checkout.folder / "slurm") == by_torchrun, log


def started(checkout: Checkout, script: str, **variables: str) -> list[str]:
    """The arguments with which a script would start Python."""
    for name in ("python", "torchrun"):
        checkout.command(name, PRINTS)
    (checkout.folder / "launch" / "env.sh").write_text('printf "%s" "$RANKS_PER_MACHINE" > ranks-per-machine\n')
    try:
        ended = checkout.start(script, "run.toml", "--train.lr", "1e-4", **variables)
    finally:
        (checkout.folder / "launch" / "env.sh").write_text(ENV)
        for name in ("python", "torchrun"):
            (checkout.folder / "bin" / name).unlink()
    assert ended.returncode == 0, ended.stderr
    words = ended.stdout.splitlines()
    assert words[-4:] == [f"{checkout.folder}/pretrain/pretrain_gpt.py", "run.toml", "--train.lr", "1e-4"]
    return words[:-4]


def test_a_hostfile_of_this_machine_alone_needs_no_ssh(checkout: Checkout) -> None:
    words = started(checkout, "deepspeed.sh", HOSTFILE=checkout.hostfile("localhost slots=4\n"))
    assert words[2:] == [
        "--hostfile",
        "hosts",
        "--no_ssh_check",
        "--master_addr",
        "127.0.0.1",
        "--master_port",
        "29500",
    ]
    assert (checkout.folder / "ranks-per-machine").read_text() == "4"


def test_a_hostfile_of_one_other_machine_is_not_taken_for_this_one(checkout: Checkout) -> None:
    hosts = checkout.hostfile("worker-1 slots=2\n")
    words = started(checkout, "deepspeed.sh", HOSTFILE=hosts, MASTER_ADDR="10.0.0.1", MASTER_PORT="4000")
    expected = ["--hostfile", "hosts", "--force_multi", "--master_addr", "10.0.0.1", "--master_port", "4000"]
    assert words[2:] == expected


def test_torchrun_on_several_machines(checkout: Checkout) -> None:
    words = started(checkout, "torchrun.sh", NNODES="2", NODE_RANK="1", MASTER_ADDR="10.0.0.1", NPROC="8")
    where = ["--nnodes", "2", "--node-rank", "1", "--master-addr", "10.0.0.1", "--master-port", "29500"]
    assert words == [*where, "--nproc-per-node", "8"]
    ended = checkout.start("torchrun.sh", "run.toml", NNODES="2")
    assert "set NODE_RANK to this machine's number, from 0" in ended.stderr


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        (None, "HOSTFILE=hosts is not a file; it has a line for each machine, such as: worker-1 slots=8"),
        ("# none\n", "HOSTFILE=hosts names no machine"),
        ("worker-1\n", "HOSTFILE=hosts names no machine"),
        ("worker-1 slots=1\nworker-2 slots=1\n", "DeepSpeed starts other machines with pdsh, which is not installed"),
    ],
)
def test_a_hostfile_that_cannot_work_is_refused(checkout: Checkout, hosts: str | None, message: str) -> None:
    (checkout.folder / "hosts").unlink(missing_ok=True)
    if hosts is not None:
        checkout.hostfile(hosts)
    with tempfile.TemporaryDirectory() as folder:  # the commands that the script itself needs, and no pdsh
        for command in ("bash", "dirname", "sed", "sort", "tail", "wc"):
            (Path(folder) / command).symlink_to(shutil.which(command) or command)
        ended = checkout.start("deepspeed.sh", "run.toml", HOSTFILE="hosts", PATH=folder)
    assert ended.returncode == 2
    assert message in ended.stderr


@pytest.mark.parametrize(
    ("script", "usage"),
    [
        ("torchrun.sh", "bash launch/torchrun.sh CONFIG"),
        ("deepspeed.sh", "bash launch/deepspeed.sh CONFIG"),
        ("slurm.sbatch", "sbatch --nodes 4 launch/slurm.sbatch CONFIG"),
    ],
)
def test_without_arguments_the_usage_is_shown(checkout: Checkout, script: str, usage: str) -> None:
    ended = checkout.start(script)
    assert ended.returncode == 2
    assert usage in ended.stderr


def test_a_job_submitted_from_elsewhere_is_refused(checkout: Checkout) -> None:
    ended = checkout.start("slurm.sbatch", "run.toml", SLURM_SUBMIT_DIR="/")
    assert ended.returncode == 2
    assert "/ is not the repository; submit this script from there" in ended.stderr
