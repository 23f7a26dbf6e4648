"""Cutting time into parts: they add up, the foremost counts, and calls inside calls are taken out of their callers."""

import random
from itertools import pairwise

import pytest

from megagpt.training.profile_groups import Group
from megagpt.training.profile_timeline import Nested, Phases, Span, Stretch, cut, own_times


def test_each_moment_belongs_to_one_part() -> None:
    phases = Phases([Stretch(0, 10, "passes"), Stretch(10, 20, "update")])
    spans = [
        Span(1, 4, Group.GEMM),
        Span(3, 6, Group.COMMUNICATION),  # from 3 to 4 behind the product
        Span(5, 7, Group.POINTWISE),  # and from 5 to 6 behind this
        Span(9, 12, Group.COPY, "passes"),  # launched there, and runs on into the update
        Span(15, 30, Group.OPTIMIZER),  # the window ends at 18
    ]
    parts = cut(spans, [Stretch(0, 18, "step 1")], phases)
    assert parts.times == {
        ("passes", Group.HOST): 1 + 2,
        ("passes", Group.GEMM): 3,
        ("passes", Group.COMMUNICATION): 1,
        ("passes", Group.POINTWISE): 2,
        ("passes", Group.COPY): 3,
        ("update", Group.HOST): 3,
        ("update", Group.OPTIMIZER): 3,
    }
    assert parts.hidden_communication == 2


def test_only_windows_count_and_what_lies_in_no_phase_has_no_name() -> None:
    windows = [Stretch(0, 2, "step 1"), Stretch(5, 6, "step 2")]
    parts = cut([Span(1, 8, Group.GEMM)], windows, Phases([]))
    assert parts.times == {("", Group.HOST): 1, ("", Group.GEMM): 2}


@pytest.mark.parametrize("seed", range(5))
def test_parts_add_up(seed: int) -> None:
    drawn = random.Random(seed)
    groups = list(Group)
    spans = [
        Span(start, start + drawn.random() * 5, drawn.choice(groups))
        for start in (drawn.random() * 100 for _ in range(300))
    ]
    phases = Phases([Stretch(start, start + 7, f"phase {start}") for start in range(0, 100, 9)])
    windows = [Stretch(3, 40, "step 1"), Stretch(50, 90, "step 2")]
    parts = cut(spans, windows, phases)
    print(f"seed {seed}")
    assert sum(parts.times.values()) == pytest.approx(77, abs=1e-9)


def test_own_times() -> None:
    calls = [Nested(0, 10, 0), Nested(2, 5, 1), Nested(3, 4, 2), Nested(6, 8, 3), Nested(12, 13, 4)]
    own = list(own_times(calls))
    assert own == [(0, 2, 0), (2, 3, 1), (3, 4, 2), (4, 5, 1), (5, 6, 0), (6, 8, 3), (8, 10, 0), (12, 13, 4)]


def test_calls_that_do_not_count_leave_their_time_to_the_one_around_them() -> None:
    calls = [Nested(0, 20, 0), Nested(1, 10, 1), Nested(2, 8, 2), Nested(3, 7, 3), Nested(12, 14, 4)]
    own = list(own_times(calls, lambda number: number in (1, 3)))
    assert own == [
        (0, 1, 0),
        (1, 2, 1),
        (2, 3, 1),
        (3, 7, 3),
        (7, 8, 1),
        (8, 10, 1),
        (10, 12, 0),
        (12, 14, 0),
        (14, 20, 0),
    ]


def test_a_call_that_seems_to_outlive_its_caller() -> None:
    """The clock's rounding may say so by a nanosecond."""
    own = list(own_times([Nested(0, 10, 0), Nested(9, 10.001, 1), Nested(10.0005, 12, 2)]))
    assert sum(one.end - one.start for one in own) <= 12
    assert all(before.end <= after.start for before, after in pairwise(own))
