"""Whom the reports of ranks that hang make the culprit, and how a rank's place and phases are kept."""

import pytest

from megagpt.training import progress as progress_module
from megagpt.training.hang_report import HangReport, name_culprits, read_report
from megagpt.training.progress import Phase, Progress


def report(rank: int, mark: int, waits: bool = True, place: str = "step 7 (forward and backward)") -> HangReport:
    return HangReport(rank, f"gpu{rank // 2}", 1000.0, 1800.4, mark, place, waits)


def named(*reports: HangReport, num_ranks: int = 4) -> list[str]:
    return name_culprits({report.rank: report for report in reports}, num_ranks)


def test_a_rank_that_is_behind_is_named() -> None:
    reading = report(2, 40, waits=False, place="step 7 (reading data)")
    lines = named(report(0, 41), report(1, 41), reading, report(3, 41))
    assert lines == [
        "rank 2 on gpu1 is in step 7 (reading data): the others are further, in step 7 (forward and backward), and wait"
    ]


def test_of_several_behind_the_last_are_named() -> None:
    (line,) = named(report(0, 41), report(1, 40), report(2, 39), report(3, 39))
    assert line.startswith("ranks 2, 3 on gpu1 are in ")


def test_a_rank_that_reports_nothing_is_named() -> None:
    (line,) = named(report(0, 41), report(1, 41), report(3, 41))
    assert line.startswith("rank 2 reported nothing: stopped, gone, or on a machine that does not answer")
    lines = named(report(0, 41), report(1, 40))
    assert [line.split(" reported")[0] for line in lines[:1]] == ["ranks 2, 3"]
    assert lines[1].startswith("rank 1 on gpu0 is in step 7")


def test_in_the_same_phase_the_one_outside_a_collective_is_named() -> None:
    lines = named(report(0, 41), report(1, 41), report(2, 41), report(3, 41, waits=False))
    assert lines == ["rank 3 on gpu1 is in step 7 (forward and backward), in no collective: the others wait in one"]


@pytest.mark.parametrize("waits", [True, False])
def test_nobody_is_blamed_without_a_sign(waits: bool) -> None:
    lines = named(*(report(rank, 41, waits) for rank in range(4)))
    assert lines == ["all 4 ranks are in step 7 (forward and backward): compare their stacks"]


def test_the_newest_report_of_a_file_is_read() -> None:
    old, new = report(1, 3), report(1, 90)
    assert read_report(f"{old.describe()}\n{old.line()}\nstack\n{new.describe()}\n{new.line()}\nstack\n") == new
    assert read_report("stack\n") is None
    assert new.describe() == "rank 1 on gpu0 made no progress for 1,800 s in step 7 (forward and backward)"


def test_seconds_of_phases_are_those_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 10.0, 11.0, 16.0, 18.0, 19.0, 22.0])
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(times))
    progress = Progress()
    assert progress.newest.describe() == "meeting the other ranks"
    progress.mark(Phase.DATA, 1)
    progress.mark(Phase.TOKENS)  # 1 s of data
    progress.mark(Phase.PASSES)  # 5 s of waiting
    progress.mark(Phase.SIGNS)  # 2 s of passes
    assert progress.newest.describe() == "step 1 (telling all ranks of the step)"
    assert progress.seconds(Phase.DATA, Phase.PASSES) == 3.0
    progress.mark(Phase.DATA, 2)
    assert progress.seconds(Phase.DATA, Phase.PASSES) == 0.0
    progress.mark(Phase.PASSES)
    assert progress.seconds(Phase.DATA, Phase.PASSES) == 3.0
    assert progress.newest.number == 7
