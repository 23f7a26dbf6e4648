"""Names ranks that are slower than others which do the same work: a throttled GPU, a busy machine, a slow disk.

In: every rank's own seconds of each step, as the step's signs carry them. Out: lines for the log, the slowest rank of a
step. Pure numbers: knows no groups and no clocks.

Own seconds (own_seconds.py) are those of waiting for data and of the passes. Ranks of one tensor or context group wait
for each other inside the passes, so all of a group look slow where one is: they are named together. A pipeline's stages
hold different layers (and the last one the head), so ranks are compared with those of their own stage alone. Where
gradients are reduced inside the passes (ZeRO 2 and 3), all data ranks wait for the slowest, and none stands out.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megagpt.plan_layout import Layout
from megagpt.training.signs import RankSigns

WINDOW_STEPS = 20
_LEAST_SECONDS = 0.01  # a difference that is smaller is noise, whatever the ratio


class Slowest(NamedTuple):
    """The slowest rank of a step."""

    rank: int
    ratio: float  # its own seconds over the median of the other data ranks of its stage


class SlowRanks:
    """Watches the steps of a session. Every rank has one, and all come to the same results."""

    def __init__(self, layout: Layout, hosts: Sequence[str], ratio: float, say: Callable[[str], None]) -> None:
        """`hosts` of all ranks; a rank is slow at `ratio` times the seconds of the others (0: none ever is)."""
        # megatron-core's order of ranks: tensor fastest, then context, data and pipeline
        self._shape = (layout.pipeline, layout.data, layout.context * layout.tensor)
        self._hosts, self._ratio, self._say = hosts, ratio, say
        self._window: list[NDArray[np.float64]] = []
        self._slow: dict[tuple[int, int], float] = {}
        self.slowest: Slowest | None = None  # of the last step; None where no rank has another to be compared with

    def observe(self, signs: Sequence[RankSigns]) -> None:
        """Take a step's signs; after every WINDOW_STEPS steps says which ranks are slow since, and which no longer."""
        if self._shape[1] == 1 or not any(sign.seconds for sign in signs):  # on CUDA, the first step has none
            return
        seconds = np.array([sign.seconds for sign in signs]).reshape(self._shape)
        ratios = _ratios(seconds.max(axis=2))
        stage, data_rank = divmod(int(ratios.argmax()), self._shape[1])
        member = int(seconds[stage, data_rank].argmax())
        self.slowest = Slowest(self._first_rank((stage, data_rank)) + member, float(ratios[stage, data_rank]))
        self._window.append(seconds)
        if len(self._window) == WINDOW_STEPS:
            self._judge(np.median(np.stack(self._window), axis=0).max(axis=2))
            self._window.clear()

    def _judge(self, seconds: NDArray[np.float64]) -> None:
        """Compare the data ranks of each stage by their medians over the window, [stage, data rank]."""
        ratios = _ratios(seconds)
        slow: dict[tuple[int, int], float] = {}
        for unit in np.ndindex(seconds.shape):
            ratio = float(ratios[unit])
            if self._ratio and ratio > self._ratio and seconds[unit] * (1 - 1 / ratio) > _LEAST_SECONDS:
                slow[unit] = ratio
        for unit in slow.keys() - self._slow.keys():
            self._say(f"slow: {self._describe(unit)} {slow[unit]:.1f} times as long as {self._peers(unit)}")
        for unit in self._slow.keys() - slow.keys():
            self._say(f"no longer slow: {self._describe(unit)} about as long as {self._peers(unit)}")
        self._slow = slow

    def _describe(self, unit: tuple[int, int]) -> str:
        """`rank 3 on gpu1 takes`, or its whole group, of which one makes the others wait."""
        first, size = self._first_rank(unit), self._shape[2]
        hosts = ", ".join(dict.fromkeys(self._hosts[first : first + size]))
        if size == 1:
            return f"rank {first} on {hosts} takes"
        return f"ranks {first} to {first + size - 1} on {hosts}, one of which makes the others wait, take"

    def _peers(self, unit: tuple[int, int]) -> str:
        stage = f" of pipeline rank {unit[0]}" if self._shape[0] > 1 else ""
        return f"the other data ranks{stage} (median of {WINDOW_STEPS} steps)"

    def _first_rank(self, unit: tuple[int, int]) -> int:
        return (unit[0] * self._shape[1] + unit[1]) * self._shape[2]


def _ratios(seconds: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each data rank's seconds over the median of the *other* data ranks of its stage; both [stage, data rank].

    Of two ranks the median of both would lie between them and hide the slow one.
    """
    num_data = seconds.shape[1]
    ascending, place = np.sort(seconds, axis=1), seconds.argsort(axis=1).argsort(axis=1)

    def without_itself(number: int) -> NDArray[np.float64]:
        """The `number`-th smallest of the others, for each."""
        return np.take_along_axis(ascending, number + (number >= place), axis=1)

    medians = (without_itself((num_data - 2) // 2) + without_itself((num_data - 1) // 2)) / 2
    return seconds / np.maximum(medians, 1e-9)
