"""A job's script: what was asked for is in it, as SLURM and bash read it."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest

from megagpt.cli import main
from megagpt.errors import ConfigError
from megagpt.launch.slurm import SCRIPT, JobOptions, JobPlace, check_time_limit, render
from tests.parallel.runs import run_arguments

REPOSITORY = Path(__file__).resolve().parents[3]
PLACE = JobPlace(Path("/home/刘备/my repo"), Path("/home/刘备/it's"))
OPTIONS = JobOptions("三国 run", 2, 8, 8, Path("/runs/三国 run/logs/slurm-%j.log"))


def rendered(**changes: object) -> str:
    script = (REPOSITORY / SCRIPT).read_text()
    return render(script, OPTIONS._replace(**changes), PLACE, ["runs/my run.toml", "--run.folder=it's"])


def directives(text: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in text.splitlines() if line.startswith("#SBATCH")]


def test_what_was_asked_for_takes_the_place_of_the_scripts_own_values() -> None:
    lines = directives(rendered(time="1:00:00", partition="gpu", account="mine", cpus_per_task=4))
    assert "--job-name='三国 run'" in lines
    assert "--output='/runs/三国 run/logs/slurm-%j.log'" in lines
    expected = ["--nodes=2", "--gpus-per-node=8", "--cpus-per-task=4", "--time=1:00:00", "--partition=gpu"]
    assert all(line in lines for line in [*expected, "--account=mine", "--requeue", "--signal=B:USR1@300"])
    names = [line.partition("=")[0] for line in lines]
    assert len(names) == len(set(names))
    assert "--time=24:00:00" in directives(rendered())


def test_any_option_of_sbatch_can_be_asked_for() -> None:
    lines = directives(rendered(extra=("--qos=high", "--exclusive", "--time=2:00:00")))
    assert lines[-2:] == ["--qos=high", "--exclusive"]
    assert "--time=2:00:00" in lines
    with pytest.raises(ConfigError, match="--sbatch 'qos=high' is no option of sbatch; write it as --sbatch=--qos"):
        rendered(extra=("qos=high",))


def test_a_name_that_sbatch_could_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be written into a job's script; choose one without '"):
        rendered(name="it's")


@pytest.mark.parametrize("limit", ["11", "10:01", "24:00:00", "0:10:01", "1-0", "1-00:00:00"])
def test_a_time_limit_with_time_to_train(limit: str) -> None:
    check_time_limit(limit)


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ("10", "--time 10 is too short: the job saves and stops 300 s before its end; use more than 10 minutes"),
        ("9:59", "too short"),
        ("0:10:00", "too short"),
        ("0-0:10", "too short"),
        ("1h", "--time 1h is no time limit; write minutes, HH:MM:SS or D-HH:MM:SS, such as 24:00:00"),
    ],
)
def test_a_time_limit_without(limit: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_time_limit(limit)


def test_the_script_warns_as_long_before_its_end_as_it_says() -> None:
    assert "--signal=B:USR1@300" in directives(rendered())


def test_bash_reads_paths_and_arguments_back() -> None:
    lines = rendered().splitlines()
    start = lines.index("# what `megagpt launch slurm` was asked for")
    settings = lines[start : start + 5]
    settings[3] = f"FOLDER={settings[3].removeprefix('cd ')}"
    shown = 'printf "%s\\n" "$MEGAGPT_ROOT" "$RANKS_PER_NODE" "$FOLDER" "$@"'
    ended = subprocess.run(["bash", "-c", "\n".join([*settings, shown])], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == [
        *(str(PLACE.repository), "8", str(PLACE.folder), "runs/my run.toml", "--run.folder=it's")
    ]


def submit(data: Path, *arguments: str) -> int:
    extra = ["--cluster.num_gpus=4", "--run.name=三国 run"]
    return main(["launch", "slurm", str(data / "run.toml"), *arguments, *run_arguments(data), *extra])


def test_a_job_is_submitted_and_followed(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "sbatch").write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\necho "17;cluster"\n')
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert submit(data, "--gpus-per-node", "0", "--ranks-per-node", "2", "--sbatch=--qos=high --exclusive") == 0
    printed = capsys.readouterr().out
    logs = data / "run" / "logs"
    assert "submitted job 17: 2 nodes with 2 ranks each (tensor 1 × pipeline 1 × data 4)" in printed
    assert f"follow         tail -F {shlex.quote(str(logs / 'slurm-17.log'))}" in printed
    assert (tmp_path / "asked").read_text().splitlines() == ["--parsable", str(logs / "slurm.sbatch")]
    script = (logs / "slurm.sbatch").read_text()
    assert directives(script)[-2:] == ["--qos=high", "--exclusive"]
    assert "--gpus-per-node=0" in directives(script)
    assert submit(data, "--gpus-per-node", "0", "--ranks-per-node", "2", "--dry-run") == 0
    assert "--nodes=2" in directives(capsys.readouterr().out)
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: gpu' >&2\nexit 1\n")
    assert submit(data, "--gpus-per-node", "0", "--ranks-per-node", "4") == 2
    assert "slurm.sbatch: sbatch: error: invalid partition specified: gpu" in capsys.readouterr().err


def test_a_run_that_cannot_work_is_not_submitted(
    data: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert submit(data, "--nodes", "3", "--ranks-per-node", "1") == 2
    assert "8 sequences a step, does not divide over 3 data ranks" in capsys.readouterr().err
    assert submit(data, "--gpus-per-node", "-1") == 2
    assert "--gpus-per-node -1 is not 0 or more" in capsys.readouterr().err
    assert submit(data, "--time", "5") == 2
    assert "--time 5 is too short" in capsys.readouterr().err
    monkeypatch.setenv("PATH", "/nowhere")
    assert submit(data, "--nodes", "2", "--ranks-per-node", "1") == 2
    assert "there is no sbatch here; submit" in capsys.readouterr().err
