"""The order without a table: a permutation of any size, the same for good, native as in NumPy, and well shuffled."""

from math import factorial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.data.index_core import IndexCore, index_core, is_native
from megagpt.data.index_order import order_at, order_key
from tests.unit.data.orders import place_of, plain_order, plain_place

PAST_32_BITS = [2**31 + 11, 2**32, 2**32 + 1, 2**33 + 12345, 2**40 + 7, 2**62]


def order_of(core: IndexCore, key: bytes, count: int, numbers: list[int] | np.ndarray) -> np.ndarray:
    numbers = np.asarray(numbers, dtype=np.int64)
    out = np.empty(len(numbers), dtype=np.int64)
    core.order(key, count, numbers, out)
    return out


@pytest.fixture(params=[True, False], ids=["native", "numpy"])
def core(request: pytest.FixtureRequest) -> IndexCore:
    chosen = index_core(native=request.param)
    if request.param and not is_native(chosen):
        pytest.skip("megagpt.native._samples is not built")
    return chosen


@pytest.mark.parametrize("count", [1, 2, 3, 7, 255, 256, 257, 1000, 4097])
def test_every_thing_has_one_place(core: IndexCore, count: int) -> None:
    key = order_key(5, f"things/{count}")
    found = order_of(core, key, count, np.arange(count))
    assert found.tolist() == plain_order(key, count)
    assert sorted(found.tolist()) == list(range(count))


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 2**62), st.integers(0, 2**30), st.data())
def test_both_follow_the_definition_at_any_size(count: int, seed: int, data: st.DataObject) -> None:
    key = order_key(seed, "any")
    numbers = data.draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=5))
    expected = [plain_place(key, count, number) for number in numbers]
    assert order_at(key, count, np.array(numbers)).tolist() == expected
    assert order_of(index_core(), key, count, numbers).tolist() == expected


@pytest.mark.parametrize("count", PAST_32_BITS)
def test_past_32_bits_a_place_has_its_thing_and_a_thing_its_place(core: IndexCore, count: int) -> None:
    key = order_key(1, "documents/train/0")
    ends = [0, 1, 2**31 - 1, 2**31, count - 2, count - 1]
    numbers = np.unique(np.append(np.arange(5000) * (count // 5000), ends))
    things = order_of(core, key, count, numbers)
    assert things.max() > 0.99 * count
    assert things.max() < count
    assert len(np.unique(things)) == len(numbers)
    back = [place_of(key, count, thing) for thing in things[:200].tolist()]
    assert back == numbers[:200].tolist()
    # spread evenly: 5000 numbers in 20 bins, standard deviation 15.4; measured at most 50
    bins = np.bincount((things / count * 20).astype(int), minlength=20)
    assert np.abs(bins - len(numbers) / 20).max() < 80


def test_a_number_that_has_no_place_is_our_mistake(core: IndexCore) -> None:
    for number in (-1, 8):
        with pytest.raises((AssertionError, ValueError)):
            order_of(core, order_key(1, "x"), 8, [number])


def test_the_order_is_fixed_for_good() -> None:
    """A change would make resumed runs see other samples: raise ORDER_VERSION with it."""
    assert plain_order(order_key(1234, "documents/train/0"), 8) == ORDER_OF_8
    assert order_at(order_key(1234, "documents/train/0"), 10**12, np.array([0, 1, 10**11])).tolist() == ORDER_OF_10_12


ORDER_OF_8 = [2, 0, 4, 6, 7, 1, 3, 5]
ORDER_OF_10_12 = [922017364355, 149273252054, 177532867815]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_every_order_of_a_few_things_is_as_likely(count: int) -> None:
    trials = 120 * factorial(count)
    orders = [order_of(index_core(), order_key(n, "few"), count, np.arange(count)) for n in range(trials)]
    seen = np.unique(np.array(orders), axis=0, return_counts=True)[1]
    assert len(seen) == factorial(count)
    # chi-square over its degrees of freedom; measured 0.3 to 1.2, and 5 rounds or fewer bits fail
    assert ((seen - 120) ** 2 / 120).sum() / (factorial(count) - 1) < 2.5


@pytest.mark.parametrize("count", [5000, 65536, 100_003, 1_000_000])
def test_the_order_is_well_shuffled(count: int) -> None:
    """Chi-square tests with 255 degrees of freedom (mean 255, standard deviation 22.6); 3 rounds give over 10,000."""
    order = order_at(order_key(3, f"shuffled/{count}"), count, np.arange(count))
    other = order_at(order_key(3, f"shuffled/{count}/1"), count, np.arange(count))
    place = np.arange(count)
    pairs = {
        "place and thing": (place * 16 // count, order * 16 // count),
        "last bits of the place and thing": (place % 16, order * 16 // count),
        "place and last bits of the thing": (place * 16 // count, order % 16),
        "two orders": (order * 16 // count, other * 16 // count),
        **{f"{n} apart": ((order[n:] - order[:-n]) % count * 16 // count, order[n:] % 16) for n in (1, 2, 16, 256)},
    }
    for name, (left, right) in pairs.items():
        seen = np.bincount(left * 16 + right, minlength=256)
        expected = len(left) / 256
        assert ((seen - expected) ** 2 / expected).sum() < 400, name
