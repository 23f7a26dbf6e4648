"""Lengths and ids are counted exactly, in blocks of any size."""

from pathlib import Path

import numpy as np
import pytest

from megagpt.data import dataset_stats, idx_file
from megagpt.data.dataset_stats import LengthCounts, count_lengths, count_tokens, length_bins
from megagpt.data.idx_file import IdxFile
from megagpt.errors import DataError
from tests.unit.data.hashed import random_documents, write_files


def test_lengths_are_counted_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = random_documents(1, 500)
    write_files(tmp_path / "d", documents, split_at=5)
    monkeypatch.setattr(idx_file, "BLOCK_ENTRIES", 64)
    monkeypatch.setattr(dataset_stats, "_SHORT", 20)  # the rest by sorting
    found = count_lengths(IdxFile(tmp_path / "d.idx"))
    lengths = np.array([len(document) for document in documents])
    distinct, counts = np.unique(lengths, return_counts=True)
    assert found.lengths.tolist() == distinct.tolist()
    assert found.counts.tolist() == counts.tolist()
    assert found.mean() == pytest.approx(lengths.mean())
    for share in (0, 0.25, 0.5, 0.9, 1):
        assert found.quantile(share) == np.quantile(lengths, share, method="lower")


def test_bins_grow_and_lose_nothing() -> None:
    counts = LengthCounts(np.array([0, 1, 2, 3, 5, 900, 1024]), np.array([7, 1, 2, 3, 4, 5, 6]))
    bins = length_bins(counts)
    assert [(b.first, b.last, b.num_documents) for b in bins[:5]] == [
        (0, 0, 7),
        (1, 1, 1),
        (2, 3, 5),
        (4, 7, 4),
        (8, 15, 0),
    ]
    assert [(b.first, b.last, b.num_documents) for b in bins[-2:]] == [(512, 1023, 5), (1024, 2047, 6)]
    assert sum(b.num_tokens for b in bins) == np.dot(counts.lengths, counts.counts)
    halves = length_bins(LengthCounts(counts.lengths[1:], counts.counts[1:]), per_doubling=2)
    assert [(b.first, b.last) for b in halves[:6]] == [(1, 1), (2, 2), (3, 3), (4, 5), (6, 7), (8, 10)]
    assert sum(b.num_documents for b in halves) == 21


def test_ids_are_counted_and_a_sample_is_called_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset_stats, "_BLOCK_TOKENS", 50)
    documents = random_documents(2, 100)
    write_files(tmp_path / "d", documents, "<i4")
    ids = [token for document in documents for token in document]
    idx = IdxFile(tmp_path / "d.idx")
    found = count_tokens(tmp_path / "d.bin", idx, 10)  # the table grows with the ids
    assert found.counts.tolist() == np.bincount(ids).tolist()
    assert (found.num_counted, found.num_tokens) == (len(ids), len(ids))
    assert found.most_frequent(1) == [(1, 100)]
    assert found.never_used() == int((np.bincount(ids) == 0).sum())
    ordered = np.sort(np.bincount(ids))[::-1]
    assert ordered[: found.covering(0.5)].sum() >= len(ids) / 2 > ordered[: found.covering(0.5) - 1].sum()
    sample = count_tokens(tmp_path / "d.bin", idx, 1000, limit=200)
    assert sample.num_counted == 150 + (len(ids) - 1) % 50 + 1  # four blocks, the last one too
    assert sample.num_tokens == len(ids)
    write_files(tmp_path / "d", [[5, -3, 1]], "<i4")
    with pytest.raises(DataError, match=r"d.bin has a negative id, -3: it is damaged"):
        count_tokens(tmp_path / "d.bin", IdxFile(tmp_path / "d.idx"), 1000)
