"""What a job's script asks between starts, and what the agents of nodes leave for it."""

import subprocess
from pathlib import Path

import pytest

from megagpt.cli import status_of
from megagpt.launch.agent import NodeReport, RankEnd, read_reports, write_report
from megagpt.launch.job import job_folder, main, read_starts
from megagpt.training.run_record import COMPLETE, SessionEnd, SessionStart, write_session_end, write_session_start


class Job:
    """A job's script."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.capsys = folder, capsys
        (folder / "run.toml").write_text(f'[run]\nfolder = "{folder}/三国 run"\n')
        self.run = folder / "三国 run"

    def ask(self, command: str, *options: str) -> tuple[int, str, str]:
        config = [str(self.folder / "run.toml"), "--trace", "--train.lr=1e-4"]
        status = status_of(lambda: main([command, *options, *config]))
        said = self.capsys.readouterr()
        return status, said.out.strip(), said.err

    def saved(self, name: str) -> None:
        (self.run / "checkpoints").mkdir(parents=True, exist_ok=True)
        (self.run / "checkpoints" / "latest").write_text(f"{name}\n")


@pytest.fixture
def job(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return Job(tmp_path, capsys)


def test_every_start_has_a_folder_of_its_own(job: Job) -> None:
    logs = [job.ask("begin", "--new-job")[1], job.ask("begin")[1]]
    assert logs == [str(job.run / "logs" / "slurm-7" / f"start-{number}") for number in (1, 2)]
    assert all(Path(folder).is_dir() for folder in logs)
    # another job with the same number, after SLURM was set up anew
    assert job.ask("begin", "--new-job")[1].endswith("start-3")
    assert len(read_starts(job_folder(job.run))) == 1


def test_a_start_whose_line_was_cut_short_is_passed_over(job: Job) -> None:
    """As where its node was lost while it was written."""
    assert job.ask("begin", "--new-job")[0] == 0
    with next(job_folder(job.run).glob("*.jsonl")).open("a") as stream:
        stream.write('{"logs": "sta')
    assert job.ask("begin")[0] == 0
    assert [start.logs for start in read_starts(job_folder(job.run))] == ["start-1", "start-2"]


def test_starts_that_save_nothing_come_to_an_end(job: Job) -> None:
    assert [job.ask("begin", "--most-restarts", "2")[0] for _ in range(3)] == [0, 0, 0]
    status, _, error = job.ask("begin", "--most-restarts", "2")
    assert status == 2
    assert "the last 3 starts found no checkpoint and saved no newer one; look at their logs in" in error
    job.saved("step-00000020")
    assert [job.ask("begin", "--most-restarts", "2")[0] for _ in range(3)] == [0, 0, 0]
    assert "the last 3 starts found step-00000020" in job.ask("begin", "--most-restarts", "2")[2]


def test_what_comes_next_is_told_with_its_reason(job: Job) -> None:
    logs = Path(job.ask("begin", "--new-job")[1])
    assert job.ask("after", "--status", "0")[1] == "done"
    write_report(logs, NodeReport("node2", (RankEnd(1, -9), RankEnd(3, 75))))
    status, action, reason = job.ask("after", "--status", "143")
    assert (status, action) == (0, "restart")
    assert "rank 1 on node2 ended with signal 9\nrank 3 on node2 ended with status 75\n" in reason
    assert job.ask("after", "--status", "1", "--asked-to", "requeue")[1] == "requeue"
    write_report(logs, NodeReport("node1", (RankEnd(0, 2),)))
    assert job.ask("after", "--status", "143")[1] == "fail"
    assert [report.node for report in read_reports(logs)] == ["node1", "node2"]


def test_a_run_that_is_complete_is_not_requeued(job: Job) -> None:
    job.ask("begin", "--new-job")
    start = SessionStart(1, "2026-01-01T00:00:00+00:00", "node1", 1, 2, "", 0, 6, None, "7", "0.1", None)
    write_session_start(job.run, start)
    assert job.ask("after", "--asked-to", "requeue")[1] == "requeue"
    write_session_end(job.run, SessionEnd(1, "2026-01-01T00:01:00+00:00", 6, COMPLETE, 0))
    assert job.ask("after", "--asked-to", "requeue")[1] == "done"


def test_env_sh_names_the_network_interface_for_both_backends(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[3] / "launch" / "env.sh").read_text()
    exports = text.split('. "$MEGAGPT_VENV/bin/activate"\n')[1]
    shown = 'echo "${NCCL_SOCKET_IFNAME:-none} ${GLOO_SOCKET_IFNAME:-none}"'
    for before, expected in (("NET_INTERFACE=ib0", "ib0 ib0"), ("unset NET_INTERFACE", "none none")):
        command = ["env", "-u", "GLOO_SOCKET_IFNAME", "-u", "NCCL_SOCKET_IFNAME", "bash", "-euc"]
        ended = subprocess.run([*command, f"{before}\n{exports}\n{shown}"], capture_output=True, text=True, check=True)
        assert ended.stdout.strip() == expected
