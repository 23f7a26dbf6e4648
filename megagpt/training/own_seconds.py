"""How long a rank's own work of a step took: waiting for its data, and its passes (slow_ranks.py compares them).

In: the session's marks, and on CUDA two events around the passes. Out: seconds. The host never waits for the device:
on CUDA the seconds are those of the step before, whose events have passed since.
"""

import torch

from megagpt.training.progress import Phase, Progress


class OwnSeconds:
    """Of one rank. A step calls `begin_passes`, `end_passes` and then `newest`, once each."""

    def __init__(self, progress: Progress, device: torch.device) -> None:
        self._progress, self._is_cuda = progress, device.type == "cuda"
        self._begin: torch.cuda.Event | None = None
        self._newest: tuple[float, torch.cuda.Event, torch.cuda.Event] | None = None  # seconds of data, and the events
        self._before: tuple[float, torch.cuda.Event, torch.cuda.Event] | None = None

    def begin_passes(self) -> None:
        """What follows on the device is the passes."""
        if self._is_cuda:
            self._begin = _event()

    def end_passes(self) -> None:
        """What follows on the device is no longer the passes."""
        if self._is_cuda:
            assert self._begin is not None, "passes ended that had not begun"
            data_seconds = self._progress.seconds(Phase.DATA)
            self._before, self._newest = self._newest, (data_seconds, self._begin, _event())

    def newest(self) -> float:
        """Seconds of this step; on CUDA of the one before, 0 in the first. Passes must be over in the session's marks.

        The events of the step before have passed: the host has read its signs, which came after them.
        """
        if not self._is_cuda:
            return self._progress.seconds(Phase.DATA, Phase.PASSES)
        if self._before is None:
            return 0.0
        data_seconds, begin, end = self._before
        return data_seconds + begin.elapsed_time(end) / 1e3


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
