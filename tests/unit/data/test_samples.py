"""Samples: each window of an epoch exactly once, epochs in other orders, random access, errors."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megagpt.data.indexed import IndexedDataset
from megagpt.data.samples import SampleIndex
from megagpt.errors import DataError
from tests.unit.data.datasets import EOD, numbered_dataset
from tests.unit.data.orders import plain_order, plain_split

ALL = (1.0, 0.0, 0.0)


def labels_of(samples: SampleIndex, numbers: range) -> list[int]:
    return [int(token_id) for number in numbers for token_id in samples.tokens_of(number)[1:]]


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 30), min_size=1, max_size=25), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_has_every_window_exactly_once(tmp_path: Path, lengths: list[int], length: int, epoch: int) -> None:
    if sum(lengths) <= length:
        return
    dataset = numbered_dataset(tmp_path / "d", lengths)
    samples = SampleIndex(dataset, "train", ALL, length, seed=7)
    count = samples.samples_per_epoch
    assert count == (sum(lengths) - 1) // length
    expected = plain_windows(dataset, length, f"7/documents/train/{epoch}")
    found = [samples.tokens_of(epoch * count + number).tolist() for number in range(count)]
    assert sorted(found) == sorted(expected)
    labels = [token_id for window in found for token_id in window[1:] if token_id != EOD]
    assert len(labels) == len(set(labels)), "no token is a label twice"


def plain_windows(dataset: IndexedDataset, length: int, stream: str) -> list[list[int]]:
    """An epoch's windows before they are shuffled, by a plain reading of the documentation."""
    order = plain_order(key_of(stream), len(dataset))
    tokens = np.concatenate([dataset.document(number) for number in order])
    return [tokens[start : start + length + 1].tolist() for start in range(0, len(tokens) - length, length)]


def key_of(stream: str) -> bytes:
    return hashlib.shake_256(stream.encode()).digest(96)


@pytest.mark.parametrize("length", [3, 8])
def test_an_epoch_is_its_documents_order_cut_and_shuffled(tmp_path: Path, length: int) -> None:
    lengths = [5, 1, 9, 2, 14, 7]
    dataset = numbered_dataset(tmp_path / "d", lengths)
    samples = SampleIndex(dataset, "train", ALL, length, seed=11)
    for epoch in (0, 1, 5):
        windows = plain_windows(dataset, length, f"11/documents/train/{epoch}")
        count = len(windows)
        expected = [windows[k] for k in plain_order(key_of(f"11/samples/train/{epoch}"), count)]
        assert [samples.tokens_of(epoch * count + k).tolist() for k in range(count)] == expected


def test_epochs_and_seeds_have_orders_of_their_own(tmp_path: Path) -> None:
    dataset = numbered_dataset(tmp_path / "d", [7] * 50)
    samples = SampleIndex(dataset, "train", ALL, 6, seed=1)
    count = samples.samples_per_epoch
    first, second = labels_of(samples, range(count)), labels_of(samples, range(count, 2 * count))
    assert first != second
    assert first != labels_of(SampleIndex(dataset, "train", ALL, 6, seed=2), range(count))
    assert first == labels_of(SampleIndex(dataset, "train", ALL, 6, seed=1), range(count))
    assert len(set(first) - {EOD}) == len([t for t in first if t != EOD])


def test_access_in_any_order(tmp_path: Path) -> None:
    dataset = numbered_dataset(tmp_path / "d", [7, 3, 12, 30, 1, 1, 4])
    samples = SampleIndex(dataset, "train", ALL, 5, seed=3)
    forwards = [samples.tokens_of(number).tolist() for number in range(100)]
    again = SampleIndex(dataset, "train", ALL, 5, seed=3)
    assert [again.tokens_of(number).tolist() for number in reversed(range(100))][::-1] == forwards
    assert samples.tokens_of(10**12).dtype == np.int64


def test_validation_goes_round_once_in_order(tmp_path: Path) -> None:
    dataset = numbered_dataset(tmp_path / "d", [6] * 60)
    shares = (0.5, 0.3, 0.2)
    valid = SampleIndex(dataset, "valid", shares, 4, seed=1)
    tokens = np.concatenate([dataset.document(n) for n in plain_split(60, shares, "valid")])
    expected = [tokens[k * 4 : k * 4 + 5].tolist() for k in range((len(tokens) - 1) // 4)]
    assert [valid.tokens_of(n).tolist() for n in range(valid.samples_per_epoch)] == expected
    with pytest.raises(IndexError, match=r"sample \d+ of valid, which has \d+ in its one pass"):
        valid.tokens_of(valid.samples_per_epoch)
    with pytest.raises(IndexError, match=r"sample -1 of valid"):
        valid.tokens_of(-1)


def test_splits_share_no_token(tmp_path: Path) -> None:
    dataset = numbered_dataset(tmp_path / "d", [6] * 100)
    parts = []
    for split in ("train", "valid", "test"):
        samples = SampleIndex(dataset, split, (0.6, 0.2, 0.2), 4, seed=1)  # type: ignore[arg-type]
        parts.append({t for n in range(samples.samples_per_epoch) for t in samples.tokens_of(n).tolist()} - {EOD})
        assert samples.num_tokens == 6 * samples.num_documents
    assert sum(map(len, parts)) == len(set.union(*parts)) > 400


def test_documents_of_several_and_of_no_tokens(tmp_path: Path) -> None:
    """Megatron's datasets can have empty documents; they give nothing and break nothing."""
    ids = np.arange(2, 12, dtype=np.int32)
    (tmp_path / "d.bin").write_bytes(ids.tobytes())
    head = b"MMIDIDX\0\0" + np.array([1], "<u8").tobytes() + b"\4" + np.array([3, 5], "<u8").tobytes()
    lengths, pointers, bounds = (
        np.array([4, 1, 5], "<i4"),
        np.array([0, 16, 20], "<i8"),
        np.array([0, 2, 2, 3, 3], "<i8"),
    )
    (tmp_path / "d.idx").write_bytes(head + lengths.tobytes() + pointers.tobytes() + bounds.tobytes())
    samples = SampleIndex(IndexedDataset(tmp_path / "d"), "train", ALL, 3, seed=1)
    assert samples.num_documents == 4
    assert samples.samples_per_epoch == 3
    assert sorted(labels_of(samples, range(3))) in ([3, *range(4, 12)], [*range(2, 7), *range(8, 12)])


def test_too_few_tokens(tmp_path: Path) -> None:
    dataset = numbered_dataset(tmp_path / "d", [4, 4])
    assert SampleIndex(dataset, "train", ALL, 7, seed=1).samples_per_epoch == 1
    message = r"the train split of .*d has 8 tokens in 2 documents, and one sample needs 9; use more text"
    with pytest.raises(DataError, match=message):
        SampleIndex(dataset, "train", ALL, 8, seed=1)
