"""What a node says of itself before training, and what the nodes' reports say of each other."""

import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from megagpt.cli import main
from megagpt.config_file import load_config
from megagpt.launch import health_node
from megagpt.launch.health_cli import describe
from megagpt.launch.health_node import NodeReport, Wanted, checked_within
from megagpt.launch.health_nodes import Meeting, compare_clocks, compare_versions, gather_reports
from megagpt.plan import make_plan
from tests.parallel.runs import run_arguments


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets what a launcher did not."""
    monkeypatch.setenv("CUDA_DEVICE_MAX_CONNECTIONS", "1")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")


def health(data: Path, *arguments: str) -> int:
    return main(["health", str(data / "run.toml"), *run_arguments(data), *arguments])


def wanted(data: Path, gpus: int = 0) -> Wanted:
    loaded = load_config(None, run_arguments(data))
    return Wanted(loaded, make_plan(loaded, 1, 400), gpus)


def report(node: str, version: str = "megagpt 1", config: str = "a") -> NodeReport:
    return NodeReport(node, [], [], version, config)


def test_a_machine_that_is_fit(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(data.rglob("*"))
    assert health(data) == 0
    line = capsys.readouterr().out
    assert f"{socket.gethostname()}  ok: no GPU, {len(os.sched_getaffinity(0))} cores, run.folder " in line
    assert "MB/s, megagpt " in line
    assert sorted(data.rglob("*")) == before


def test_a_machine_without_the_gpus_it_must_have(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert health(data, "--gpus", "99", "--ranks-per-node", "1") == 1
    said = capsys.readouterr()
    assert f"{socket.gethostname()}  NOT FIT: torch sees " in said.out
    assert "99 are wanted" in said.out
    assert f"not fit to train on: {socket.gethostname()}" in said.err


def test_a_folder_that_cannot_be_written(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert health(data, f"--run.folder={data}/run.toml/run") == 1
    assert "NOT FIT: run.folder = " in (said := capsys.readouterr().out)
    assert "cannot be written: Not a directory" in said


def test_a_disk_that_gives_back_other_bytes(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_node, "_probe", lambda path: None)
    (problem,) = checked_within("here", 30, wanted(data)).problems
    assert problem.endswith("gives back other bytes than were written")


def test_what_a_configuration_gets_wrong_is_an_error_of_the_user(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert health(data, "--ranks-per-node", "3") == 2
    assert "does not divide over 3 data ranks" in capsys.readouterr().err
    assert health(data, "--timeout", "0") == 2
    assert "--timeout 0 is not a number of seconds over 0" in capsys.readouterr().err
    assert health(data, "--time", "1") == 2
    assert "unknown argument --time (command line); did you mean --timeout" in capsys.readouterr().err


def test_a_check_that_hangs_is_named(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hang = threading.Event()
    monkeypatch.setattr(health_node, "_check_gpus", lambda *_: hang.wait())
    found = checked_within("node7", 0.2, wanted(data))
    hang.set()
    assert found.problems == ["its check of GPUs has not ended after 0 s"]


def test_a_check_that_crashes_has_not_passed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise subprocess.TimeoutExpired("nvidia-smi", 30)

    monkeypatch.setattr(health_node, "_check_gpus", crash)
    found = checked_within("node1", 20, wanted(data))
    assert found.problems == ["TimeoutExpired: Command 'nvidia-smi' timed out after 30 seconds"]
    assert found.facts, "the folders are checked all the same"


def test_memory_errors_that_nvidia_smi_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf '0, 0\\n1, 12\\n2, [N/A]\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert health_node._ecc_problems() == ["GPU 1: 12 uncorrected memory errors (ECC)"]


def test_a_node_with_another_version_or_configuration_is_named() -> None:
    nodes = [report("n1"), report("n2", version="megagpt 0"), report("n3", config="b"), NodeReport("n4", ["gone"], [])]
    compare_versions(nodes)
    assert nodes[0].problems == []
    assert nodes[1].problems == ["runs megagpt 0, most nodes megagpt 1"]
    assert nodes[2].problems == ["configuration b, elsewhere a"]
    assert nodes[3].problems == ["gone"]


def test_a_clock_that_is_off_is_named() -> None:
    nodes = [report("n1"), report("n2"), report("n3")]
    compare_clocks(list(zip(nodes, [100.0, 100.25, 97.5], strict=True)))
    assert nodes[1].facts == ["clock +0.250 s"]
    assert not nodes[1].problems
    assert nodes[2].problems == ["its clock is -2.5 s from the other nodes'; set it (chrony, ntpd)"]


def test_a_node_that_does_not_answer_is_named_in_time() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    found = gather_reports(report("n1"), Meeting("127.0.0.1", port, 0, ("n1", "n2"), 1.0))
    assert [each.problems for each in found] == [[], ["no answer within 1 s"]]
    assert describe(found[1]) == "n2  NOT FIT: no answer within 1 s"
