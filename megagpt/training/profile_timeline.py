"""Cuts a stretch of time into what was going on at each moment, so that the parts add up to the whole.

In: spans with a group, which may overlap, and phases that follow one another. Out: microseconds by (phase, group).
Pure functions of numbers. Where several spans are running, the foremost group counts: computing hides communication.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from megagpt.training.profile_groups import Group

# of spans that run at the same time the first of these counts
_FOREMOST = (
    *(Group.GEMM, Group.ATTENTION, Group.OPTIMIZER, Group.POINTWISE, Group.OTHER, Group.COPY, Group.DATA),
    *(Group.COMMUNICATION, Group.HOST),
)
_ORDER = {group: place for place, group in enumerate(_FOREMOST)}


class Span(NamedTuple):
    """Something that ran, in microseconds. `phase` None: of the phase that it runs in."""

    start: float
    end: float
    group: Group
    phase: str | None = None


class Stretch(NamedTuple):
    """A stretch of time with a name, such as a step or a phase of one."""

    start: float
    end: float
    name: str


class Parts(NamedTuple):
    """Microseconds by (phase, group); and of communication that ran while something was computed."""

    times: dict[tuple[str, Group], float]
    hidden_communication: float


class Phases:
    """Which phase a moment falls into. Phases do not overlap."""

    def __init__(self, stretches: Iterable[Stretch]) -> None:
        self._stretches = sorted(stretches)
        self._starts = [stretch.start for stretch in self._stretches]

    def at(self, moment: float) -> str:
        """The name of the phase; "" between phases."""
        place = bisect_right(self._starts, moment) - 1
        return self._stretches[place].name if place >= 0 and moment < self._stretches[place].end else ""

    def borders(self) -> Iterator[float]:
        """All moments at which the phase may change."""
        for stretch in self._stretches:
            yield stretch.start
            yield stretch.end


def cut(spans: Iterable[Span], windows: Sequence[Stretch], phases: Phases) -> Parts:
    """What each moment of the windows belongs to; moments without a span are Group.HOST. Windows do not overlap."""
    points: list[tuple[float, int, tuple[int, str] | None]] = [(moment, 0, None) for moment in phases.borders()]
    for window in windows:
        points += [(window.start, 0, None), (window.end, 0, None)]
    for span in spans:
        if span.end > span.start:
            key = (_ORDER[span.group], span.phase or "")
            points += [(span.start, 1, key), (span.end, -1, key)]
    points.sort(key=lambda point: point[0])
    inside = Phases(windows)
    active: Counter[tuple[int, str]] = Counter()
    times: dict[tuple[str, Group], float] = {}
    hidden, before = 0.0, points[0][0] if points else 0.0
    for moment, change, at in points:
        middle = (before + moment) / 2
        if moment > before and inside.at(middle):
            order, phase = min(active) if active else (_ORDER[Group.HOST], "")
            place = (phase or phases.at(middle), _FOREMOST[order])
            times[place] = times.get(place, 0.0) + moment - before
            if order < _ORDER[Group.COMMUNICATION] <= max(active, default=(0, ""))[0]:
                hidden += moment - before
        before = moment
        if at is not None:
            active[at] += change
            if not active[at]:
                del active[at]
    return Parts(times, hidden)


class Nested(NamedTuple):
    """A call on a thread: others may run inside it. `number` is the caller's own."""

    start: float
    end: float
    number: int


def own_times(calls: Iterable[Nested], is_counted: Callable[[int], bool] = lambda number: True) -> Iterator[Nested]:
    """The stretches in which each call of one thread runs itself, not one that it calls; in order of time.

    A call that is not counted leaves its time to the innermost one around it that is, and keeps it where there is none.
    """
    open_calls: list[Nested] = []
    now = 0.0
    for call in sorted(calls, key=lambda call: (call.start, -call.end)):
        while open_calls and open_calls[-1].end <= call.start:
            ended = open_calls.pop()
            if ended.end > now:
                yield Nested(now, ended.end, ended.number)
                now = ended.end
        if open_calls:
            if call.start > now:
                yield Nested(now, call.start, open_calls[-1].number)
            call = call._replace(end=min(call.end, open_calls[-1].end))  # clocks are rounded: never outlive the caller
            if not is_counted(call.number):  # its caller's number, which is a counted one if any around it is
                call = call._replace(number=open_calls[-1].number)
        now = max(now, call.start)
        open_calls.append(call)
    while open_calls:
        ended = open_calls.pop()
        if ended.end > now:
            yield Nested(now, ended.end, ended.number)
            now = ended.end
