"""Where this rank is in its session, and how long it took there. Every part of a session marks when it begins.

In: marks. Out: the newest one, seconds of the phases of a step. Knows neither ranks nor files; a mark costs a
microsecond.
"""

import time
from collections.abc import Callable
from enum import Enum
from typing import NamedTuple


class Phase(Enum):
    """The parts of a session, as a person reads them."""

    MEET = "meeting the other ranks"
    VERIFY = "verifying the data's hashes"
    BUILD = "building the model"
    LOAD = "loading the checkpoint"
    CHECK = "comparing copies of weights"
    DATA = "reading data"
    TOKENS = "counting the batch's tokens"
    PASSES = "forward and backward"
    SIGNS = "telling all ranks of the step"
    UPDATE = "reducing gradients and updating"
    EVALUATE = "evaluating"
    SAVE = "saving a checkpoint"
    PROFILE = "writing the profile"
    LEAVE = "leaving the other ranks"


class Mark(NamedTuple):
    """The place of a rank. Ranks of a run make the same marks in the same order."""

    number: int  # from 1, of this session
    phase: Phase
    step: int | None  # that is done, from 1; None before the first
    since: float  # seconds of time.monotonic

    def describe(self) -> str:
        """`step 12 (forward and backward)`."""
        return self.phase.value if self.step is None else f"step {self.step} ({self.phase.value})"


class Progress:
    """The marks of one session. The main thread makes them; any thread reads `newest`."""

    def __init__(self) -> None:
        self.newest = Mark(1, Phase.MEET, None, time.monotonic())
        self._seconds: dict[Phase, float] = {}
        self.observer: Callable[[Phase, int | None], None] | None = None  # told of each mark once it is made

    def mark(self, phase: Phase, step: int | None = None) -> None:
        """A phase begins and the one before it ends. `step` counts from 1; None: still the same one."""
        before, now = self.newest, time.monotonic()
        if step is not None and step != before.step:
            self._seconds.clear()
        else:
            self._seconds[before.phase] = self._seconds.get(before.phase, 0.0) + now - before.since
        self.newest = Mark(before.number + 1, phase, before.step if step is None else step, now)
        if self.observer is not None:
            self.observer(phase, step)

    def seconds(self, *phases: Phase) -> float:
        """Seconds that this step has spent in phases that are over."""
        return sum(self._seconds.get(phase, 0.0) for phase in phases)
