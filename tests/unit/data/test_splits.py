"""Splits: every document in exactly one, shares kept, stable as a dataset grows, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megagpt.data import splits
from megagpt.data.splits import SPLITS, document_position, documents_of_split
from megagpt.errors import DataError


def splitmix64(number: int) -> int:
    """Plain integers, from the published algorithm."""
    mask = 2**64 - 1
    x = (0x6D65676167707431 + (number + 1) * 0x9E3779B97F4A7C15) & mask
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & mask
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & mask
    return x ^ (x >> 31)


def test_positions_are_splitmix64() -> None:
    numbers = [0, 1, 2, 12345, 2**31, 2**40 + 7]
    expected = [(splitmix64(number) >> 11) / 2**53 for number in numbers]
    assert document_position(np.array(numbers)).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10), st.integers(0, 10), st.integers(0, 10), st.integers(200, 3000))
def test_every_document_is_in_exactly_one_split(a: int, b: int, c: int, count: int) -> None:
    total = a + b + c
    if total == 0:
        return
    shares = (a / total, b / total, c / total)
    parts = [documents_of_split(count, shares, s) for s, share in zip(SPLITS, shares, strict=True) if share > 0]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert all(np.array_equal(part, np.sort(part)) for part in parts)


def test_shares_are_kept_and_documents_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = (0.9, 0.07, 0.03)
    for split, share in zip(SPLITS, shares, strict=True):
        documents = documents_of_split(200_000, shares, split)
        # standard deviation sqrt(p (1-p) / n) is at most 0.0007; measured deviations are below 0.0007
        assert abs(len(documents) / 200_000 - share) < 0.003
        shorter = documents_of_split(50_000, shares, split)
        assert np.array_equal(shorter, documents[documents < 50_000])
    monkeypatch.setattr(splits, "_CHUNK_DOCUMENTS", 1000)
    assert np.array_equal(documents_of_split(200_000, shares, "test"), documents)


def test_where_the_first_documents_go() -> None:
    """Fixed for good: a change would move held-out documents into training."""
    assert documents_of_split(40, (0.8, 0.1, 0.1), "valid").tolist() == [13, 22, 24, 28, 35, 38]
    assert documents_of_split(40, (0.8, 0.1, 0.1), "test").tolist() == [1, 12, 18, 19, 27, 29, 37]


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
def test_shares_that_cannot_be(shares: tuple[float, float, float], split: str, count: int, message: str) -> None:
    with pytest.raises(DataError, match=message):
        documents_of_split(count, shares, split)  # type: ignore[arg-type]
