"""What follows from how the ranks of a job ended."""

import pytest

from megagpt.launch.restarts import decide, starts_without_progress, status_of_ranks


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([], 0),
        ([0, 0], 0),
        ([75, 75], 75),
        ([-9, 75], 75),
        ([-9], 75),
        ([1, 75], 1),
        ([75, 3], 3),
        ([-15, 2, 3], 2),
    ],
)
def test_one_status_says_most(statuses: list[int], status: int) -> None:
    assert status_of_ranks(statuses) == status


@pytest.mark.parametrize(
    ("statuses", "launcher", "asked", "complete", "action", "reason"),
    [
        ([], 0, False, True, "done", "training is complete"),
        ([], 0, False, False, "done", "training ended"),
        ([], 0, True, True, "done", "training is complete"),
        ([], 0, True, False, "requeue", "all ranks saved and ended; the job goes back to the queue"),
        ([-10], 1, True, False, "requeue", "not every rank ended well"),
        ([75, -9], 143, False, False, "restart", "ranks ended with signal 9, status 75; starting all ranks again"),
        ([], 137, False, False, "restart", "the launcher ended with status 137; starting all ranks again"),
        ([1], 1, False, False, "restart", "ranks ended with status 1; starting all ranks again"),
        ([-15, 2], 143, False, False, "fail", "status 2: a restart would meet the same error, which is told above"),
        ([3, 3], 3, True, False, "fail", "status 3: a restart alone would not help; the reason is above"),
    ],
)
def test_decisions(statuses: list[int], launcher: int, asked: bool, complete: bool, action: str, reason: str) -> None:
    decision = decide(statuses, launcher, asked, complete)
    assert decision.action == action
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("checkpoints", "starts"), [([""], 1), (["", ""], 2), (["", "a"], 1), (["a", "a", "b", "b", "b"], 3), ([], 0)]
)
def test_starts_that_found_the_same_checkpoint(checkpoints: list[str], starts: int) -> None:
    assert starts_without_progress(checkpoints) == starts
