"""Splits: every document in exactly one, shares kept, stable as a dataset grows, errors."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from megagpt.data import splits
from megagpt.data.samples import SampleIndex
from megagpt.data.splits import SPLITS, Split, document_place, has_documents, split_bounds
from megagpt.errors import DataError
from tests.unit.data.datasets import numbered_dataset
from tests.unit.data.orders import plain_split, splitmix64


def documents_of(count: int, shares: tuple[float, float, float], split: Split) -> NDArray[np.int64]:
    low, high = split_bounds(shares, split)
    places = document_place(np.arange(count))
    return np.flatnonzero((places >= low) & (places < high))


def test_places_are_splitmix64() -> None:
    numbers = [0, 1, 2, 12345, 2**31, 2**40 + 7]
    assert document_place(np.array(numbers)).tolist() == [splitmix64(number) >> 11 for number in numbers]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10), st.integers(200, 3000))
def test_every_document_is_in_exactly_one_split(a: int, b: int, c: int, count: int) -> None:
    total = a + b + c
    if total == 0:
        return
    shares = (a / total, b / total, c / total)
    parts = [documents_of(count, shares, s) for s, share in zip(SPLITS, shares, strict=True) if share > 0]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))


@pytest.mark.parametrize("shares", [(0.98, 0.01, 0.01), (0.5, 0.25, 0.25), (1 / 3, 1 / 3, 1 / 3), (0.9, 0.1, 0.0)])
def test_whole_number_bounds_are_the_cumulative_shares(shares: tuple[float, float, float]) -> None:
    for split, share in zip(SPLITS, shares, strict=True):
        if share:
            assert documents_of(3000, shares, split).tolist() == plain_split(3000, shares, split)


def test_shares_are_kept_and_documents_stay_where_they_are() -> None:
    shares = (0.9, 0.07, 0.03)
    for split, share in zip(SPLITS, shares, strict=True):
        documents = documents_of(200_000, shares, split)
        # standard deviation sqrt(p (1-p) / n) is at most 0.0007; measured deviations are below 0.0007
        assert abs(len(documents) / 200_000 - share) < 0.003
        shorter = documents_of(50_000, shares, split)
        assert np.array_equal(shorter, documents[documents < 50_000])


def test_whether_a_split_has_any(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = (0.8, 0.1, 0.1)
    for size in (5, 1 << 16):
        monkeypatch.setattr(splits, "_CHUNK_DOCUMENTS", size)
        assert [has_documents(13, shares, "valid"), has_documents(14, shares, "valid")] == [False, True]


def test_where_the_first_documents_go() -> None:
    """Fixed for good: a change would move held-out documents into training."""
    assert documents_of(40, (0.8, 0.1, 0.1), "valid").tolist() == [13, 22, 24, 28, 35, 38]
    assert documents_of(40, (0.8, 0.1, 0.1), "test").tolist() == [1, 12, 18, 19, 27, 29, 37]


@pytest.mark.parametrize(
    ("shares", "split", "count", "message"),
    [
        (
            (1.0, 0.0, 0.0),
            "valid",
            100,
            r"the valid share of data.split = \[1.0, 0.0, 0.0\] is 0, so it has no",
        ),
        (
            (0.98, 0.01, 0.01),
            "train",
            3,
            r"the valid share 0.01 of .* gets none of the dataset's 3 documents; use",
        ),
        ((0.5, 0.4, 0.2), "train", 100, r"data.split = \[0.5, 0.4, 0.2\] must be three shares .* sum to 1"),
        ((1.2, -0.2, 0.0), "train", 100, r"must be three shares of at least 0"),
    ],
)
def test_shares_that_cannot_be(
    tmp_path: Path, shares: tuple[float, float, float], split: Split, count: int, message: str
) -> None:
    dataset = numbered_dataset(tmp_path / "d", [5] * count)
    with pytest.raises(DataError, match=message):
        SampleIndex(dataset, split, shares, 4, seed=1)
