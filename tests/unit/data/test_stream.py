"""Batches: a pure function of (samples, step, rank), every sample once, documents apart; show, check, entropy."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from megagpt.data.check import check_dataset, share_of_ended_documents
from megagpt.data.entropy import count_labels, unigram_entropy
from megagpt.data.indexed import IndexedDataset
from megagpt.data.indexed_writer import IndexedWriter
from megagpt.data.samples import SampleIndex
from megagpt.data.show import show_batch
from megagpt.data.stream import BatchStream, make_batch
from megagpt.data.token_text import decode_with_ends
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.data.datasets import EOD, numbered_dataset
from tests.unit.tokenizer.toy import toy_texts

ALL = (1.0, 0.0, 0.0)


class Step(NamedTuple):
    first_sample: int
    num_sequences: int
    micro_batch_size: int
    num_micro_batches: int


def stream_of(samples: SampleIndex, rank: int = 0, ranks: int = 1, separate: bool = False) -> BatchStream:
    return BatchStream(samples, samples.sequence_length, EOD, separate, rank, ranks)


@pytest.fixture
def samples(tmp_path: Path) -> SampleIndex:
    return SampleIndex(numbered_dataset(tmp_path / "d", [5, 9, 1, 13, 7, 20]), "train", ALL, 4, seed=2)


@pytest.mark.parametrize(("ranks", "micro_batch_size"), [(1, 1), (1, 4), (2, 2), (3, 1), (3, 4), (4, 3)])
def test_the_ranks_blocks_make_up_the_global_batch(samples: SampleIndex, ranks: int, micro_batch_size: int) -> None:
    step = Step(7, 12, micro_batch_size, 12 // ranks // micro_batch_size)
    batches = [batch for rank in range(ranks) for batch in stream_of(samples, rank, ranks).micro_batches(step)]
    assert all(batch.tokens.shape == (micro_batch_size, 4) for batch in batches)
    tokens, labels = torch.cat([b.tokens for b in batches]), torch.cat([b.labels for b in batches])
    for row, number in enumerate(range(7, 19)):
        expected = samples.tokens_of(number).tolist()
        assert tokens[row].tolist() == expected[:-1]
        assert labels[row].tolist() == expected[1:]


def test_a_batch_is_a_pure_function(samples: SampleIndex) -> None:
    stream = stream_of(samples)
    steps = [Step(first, 6, 2, 3) for first in (0, 6, 60, 12)]
    first = [stream.micro_batches(step) for step in steps]
    again = [stream.micro_batches(step) for step in reversed(steps)][::-1]
    for left, right in zip(first, again, strict=True):
        for a, b in zip(left, right, strict=True):
            assert torch.equal(a.tokens, b.tokens)
            assert torch.equal(a.labels, b.labels)


def test_a_step_that_does_not_divide_is_our_mistake(samples: SampleIndex) -> None:
    with pytest.raises(AssertionError):
        stream_of(samples, 0, 2).micro_batches(Step(0, 3, 1, 1))
    with pytest.raises(AssertionError):
        stream_of(samples, 0, 2).micro_batches(Step(0, 4, 1, 1))
    with pytest.raises(AssertionError):
        stream_of(samples, 2, 2)


def test_types_and_values_where_documents_are_not_apart() -> None:
    batch = make_batch(np.array([[5, EOD, 6, 7, 8], [EOD, EOD, 2, 3, EOD]]), None)
    assert [t.dtype for t in batch[:4]] == [torch.int64, torch.int64, torch.float32, torch.int64]
    assert batch.documents is None
    assert batch.tokens.tolist() == [[5, EOD, 6, 7], [EOD, EOD, 2, 3]]
    assert batch.labels.tolist() == [[EOD, 6, 7, 8], [EOD, 2, 3, EOD]]
    assert batch.positions.tolist() == [[0, 1, 2, 3]] * 2
    assert batch.loss_mask.tolist() == [[1, 1, 1, 1]] * 2


def test_documents_apart() -> None:
    batch = make_batch(np.array([[5, EOD, 6, 7, 8], [EOD, EOD, 2, 3, EOD], [4, 5, 6, EOD, 9]]), EOD)
    assert batch.documents is not None
    assert batch.documents.dtype == torch.int32
    assert batch.documents.tolist() == [[0, 0, 1, 1], [0, 1, 2, 2], [0, 0, 0, 0]]
    assert batch.positions.tolist() == [[0, 1, 0, 1], [0, 0, 0, 1], [0, 1, 2, 3]]
    assert batch.loss_mask.tolist() == [[1, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 0]]


def test_documents_apart_against_a_loop() -> None:
    rows = np.random.default_rng(0).integers(1, 5, size=(20, 40))
    batch = make_batch(rows, EOD)
    assert batch.documents is not None
    for row, tokens in enumerate(rows[:, :-1].tolist()):
        document = position = 0
        for column, token_id in enumerate(tokens):
            assert (batch.documents[row, column], batch.positions[row, column]) == (document, position)
            assert batch.loss_mask[row, column] == (token_id != EOD)
            document, position = (document + 1, 0) if token_id == EOD else (document, position + 1)


@pytest.mark.parametrize(
    ("ranks", "size", "limit"), [(1, 1, 99), (1, 4, 99), (2, 2, 99), (4, 3, 99), (3, 2, 5), (8, 2, 3)]
)
def test_evaluation_counts_every_sample_once(samples: SampleIndex, ranks: int, size: int, limit: int) -> None:
    expected = sorted(tuple(samples.tokens_of(n)[:-1].tolist()) for n in range(min(limit, samples.samples_per_epoch)))
    counted: list[tuple[int, ...]] = []
    for rank in range(ranks):
        stream = stream_of(samples, rank, ranks)
        batches = list(stream.evaluation_batches(limit, size))
        assert len(batches) == stream.num_evaluation_micro_batches(limit, size)
        for batch in batches:
            assert batch.tokens.shape == (size, 4)
            kept = batch.loss_mask.any(dim=1)
            assert torch.equal(batch.loss_mask.sum(dim=1), kept * 4.0)
            counted += [tuple(row) for row in batch.tokens[kept].tolist()]
    assert sorted(counted) == expected


@pytest.fixture
def built(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> IndexedDataset:
    from megagpt.data.builder import build_dataset

    for number, text in enumerate(toy_texts(20)):
        (tmp_path / f"{number:02d}.txt").write_text(text)
    build_dataset([str(tmp_path)], tmp_path / "d", toy_tokenizer)
    return IndexedDataset(tmp_path / "d")


def test_a_batch_is_shown_as_text(
    built: IndexedDataset, toy_tokenizer: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megagpt.data.show._SHOWN_CHARACTERS", 100)
    samples = SampleIndex(built, "train", ALL, 200, seed=1)
    shown = show_batch(stream_of(samples, 1, 2), Step(0, 4, 1, 2), toy_tokenizer)
    assert "data rank 1 of 2: samples 2 to 3, 2 micro-batches of 1 x 200 tokens" in shown
    assert "--- micro-batch 1, sequence 0 (sample 3): " in shown
    ids = samples.tokens_of(3)[:-1].tolist()
    text = decode_with_ends(toy_tokenizer, ids)
    assert text.count("<|endoftext|>") == ids.count(EOD) > 0
    assert f"(sample 3): {ids.count(EOD)} document ends, 200 labels count" in shown
    assert f"{text[:50]} …[{len(text) - 100} characters]… {text[-50:]}" in shown
    assert decode_with_ends(toy_tokenizer, toy_tokenizer.encode("短")) == "短"


def test_a_dataset_that_belongs(built: IndexedDataset, toy_tokenizer: SentencePieceTokenizer) -> None:
    check_dataset(built, toy_tokenizer, toy_tokenizer.vocab_size)
    check_dataset(built, None, toy_tokenizer.vocab_size)
    assert share_of_ended_documents(built, EOD) == 1


def test_a_dataset_of_another_tokenizer(
    tmp_path: Path, built: IndexedDataset, toy_tokenizer: SentencePieceTokenizer
) -> None:
    other_path = tmp_path / "other.model"
    other_path.write_bytes(Path(toy_tokenizer.path).read_bytes() + b"\x82\x7d\x01a")  # an unknown field: same ids
    other = SentencePieceTokenizer(other_path)
    message = (
        rf"d was built with another tokenizer \(sha256 {toy_tokenizer.fingerprint}\) than .*other.model "
        rf"\(sha256 {other.fingerprint}\); rebuild the dataset"
    )
    with pytest.raises(DataError, match=message):
        check_dataset(built, other, other.vocab_size)
    Path(built.prefix + ".json").unlink()  # as Megatron would have left it: unknown, and allowed
    check_dataset(IndexedDataset(built.prefix), other, other.vocab_size)


@pytest.mark.parametrize("with_sidecar", [True, False])
def test_an_id_beyond_the_vocabulary(
    built: IndexedDataset, toy_tokenizer: SentencePieceTokenizer, with_sidecar: bool
) -> None:
    highest = built.max_token_id()
    if not with_sidecar:
        Path(built.prefix + ".json").unlink()
    dataset = IndexedDataset(built.prefix)
    check_dataset(dataset, toy_tokenizer, highest + 1)
    message = rf"has token id {highest}, beyond the vocabulary of {highest} .*; set model.vocab_size to at least"
    with pytest.raises(DataError, match=message):
        check_dataset(dataset, toy_tokenizer, highest)


def test_documents_without_an_end(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    with IndexedWriter(tmp_path / "d", np.dtype(np.uint16)) as writer:
        writer.add_documents(np.array([5, EOD, 6, 7, 8, EOD, 9, 10]), [2, 2, 2, 2])
        writer.finish()
    message = r"only 50.0% of the documents looked at end with the end-of-document id 1 .*--append-eod"
    with pytest.raises(DataError, match=message):
        check_dataset(IndexedDataset(tmp_path / "d"), toy_tokenizer, 340)


def test_unigram_entropy() -> None:
    assert unigram_entropy(np.array([0, 7, 0])) == 0
    assert unigram_entropy(np.array([3, 3, 0, 3, 3])) == pytest.approx(math.log(4), rel=1e-15)
    counts = np.array([1, 2, 5])
    by_hand = -sum(c / 8 * math.log(c / 8) for c in (1, 2, 5))
    assert unigram_entropy(counts) == pytest.approx(by_hand, rel=1e-15)
    with pytest.raises(AssertionError):
        unigram_entropy(np.zeros(3))


def test_labels_are_counted_as_the_loss_counts_them(samples: SampleIndex) -> None:
    vocab_size = 100
    batches = list(stream_of(samples, separate=True).evaluation_batches(9, 1))
    expected = np.zeros(vocab_size)
    for batch in batches:
        np.add.at(expected, batch.labels[batch.loss_mask > 0].numpy(), 1)
    assert np.array_equal(count_labels(samples, 9, vocab_size, separate_documents_eod_id=EOD), expected)
    assert count_labels(samples, 9, vocab_size).sum() == 9 * 4 > expected.sum()
