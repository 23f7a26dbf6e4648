"""A session of a run: what its folder remembers of how it began, ran and ended, and who may train there."""

import fcntl
import io
import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from megagpt.errors import ConfigError, DataError, TrainingError
from megagpt.training import run_lock
from megagpt.training.run_environment import Commit, RankPlace, describe_environment, repository_commit
from megagpt.training.run_files import CarefulWriter
from megagpt.training.run_lock import RunLock, is_locked
from megagpt.training.run_log import RunLog
from megagpt.training.run_record import read_sessions
from megagpt.training.run_session import RunSession, ending_of
from megagpt.training.run_state import read_state
from tests.parallel.runs import make_data, prepare_small, run_arguments


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    make_data(folder)
    return folder


def test_how_a_session_ended() -> None:
    assert ending_of(None) == ("complete", 0)
    assert ending_of(KeyboardInterrupt()) == ("interrupted", 130)
    assert ending_of(TrainingError("not finite")) == ("error: not finite", 3)
    assert ending_of(DataError("a shard is damaged")) == ("error: a shard is damaged", 2)
    assert ending_of(ValueError("odd")) == ("error: ValueError: odd", 1)


def run_sessions(folder: Path, data: Path, ends: list[BaseException | None]) -> str:
    """A session for each end, two steps each; all that was printed."""
    printed = io.StringIO()
    for end in ends:
        prepared = prepare_small(run_arguments(data, f"--run.folder={folder}"))
        console = Console(file=printed, width=300)
        with suppress(BaseException), RunSession(folder, console, 0) as session:
            session.start(prepared)
            assert session.state is not None
            console.print("a line")
            session.state.step_done(2, 4.5)
            session.write_environment([RankPlace("node1", "CPU")] * 2, None)
            if end is not None:
                raise end
    return printed.getvalue()


def test_sessions_are_recorded_with_their_reasons(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    printed = run_sessions(folder, data, [TrainingError("not\nfinite"), KeyboardInterrupt(), ValueError("odd"), None])
    sessions = read_sessions(folder)
    assert [session.start.session for session in sessions] == [1, 2, 3, 4]
    assert [(session.end.reason, session.end.status, session.end.last_step) for session in sessions if session.end] == [
        ("error: not finite", 3, 2),
        ("interrupted", 130, 2),
        ("error: ValueError: odd", 1, 2),
        ("complete", 0, 2),
    ]
    start = sessions[0].start
    assert (start.ranks, start.layout, start.first_step, start.steps, start.continued_from) == (
        *(1, "tensor 1 × pipeline 1 × data 1, ZeRO 1", 0, 6, None),
    )
    assert start.pid == os.getpid()
    log = (folder / "train.log").read_text(encoding="utf-8")
    assert log.count("a line\n") == 4
    assert log.count("=== ") == 8, "a date where each session begins and ends"
    assert "error: not\nfinite\n" in log
    assert "raise end\nValueError: odd\n" in log, "our own mistakes with their traceback"
    assert "killed" not in printed
    state = read_state(folder)
    assert state is not None
    assert (state.state, state.session, state.step, state.steps) == ("complete", 4, 2, 6)
    assert (folder / "config.toml").is_file()
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["hosts"] == {"node1": {"ranks": [0, 1], "devices": ["CPU"]}}
    assert is_locked(folder) is False


def test_a_session_without_an_end_was_killed(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    run_sessions(folder, data, [None])
    lines = (folder / "sessions.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "sessions.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    printed = run_sessions(folder, data, [None])
    assert printed.startswith("the session before this one (number 1, on ")
    assert printed.splitlines()[0].endswith(" UTC) was killed after step 2")
    assert [session.start.previous for session in read_sessions(folder)] == [None, "killed after step 2"]


def test_metrics_know_of_later_steps_than_the_state(data: Path, tmp_path: Path) -> None:
    """state.json is some seconds old when a session is killed."""
    folder = tmp_path / "run"
    run_sessions(folder, data, [None])
    lines = (folder / "sessions.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "sessions.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
    (folder / "metrics.jsonl").write_text('{"step": 4, "loss": 1.0}\n{"step": 5, "lo', encoding="utf-8")
    assert "was killed after step 4\n" in run_sessions(folder, data, [None])


def test_other_ranks_write_nothing(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    prepared = prepare_small(run_arguments(data, f"--run.folder={folder}"))
    with RunSession(folder, Console(quiet=True), 1) as session:
        session.take_lock()
        session.start(prepared)
        session.write_environment([], None)
        session.end("error: x", 3)
    assert not folder.exists()


def test_a_full_disk_does_not_end_a_session(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file of the record fails; each is told once, in a run of two steps."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("train.log", "sessions.jsonl", "state.json", "environment.json", "config.toml"):
        (folder / name).mkdir()
    printed = run_sessions(folder, data, [None])
    told = sorted(line.split()[0].rpartition("/")[2] for line in printed.splitlines() if "could not be written" in line)
    assert told == ["config.toml", "environment.json", "sessions.jsonl", "state.json", "train.log"]
    assert printed.count("; training goes on; free space on the disk of run.folder") == 5


HOLDER = """if True:
    import sys, time
    from pathlib import Path
    from megagpt.training.run_lock import RunLock
    lock = RunLock(Path(sys.argv[1]), print)
    lock.take()
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_start_is_refused_until_the_first_is_dead(data: Path, tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert is_locked(tmp_path) is True
        host = os.uname().nodename
        message = (
            rf"run\.folder {tmp_path} is being trained by another process: pid {holder.pid} on {host}, since "
            rf"20.* UTC\. Two at once .* stop it \(on {host}: kill {holder.pid}\), or choose another run\.folder"
        )
        with pytest.raises(ConfigError, match=message), RunSession(tmp_path, Console(quiet=True), 0) as session:
            session.take_lock()
    finally:
        holder.kill()
        holder.wait()
    assert is_locked(tmp_path) is False, "kill -9 frees it at once"
    with RunSession(tmp_path, Console(quiet=True), 0) as session:
        session.take_lock()
        assert is_locked(tmp_path) is True
    assert is_locked(tmp_path) is False


def test_a_file_system_without_locks_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    said: list[str] = []
    lock = RunLock(tmp_path, said.append)
    lock.take()
    lock.take()
    assert len(said) == 1, "once"
    assert "has no locks (No locks available): nothing keeps a second start from writing there too" in said[0]
    assert is_locked(tmp_path) is None
    lock.release()


def test_a_look_at_the_lock_does_not_refuse_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`megagpt runs` holds it for a moment."""
    (tmp_path / "lock").touch()
    looker = (tmp_path / "lock").open("rb")
    fcntl.flock(looker, fcntl.LOCK_SH)
    waits: list[float] = []
    monkeypatch.setattr(run_lock.time, "sleep", lambda seconds: (waits.append(seconds), looker.close()))
    lock = RunLock(tmp_path, pytest.fail)
    lock.take()
    assert len(waits) == 1
    lock.release()


def test_the_log_has_no_progress_bars(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    console.push_render_hook(RunLog(tmp_path, CarefulWriter(pytest.fail)))
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("training", total=3)
        for step in range(3):
            console.print(
                f"[bold]step {step}[/bold] with a line that is longer than the terminal is wide: 1234", end="\n"
            )
            progress.update(task, completed=step + 1)
            progress.refresh()
    console.print("[not markup]", markup=False, style="red")
    line = "with a line that is longer than the terminal is wide: 1234"
    log = (tmp_path / "train.log").read_text(encoding="utf-8")
    assert [text for text in log.splitlines() if text] == [
        *(f"step {step} {line}" for step in range(3)),
        "[not markup]",
    ]


def test_the_environment_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("SLURM_JOB_ID", "99")
    found = describe_environment([RankPlace("a", "H100"), RankPlace("b", "H100")], "12.8", None)
    assert "secret" not in json.dumps(found)
    assert found["variables"]["SLURM_JOB_ID"] == "99"
    assert found["hosts"] == {"a": {"ranks": [0], "devices": ["H100"]}, "b": {"ranks": [1], "devices": ["H100"]}}
    assert {"torch", "deepspeed", "megatron-core", "numpy", "sentencepiece"} <= found["packages"].keys()


def test_the_commit_of_the_repository(tmp_path: Path) -> None:
    package = tmp_path / "megagpt"
    package.mkdir()
    assert repository_commit(package) is None, "installed"

    def run(*words: str) -> str:
        return subprocess.run(["git", "-C", str(tmp_path), *words], check=True, capture_output=True, text=True).stdout

    run("init", "-q")
    assert repository_commit(package) is None, "no commit yet"
    (package / "a.py").write_text("1")
    run("add", ".")
    run("-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "one")
    name = run("rev-parse", "HEAD").strip()
    assert repository_commit(package) == Commit(name, dirty=False)
    (package / "a.py").write_text("2")
    assert repository_commit(package) == Commit(name, dirty=True)
    assert Commit(name, True).describe() == f"{name}-dirty"
