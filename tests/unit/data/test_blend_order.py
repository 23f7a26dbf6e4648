"""Turns of a blend: below one sample of error at every prefix for every corpus, whatever the weights; random access."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megagpt.data import blend_order
from megagpt.data.blend_order import BlendOrder, whole_weights
from megagpt.data.index_core import index_core, is_native
from megagpt.errors import DataError

WEIGHTS = st.one_of(
    st.lists(st.integers(1, 1000).map(float), min_size=1, max_size=40),
    st.lists(st.floats(0.001, 1000).map(lambda weight: float(f"{weight:.4g}")), min_size=1, max_size=12),
    st.tuples(st.integers(1, 60), st.integers(1, 500)).map(lambda few: [float(few[1]), *[1.0] * few[0]]),
    st.integers(1, 40).map(lambda count: [2.0**n for n in range(count)]),
)


def errors(weights: list[float], corpora: np.ndarray) -> np.ndarray:
    """[n + 1, corpora] total * (count - share * n) at every prefix, exactly; its size must be below total."""
    whole = np.array(whole_weights(weights), dtype=object)
    given_out = np.cumsum(corpora[:, None] == np.arange(len(weights)), axis=0).astype(object)
    prefix = np.arange(1, len(corpora) + 1).astype(object)
    return given_out * int(whole.sum()) - prefix[:, None] * whole


@settings(max_examples=300, deadline=None)
@given(WEIGHTS, st.integers(1, 700))
@example([0.7, 0.2, 0.1], 100)
@example([1.0] * 50 + [50.0], 200)  # where the largest remainder first, or Webster's method, goes wrong
@example([0.11] * 5 + [0.01] * 45, 200)
def test_the_error_is_below_one_sample_at_every_prefix(weights: list[float], size: int) -> None:
    corpora, numbers = BlendOrder(weights).turns(np.arange(size))
    worst = np.abs(errors(weights, corpora)).max()
    assert worst < sum(whole_weights(weights))
    for corpus in range(len(weights)):
        own = numbers[corpora == corpus]
        assert own.tolist() == list(range(len(own))), "each corpus's samples follow one another"


@settings(max_examples=150, deadline=None)
@given(WEIGHTS, st.data())
def test_native_and_numpy_agree_at_any_place(weights: list[float], data: st.DataObject) -> None:
    if not is_native(index_core()):
        pytest.skip("megagpt.native._samples is not built")
    fast, plain = BlendOrder(weights), BlendOrder(weights, native=False)
    samples = np.array(data.draw(st.lists(st.integers(0, 5000), min_size=1, max_size=10)))
    for left, right in zip(fast.turns(samples), plain.turns(samples), strict=True):
        assert left.tolist() == right.tolist()


@settings(max_examples=60, deadline=None)
@given(WEIGHTS, st.lists(st.integers(0, 20_000), min_size=1, max_size=30))
def test_any_sample_is_the_one_that_is_met_on_the_way(weights: list[float], samples: list[int]) -> None:
    corpora, numbers = BlendOrder(weights).turns(np.arange(max(samples) + 1))
    order = BlendOrder(weights)
    found = order.turns(np.array(samples))
    assert found.corpora.tolist() == corpora[samples].tolist()
    assert found.numbers.tolist() == numbers[samples].tolist()
    for sample in samples[:3]:
        assert order.counts(sample).tolist() == np.bincount(corpora[:sample], minlength=len(weights)).tolist()


PATTERN = [0, 1, 0, 2, 0, 1, 0, 1, 0, 2]


def test_after_a_period_the_order_begins_again() -> None:
    order = BlendOrder([0.5, 0.3, 0.2])
    assert order.period == 10
    corpora, numbers = order.turns(np.arange(30))
    assert corpora[:10].tolist() == corpora[10:20].tolist() == corpora[20:].tolist() == PATTERN
    far = 10 * 2**50
    assert order.turns(np.array([far + 3])).numbers.tolist() == [2 * 2**50]
    assert order.counts(far + 1).tolist() == [5 * 2**50 + 1, 3 * 2**50, 2 * 2**50]
    assert numbers[10:13].tolist() == [5, 3, 6]


def test_a_long_period_is_walked_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = [1234567.0, 7654321.0, 1111111.0, 5.0]
    whole = BlendOrder(weights).turns(np.arange(50_000))
    assert np.abs(errors(weights, whole.corpora)).max() < 10_000_004
    monkeypatch.setattr(blend_order, "_BLOCK", 7)
    parts = BlendOrder(weights).turns(np.arange(49_000, 50_000))
    assert parts.corpora.tolist() == whole.corpora[49_000:].tolist()
    assert parts.numbers.tolist() == whole.numbers[49_000:].tolist()


@pytest.mark.parametrize(
    ("weights", "whole"),
    [
        ([0.1, 0.2], [1, 2]),
        ([3.0], [1]),
        ([1e-3, 1.0], [1, 1000]),
        ([0.35, 0.123, 0.527], [350, 123, 527]),
        ([2.5e9, 1.0], [2_500_000_000, 1]),
    ],
)
def test_weights_are_the_decimals_they_are_written_as(weights: list[float], whole: list[int]) -> None:
    assert whole_weights(weights) == whole
    assert Fraction(whole[0], whole[-1]) == Fraction(str(weights[0])) / Fraction(str(weights[-1]))


def test_weights_of_too_many_digits() -> None:
    with pytest.raises(DataError, match=r"the weights 1e\+12, 1e-12 of data.corpora have too many digits together"):
        BlendOrder([1e12, 1e-12])
    large = BlendOrder([1e18, 1.0, 123456789.0])
    assert large.turns(np.arange(5)).corpora.tolist() == [0, 0, 0, 0, 0]


def test_counts_of_other_weights_are_our_mistake() -> None:
    for native in (True, False):
        with pytest.raises(ValueError, match="the counts are not those of these weights"):
            index_core(native).blend(np.array([1, 1]), np.array([10, 0]), 10, 5, None, None)
