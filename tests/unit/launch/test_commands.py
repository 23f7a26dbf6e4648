"""The command lines of torchrun and DeepSpeed's launcher, and DeepSpeed's hostfile."""

import shlex
from pathlib import Path

import pytest

from megagpt.cli import main
from megagpt.errors import ConfigError
from megagpt.launch import hosts as hosts_module
from megagpt.launch.commands import (
    Address,
    Nodes,
    TorchrunOptions,
    deepspeed_command,
    parse_nodes,
    torchrun_command,
)
from megagpt.launch.hosts import Hosts, read_hostfile
from tests.parallel.runs import run_arguments

RUN = ["run.toml", "--train.lr=1e-4"]
LOGS = Path("三国 runs/logs")


def torchrun(nodes: Nodes, rendezvous: str | None = None) -> list[str]:
    words = torchrun_command(TorchrunOptions(4, nodes, rendezvous, 7, LOGS), RUN)
    assert words[1:3] == ["-m", "megagpt.launch.agent"]
    ranks = ["--nproc-per-node", "4", "--max-restarts", "7"]
    logs = ["--log-dir", str(LOGS), "--redirects", "3", "--tee", "0:3"]
    rest = [*ranks, *logs, "--module", "megagpt.launch.rank", *RUN]
    assert words[-len(rest) :] == rest
    return words[3 : -len(rest)]


def test_torchrun_on_one_machine_looks_up_no_name() -> None:
    assert torchrun(Nodes(1, 1)) == ["--standalone", "--local-addr", "127.0.0.1"]


def test_torchrun_on_several_machines_meets_on_one_of_them() -> None:
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", "node1:29500", "--rdzv-id", "megagpt"]
    assert torchrun(Nodes(2, 2), "node1") == ["--nnodes", "2", *meeting]
    meeting[3] = "node1:4000"
    elastic = ["--rdzv-conf", "last_call_timeout=10"]
    assert torchrun(Nodes(1, 3), "node1:4000") == ["--nnodes", "1:3", *meeting, *elastic]


def test_several_machines_need_a_meeting_point() -> None:
    with pytest.raises(ConfigError, match="--nnodes 1:2 needs a place where the machines meet: --rendezvous HOST:PORT"):
        torchrun(Nodes(1, 2))


@pytest.mark.parametrize(("text", "nodes"), [("3", Nodes(3, 3)), ("1:4", Nodes(1, 4))])
def test_numbers_of_machines(text: str, nodes: Nodes) -> None:
    assert parse_nodes(text) == nodes


@pytest.mark.parametrize("text", ["0", "2:1", "two", "1:2:3", ""])
def test_what_is_no_number_of_machines(text: str) -> None:
    with pytest.raises(ConfigError, match="is no number of machines; use one such as 2, or MIN:MAX such as 1:2"):
        parse_nodes(text)


@pytest.mark.parametrize(
    ("hosts", "where"),
    [
        (None, ["--num_accelerators", "4"]),
        (Hosts(("localhost",), 4, 4), ["--hostfile", "hosts", "--no_ssh_check", "--master_addr", "127.0.0.1"]),
        (Hosts(("w1", "w2"), 4, 2), ["--hostfile", "hosts", "--force_multi", "--master_addr", "10.0.0.1"]),
    ],
)
def test_deepspeed(hosts: Hosts | None, where: list[str]) -> None:
    words = deepspeed_command(4, False, hosts, Path("hosts"), Address("10.0.0.1", 4000), RUN)
    rest = ["--master_port", "4000", "--module", "megagpt.launch.rank", *RUN]
    assert words[1:] == ["-m", "deepspeed.launcher.runner", *where, *rest]
    assert "--num_gpus" in deepspeed_command(4, True, None, None, Address(None, 4000), RUN)


def test_a_hostfile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "hosts").write_text("# two\n\nw1 slots=8\n w2  slots=4 # small\n")
    monkeypatch.setattr(hosts_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert read_hostfile(tmp_path / "hosts") == Hosts(("w1", "w2"), 12, 8)
    monkeypatch.setattr(hosts_module.shutil, "which", lambda _: None)
    with pytest.raises(ConfigError, match="DeepSpeed starts other machines with pdsh, which is not installed here"):
        read_hostfile(tmp_path / "hosts")
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    assert read_hostfile(tmp_path / "hosts").only_this_machine


@pytest.mark.parametrize(("text", "message"), [(None, "is not a file"), ("w1\n", "names no machine")])
def test_a_hostfile_that_cannot_work(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "hosts").write_text(text)
    with pytest.raises(ConfigError, match=f"{message}; it has a line for each machine, such as: worker-1 slots=8"):
        read_hostfile(tmp_path / "hosts")


def launch(data: Path, *arguments: str) -> int:
    return main(["launch", *arguments, str(data / "run.toml"), "--dry-run", *run_arguments(data)])


def test_a_dry_run_prints_a_line_that_a_shell_reads_back(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(data, "torchrun", "--ranks", "2") == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[words.index("--nproc-per-node") + 1] == "2"
    assert words[words.index("megagpt.launch.rank") + 1 :] == [str(data / "run.toml"), *run_arguments(data)]
    assert launch(data, "torchrun", "--trace", "--allow-data-change", "--resume", "auto") == 0
    words = shlex.split(capsys.readouterr().out)
    kept = ["--trace", "--allow-data-change", "--resume", "auto"]
    assert words[words.index("megagpt.launch.rank") + 1 :] == [str(data / "run.toml"), *kept, *run_arguments(data)]
    profiled = ["--profile=2-3", "--profile-ranks=all", "--resume", "auto"]
    assert launch(data, "torchrun", "--profile", "2-3", "--profile-ranks", "all", "--resume", "auto") == 0
    words = shlex.split(capsys.readouterr().out)
    assert words[words.index("megagpt.launch.rank") + 1 :] == [str(data / "run.toml"), *profiled, *run_arguments(data)]
    assert launch(data, "torchrun", "--profile", "7") == 2
    assert "--profile 7: this run trains steps 1 to 6; name some of them" in capsys.readouterr().err
    assert launch(data, "torchrun", "--resume", "newest") == 2
    assert 'checkpoint.resume = "newest" (command line)' in capsys.readouterr().err
    assert launch(data, "deepspeed", "--ranks", "2") == 0
    assert "--num_accelerators 2 --master_port 29500" in capsys.readouterr().out


def test_a_run_that_cannot_work_is_not_started(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert launch(data, "torchrun", "--ranks", "3") == 2
    assert "8 sequences a step, does not divide over 3 data ranks" in capsys.readouterr().err
    assert launch(data, "torchrun", "--ranks", "1", "--nnodes", "1:2", "--rendezvous", "node1") == 2
    assert "1 to 2 ranks need a layout for each number; use --parallel.elastic true" in capsys.readouterr().err
    assert launch(data, "torchrun", "--ranks", "0") == 2
    assert "--ranks 0 is not 1 or more" in capsys.readouterr().err
    assert launch(data, "torchrun", "--rank", "2") == 2
    assert "unknown argument --rank (command line); did you mean --ranks" in capsys.readouterr().err


def test_a_launcher_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "mpirun"]) == 2
    assert "megagpt launch has no command 'mpirun'; use one of slurm, torchrun, deepspeed" in capsys.readouterr().err
    assert main(["launch"]) == 2
    assert main(["launch", "--help"]) == 0
    assert "submit it as a job" in capsys.readouterr().out
