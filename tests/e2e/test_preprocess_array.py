"""launch/preprocess.slurm, run by hand as SLURM runs it: tasks, one of them killed, the merge, and what it refuses.

`sbatch` and `squeue` are scripts that write down what they are asked; docs/slurm-corpora.md says what a real SLURM did.
"""

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.tokenizer.toy import toy_texts, train_toy

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_TASKS = 3
ENV = f"""
export PATH="{Path(sys.executable).parent}:$PATH" PYTHONPATH="{REPOSITORY}:${{PYTHONPATH:-}}"
"""
SBATCH = """#!/usr/bin/env bash
printf '%s\\n' "$@" > sbatch.arguments
env > sbatch.environment
[ ! -e refuse ] || { echo "sbatch: error: submission from this host is not allowed" >&2; exit 1; }
echo "Submitted batch job 78"
"""
SQUEUE = """#!/usr/bin/env bash
case "$*" in
    *--name*) [ ! -e waiting ] || echo 78 ;;
    *) echo 1-00:00:00 ;;
esac
"""


class Cluster:
    """A folder that looks like the repository to the script, with a corpus in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "launch").mkdir()
        shutil.copy(REPOSITORY / "launch" / "preprocess.slurm", folder / "launch")
        (folder / "launch" / "env.sh").write_text(ENV)
        (folder / "bin").mkdir()
        for name, content in (("sbatch", SBATCH), ("squeue", SQUEUE)):
            (folder / "bin" / name).write_text(content)
            (folder / "bin" / name).chmod(0o755)
        rows = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in toy_texts(3000)]
        for number in range(3):
            (folder / f"{number} part.jsonl").write_text("".join(rows[number::4]), encoding="utf-8")
        (folder / "rest.jsonl.gz").write_bytes(gzip.compress("".join(rows[3::4]).encode()))
        train_toy(folder / "tokenizer.model")
        self.inputs = [f"{number} part.jsonl" for number in range(3)] + ["rest.jsonl.gz"]

    def environment(self, **variables: str) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        mine = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return {**mine, "PATH": path, "OMP_NUM_THREADS": "1", "SLURM_SUBMIT_DIR": str(self.folder), **variables}

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(REPOSITORY / "launch" / "preprocess.slurm"), *arguments],
            cwd="/",
            env=self.environment(**variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def task(self, task: int, *options: str, num_tasks: int = NUM_TASKS, **variables: str) -> subprocess.Popen[str]:
        array = {
            "SLURM_ARRAY_JOB_ID": "77",
            "SLURM_JOB_ID": str(77 + task),
            "SLURM_JOB_PARTITION": "main",
            "SLURM_ARRAY_TASK_ID": str(task),
            "SLURM_ARRAY_TASK_COUNT": str(num_tasks),
            "SLURM_ARRAY_TASK_MIN": "0",
            "SLURM_ARRAY_TASK_MAX": str(num_tasks - 1),
            "SLURM_CPUS_PER_TASK": "1",
        }
        return self.start(*self.inputs, *self.build_options(), *options, **{**array, **variables})

    def build_options(self) -> list[str]:
        return ["--output", "out/data", "--tokenizer", "tokenizer.model"]

    def run(self, process: subprocess.Popen[str]) -> str:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output
        return output

    def refused(self, process: subprocess.Popen[str]) -> str:
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 2, output
        return output


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


def build_whole(cluster: Cluster) -> None:
    command = [sys.executable, "-m", "megagpt", "data", "build", *cluster.inputs, "--tokenizer", "tokenizer.model"]
    environment = cluster.environment(PYTHONPATH=str(REPOSITORY))
    subprocess.run([*command, "--output", "whole"], cwd=cluster.folder, env=environment, check=True)


def kill_when_it_builds(process: subprocess.Popen[str], folder: Path) -> None:
    """kill -9, once the journal of its part is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if list(folder.glob("out/*.journal")):
            break
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def test_tasks_one_of_them_killed_and_a_merge_are_the_single_build(cluster: Cluster) -> None:
    build_whole(cluster)
    first = cluster.run(cluster.task(0))
    assert "task 0 of 3 on" in first
    assert "Submitted batch job 78" in first
    kill_when_it_builds(cluster.task(1), cluster.folder)
    assert not (cluster.folder / "out/data.task-00001-of-00003.idx").exists()
    assert "start number 2" in cluster.run(cluster.task(1, SLURM_RESTART_COUNT="1"))
    cluster.run(cluster.task(2))
    assert "was built before, from the same input" in cluster.run(cluster.task(2))

    arguments = (cluster.folder / "sbatch.arguments").read_text().splitlines()
    merge = arguments.index("launch/preprocess.slurm")
    options = arguments[:merge]
    expected = ["--dependency", "afterok:77", "--partition", "main", "--time", "1-00:00:00", "--cpus-per-task", "1"]
    assert all(word in options for word in expected), options
    assert "SLURM_" not in (cluster.folder / "sbatch.environment").read_text()
    printed = cluster.run(cluster.start(*arguments[merge + 1 :]))
    assert "joined         3 datasets" in printed
    for kind in ("bin", "idx"):
        assert (cluster.folder / f"out/data.{kind}").read_bytes() == (cluster.folder / f"whole.{kind}").read_bytes()
    assert sorted(path.name for path in (cluster.folder / "out").iterdir()) == ["data.bin", "data.idx", "data.json"]


def test_the_merge_is_not_given_how_tasks_build(cluster: Cluster) -> None:
    cluster.run(cluster.task(0, "--no-native", "--on-error", "skip", "--restart", num_tasks=1))
    arguments = (cluster.folder / "sbatch.arguments").read_text().splitlines()
    merge = arguments[arguments.index("launch/preprocess.slurm") + 1 :]
    assert merge == ["--merge", "1", *cluster.inputs, *cluster.build_options(), "--on-error", "skip"]
    assert "there is nothing to merge" in cluster.run(cluster.start(*merge))


def test_the_merge_is_submitted_once_and_by_the_first_task(cluster: Cluster) -> None:
    cluster.run(cluster.task(1))
    assert not (cluster.folder / "sbatch.arguments").exists()
    (cluster.folder / "waiting").touch()
    cluster.run(cluster.task(0))
    assert not (cluster.folder / "sbatch.arguments").exists()


def test_the_merge_gets_account_and_quality_of_service_of_the_task(cluster: Cluster) -> None:
    cluster.run(cluster.task(0, SLURM_JOB_ACCOUNT="mine", SLURM_JOB_QOS="high"))
    arguments = (cluster.folder / "sbatch.arguments").read_text().splitlines()
    assert arguments[arguments.index("--account") + 1] == "mine"
    assert arguments[arguments.index("--qos") + 1] == "high"


def test_where_a_job_may_not_submit_another_the_log_says_what_to_do(cluster: Cluster) -> None:
    (cluster.folder / "refuse").touch()
    output = cluster.refused(cluster.task(0))
    assert "submission from this host is not allowed" in output
    assert "sbatch --export=ALL,MERGE=no" in output
    by_hand = "sbatch launch/preprocess.slurm --merge 3 0\\ part.jsonl 1\\ part.jsonl"
    assert by_hand in output
    assert by_hand in cluster.run(cluster.task(0, MERGE="no"))


def test_a_bad_line_fails_its_task_with_file_and_line(cluster: Cluster) -> None:
    path = cluster.folder / "1 part.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines[:10], '{"text": 7}\n', *lines[10:]]), encoding="utf-8")
    outputs = [cluster.task(task, MERGE="no") for task in range(NUM_TASKS)]
    results = [process.communicate(timeout=120)[0] for process in outputs]
    failed = [task for task, process in enumerate(outputs) if process.returncode]
    assert len(failed) == 1
    assert "error: 1 part.jsonl:11: 'text' is int, not text" in results[failed[0]]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"SLURM_ARRAY_TASK_ID": ""}, "this is no array job; say how many tasks: sbatch --array=0-15"),
        ({"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "3"}, "--array must be 0-2 for 3 tasks"),
        ({"SLURM_ARRAY_TASK_MAX": "4"}, "NUM_TASKS=16 sbatch --array=3,7"),
        ({"SLURM_SUBMIT_DIR": "/"}, "/ is not the repository; submit this script from there"),
    ],
)
def test_a_job_that_cannot_work_is_refused_at_once(cluster: Cluster, variables: dict, message: str) -> None:
    assert message in cluster.refused(cluster.task(0, **variables))


def test_some_tasks_of_more_can_be_run_alone(cluster: Cluster) -> None:
    some = {"SLURM_ARRAY_TASK_MIN": "3", "SLURM_ARRAY_TASK_MAX": "7", "NUM_TASKS": "16"}
    output = cluster.run(cluster.task(7, num_tasks=2, **some))
    assert "task 7 of 16 on" in output
    assert (cluster.folder / "out/data.task-00007-of-00016.idx").exists()


def test_without_arguments_the_usage_is_shown(cluster: Cluster) -> None:
    assert "sbatch --array=0-15 launch/preprocess.slurm INPUT..." in cluster.refused(cluster.start())
