"""Opening the corpora of a run: fingerprints of what decides their samples, and the same documents named twice."""

import shutil
from pathlib import Path

import pytest

from megagpt.config import CorpusSection, DataSection
from megagpt.data.builder import build_dataset
from megagpt.data.corpora import Corpus, corpus_entries, open_corpora
from megagpt.errors import DataError
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.tokenizer.toy import toy_texts

SHARES = (0.5, 0.25, 0.25)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, toy_tokenizer: SentencePieceTokenizer) -> Path:
    """Datasets `one`, its copy `copy`, and `two`."""
    place = tmp_path_factory.mktemp("corpora")
    for name, texts in (("one", toy_texts(12)), ("two", toy_texts(20)[12:])):
        (place / name).mkdir()
        for number, text in enumerate(texts):
            (place / name / f"{number}.txt").write_text(text)
        build_dataset([str(place / name)], place / f"{name}-data", toy_tokenizer)
    for suffix in ("bin", "idx", "json"):
        shutil.copy(place / f"one-data.{suffix}", place / f"copy.{suffix}")
    return place


def opened(folder: Path, tokenizer: SentencePieceTokenizer, *corpora: CorpusSection) -> tuple[Corpus, ...]:
    placed = tuple(corpus.model_copy(update={"path": str(folder / corpus.path)}) for corpus in corpora)
    return open_corpora(corpus_entries(DataSection(corpora=placed, split=SHARES)), tokenizer, 400, None)


def test_a_fingerprint_is_of_documents_and_split_alone(folder: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    one, two = opened(folder, toy_tokenizer, CorpusSection(path="one-data", weight=3.0), CorpusSection(path="two-data"))
    (copy,) = opened(folder, toy_tokenizer, CorpusSection(path="copy", weight=7.0, name="else"))
    (other,) = opened(folder, toy_tokenizer, CorpusSection(path="one-data", split=(1.0, 0.0, 0.0)))
    assert one.fingerprint == copy.fingerprint
    assert len({one.fingerprint, two.fingerprint, other.fingerprint}) == 3
    assert (one.share.name, one.share.weight, copy.share.name) == ("one-data", 3.0, "else")
    assert (one.has("valid"), other.has("valid"), other.has("train")) == (True, False, True)
    assert one.samples("train", 8, 1).tokens_of(0).tolist() == copy.samples("train", 8, 1).tokens_of(0).tolist()


def test_the_same_documents_twice_are_refused(folder: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    message = r"the corpora one-data \(.*one-data\) and copy \(.*copy\) of data.corpora have the same documents; name i"
    with pytest.raises(DataError, match=message):
        opened(folder, toy_tokenizer, CorpusSection(path="one-data"), CorpusSection(path="copy"))


def test_a_corpus_that_is_not_there_or_does_not_fit(folder: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(DataError, match=r"dataset file .*none\.idx does not exist"):
        opened(folder, toy_tokenizer, CorpusSection(path="one-data"), CorpusSection(path="none"))
    (corpus,) = opened(folder, toy_tokenizer, CorpusSection(path="one-data"))
    with pytest.raises(DataError, match=r"has token id \d+, beyond the vocabulary of 3"):
        open_corpora((corpus.entry,), toy_tokenizer, 3, None)
