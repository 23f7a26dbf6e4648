"""The watchdog in a process of its own: where Python's lock is kept, and where the run folder does not answer."""

import os
import subprocess
import sys
import time
from pathlib import Path

from megagpt.training.progress import Progress
from megagpt.training.watchdog import Watchdog, WatchedRank, collective_timeout, grace_seconds, stacks_file

WATCHED = """
import ctypes, sys, time
from pathlib import Path
from megagpt.training.progress import Phase, Progress
from megagpt.training.watchdog import WatchedRank, Watchdog
progress = Progress()
with Watchdog(progress, 0.5, Path(sys.argv[1]), WatchedRank(0, 0, 1, "here"), lambda reason: print(reason, flush=True)):
    for step in range(1, 5):
        progress.mark(Phase.DATA, step)
        time.sleep(0.3)
    {}
"""


def watched(folder: Path, code: str) -> tuple[int, str, str, float]:
    started = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", WATCHED.format(code), str(folder)], capture_output=True, text=True, timeout=60
    )
    return ended.returncode, ended.stdout, ended.stderr, time.monotonic() - started


def test_a_session_that_makes_progress_is_left_alone(tmp_path: Path) -> None:
    status, said, errors, _ = watched(tmp_path, "pass")
    assert (status, said, errors) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_a_hang_ends_with_stacks_and_status_75(tmp_path: Path) -> None:
    status, said, errors, _ = watched(tmp_path, "time.sleep(60)")
    assert status == 75
    assert said == "hang in step 4 (reading data): no progress for 1 s\n"
    assert "rank 0: rank 0 on here made no progress for 1 s in step 4 (reading data)" in errors
    assert 'File "<string>", line 11 in <module>' in stacks_file(tmp_path / "logs", 0).read_text()


def test_a_hang_ends_with_status_75_where_nobody_reads_what_it_says(tmp_path: Path) -> None:
    status, *_ = watched(tmp_path, "import os; os.close(2); time.sleep(60)")
    assert status == 75


def test_a_report_that_is_being_written_is_passed_over(tmp_path: Path) -> None:
    logs = tmp_path / "logs"
    logs.mkdir()
    stacks_file(logs, 1).write_text('report: {"rank": 1, "ho')
    watchdog = Watchdog(Progress(), 1.0, tmp_path, WatchedRank(0, 0, 2, "here"), print)
    own = watchdog._report()
    assert watchdog._read_reports(own) == {0: own}


def test_a_disk_that_does_not_answer_cannot_hold_it_up(tmp_path: Path) -> None:
    """A pipe without a reader in place of the file: to open it takes forever."""
    (tmp_path / "logs").mkdir()
    os.mkfifo(stacks_file(tmp_path / "logs", 0))
    status, _, errors, seconds = watched(tmp_path, "time.sleep(60)")
    assert status == 75
    assert f"rank 0: {tmp_path}/logs does not answer" in errors
    assert "line 11 in <module>" in errors
    assert seconds < 20


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    status, _, errors, _ = watched(tmp_path, "time.sleep(60)")
    assert status == 75
    assert "logs could not be written: File exists" in errors


def test_a_thread_that_keeps_pythons_lock_is_ended_by_c(tmp_path: Path) -> None:
    status, _, errors, _ = watched(tmp_path, "ctypes.PyDLL(None).sleep(60)")
    assert status == 1
    assert "Timeout (0:00:06.500000)!" in errors
    assert "line 11 in <module>" in errors


def test_collectives_may_take_longer_than_the_watchdog_waits() -> None:
    assert [grace_seconds(timeout) for timeout in (2, 40, 1800)] == [2, 10, 60]
    assert collective_timeout(1800) > 1800 + 3 * 60
    assert collective_timeout(0) * 1000 < 2**31
    assert collective_timeout(0) > collective_timeout(1_000_000)  # the most that faults.hang_timeout_seconds takes
