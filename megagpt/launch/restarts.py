"""What to do when the ranks of a job have ended: nothing, start them again, put the job back in the queue, or give up.

In: exit statuses, whether the job was asked to stop, what checkpoint each start found. Out: a decision in words. Pure.
"""

import signal
from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

from megagpt.training.exit_status import COMPLETE, RESTART, STOPPED, USER_ERROR

NO_RESTART = {
    USER_ERROR: "a restart would meet the same error, which is told above",
    STOPPED: "a restart alone would not help; the reason is above",
}


class Decision(NamedTuple):
    """`action` is for the job's script, `reason` for the person who reads its log."""

    action: Literal["done", "restart", "requeue", "fail"]
    reason: str


def no_restart_signal(status: int) -> int:
    """The signal by which a rank tells its agent that it ends with such a status of NO_RESTART."""
    return signal.SIGRTMIN + status


def status_of_ranks(statuses: Iterable[int]) -> int:
    """One exit status for those of many ranks, a signal being negative: the one that says most about a restart."""
    found = set(statuses)
    for status in (USER_ERROR, STOPPED):
        if status in found:
            return status
    if found <= {COMPLETE}:
        return COMPLETE
    return RESTART if all(status < 0 or status in (COMPLETE, RESTART) for status in found) else 1


def decide(statuses: Sequence[int], launcher_status: int, asked_to_stop: bool, complete: bool) -> Decision:
    """What follows once the launcher has ended.

    statuses: what the ranks that failed ended with, as far as their nodes could tell. launcher_status: 0 where every
    node ended well. asked_to_stop: the job's time runs out. complete: the run has no step left.
    """
    status = status_of_ranks(statuses)
    if status in NO_RESTART:
        return Decision("fail", f"a rank ended with status {status}: {NO_RESTART[status]}")
    if launcher_status == 0 and (complete or not asked_to_stop):
        return Decision("done", "training is complete" if complete else "training ended")
    if asked_to_stop:
        how = "all ranks saved and ended" if launcher_status == 0 else "not every rank ended well"
        return Decision("requeue", f"stopped on request, {how}; the job goes back to the queue")
    if not statuses:
        return Decision("restart", f"the launcher ended with status {launcher_status}; starting all ranks again")
    return Decision("restart", f"ranks ended with {_in_words(statuses)}; starting all ranks again")


def starts_without_progress(checkpoints: Sequence[str]) -> int:
    """How many of the last starts found the same newest checkpoint as the last one; each start notes what it finds."""
    count = 0
    while count < len(checkpoints) and checkpoints[-1 - count] == checkpoints[-1]:
        count += 1
    return count


def _in_words(statuses: Sequence[int]) -> str:
    kinds = sorted(set(statuses))
    return ", ".join(f"signal {-kind}" if kind < 0 else f"status {kind}" for kind in kinds)
