"""Training: the same file every time, the settings asked for, the report, bounded samples, errors."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from megagpt.data.tool import run_tool
from megagpt.errors import DataError
from megagpt.tokenizer.cli import VERBS
from megagpt.tokenizer.sampling import PIECE_CHARACTERS, sample_texts
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from megagpt.tokenizer.train import MAX_PIECE_CHARACTERS, TokenizerSettings, train_sentencepiece
from tests.unit.tokenizer.toy import toy_texts


def test_the_same_corpus_gives_the_same_file(tmp_path: Path) -> None:
    settings = TokenizerSettings(vocab_size=340)
    for name in ("a.model", "b.model"):
        train_sentencepiece(iter(toy_texts()), tmp_path / name, settings)
    assert (tmp_path / "a.model").read_bytes() == (tmp_path / "b.model").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.model", "b.model"]


@pytest.mark.parametrize(("model_type", "vocab_size"), [("bpe", 340), ("unigram", 310)])
def test_the_vocabulary_is_portable(tmp_path: Path, model_type: str, vocab_size: int) -> None:
    path = tmp_path / "t.model"
    train_sentencepiece(toy_texts(), path, TokenizerSettings(vocab_size=vocab_size, model_type=model_type))  # type: ignore[arg-type]
    processor = SentencePieceTokenizer(path).processor
    pieces = [processor.id_to_piece(token_id) for token_id in range(vocab_size)]
    assert pieces[:4] == ["<unk>", "<|endoftext|>", "\n", "<0x00>"]
    assert processor.is_control(1)
    assert not processor.is_control(2)
    assert all(processor.is_byte(token_id) for token_id in range(3, 259))
    learned = pieces[259:]
    assert max(map(len, learned)) <= MAX_PIECE_CHARACTERS
    assert not [piece for piece in learned if len(piece) > 1 and any(map(str.isdigit, piece))], "digits stand alone"
    assert not [piece for piece in learned if "\n" in piece]
    tokenizer = SentencePieceTokenizer(path)
    assert tokenizer.encode("一\n\n二").count(2) == 2
    assert tokenizer.decode(tokenizer.encode(" 第 2024\n条 ")) == " 第 2024\n条 "


def test_the_report_is_what_a_count_by_hand_gives(tmp_path: Path) -> None:
    text = toy_texts()[0] + "龘"
    settings = TokenizerSettings(vocab_size=310, character_coverage=0.98)
    report = train_sentencepiece([text], tmp_path / "t.model", settings)
    tokenizer = SentencePieceTokenizer(tmp_path / "t.model")
    ids = tokenizer.encode(text)
    assert report.judged_on.startswith("training text")
    assert report.characters_per_token == len(text) / len(ids)
    assert report.bytes_per_token == len(text.encode()) / len(ids)
    assert report.unknown_rate == 0
    assert report.byte_fallback_rate == sum(3 <= token_id < 259 for token_id in ids) / len(ids) > 0
    assert report.corpus_bytes == report.training_bytes == len(text.encode())
    assert any("byte fallback" in line for line in report.lines())


def test_held_out_text_is_judged_where_there_is_enough(tmp_path: Path) -> None:
    report = train_sentencepiece(toy_texts(300), tmp_path / "t.model", TokenizerSettings(vocab_size=340))
    assert report.judged_on == "held-out text"
    assert report.training_bytes + report.judged_bytes == report.corpus_bytes


def test_long_lines_are_trained_on(tmp_path: Path) -> None:
    """sentencepiece itself leaves lines over 4192 bytes out, and then has no text at all here."""
    train_sentencepiece(["天下大势分久必合" * 5000], tmp_path / "t.model", TokenizerSettings(vocab_size=280))
    assert len(SentencePieceTokenizer(tmp_path / "t.model").encode("天下大势分久必合")) <= 2


def test_the_sample_is_bounded_reproducible_and_in_order() -> None:
    texts = [f"{number:05d}" * 200 for number in range(2000)]  # 1000 bytes each
    sample = sample_texts(iter(texts), 100_000, 5_000, seed=1)
    assert sample.corpus_bytes == 2_000_000
    assert 99_000 < sample.training_bytes <= 100_000
    assert len(sample.held_out) == 5
    assert sample.training == sorted(sample.training)
    assert not set(sample.training) & set(sample.held_out)
    assert sample == sample_texts(iter(texts), 100_000, 5_000, seed=1)
    assert sample.training != sample_texts(iter(texts), 100_000, 5_000, seed=2).training
    middle = sum(int(text[:5]) for text in sample.training) / len(sample.training)
    assert 800 < middle < 1200, "pieces from the whole corpus, not its beginning"


def test_which_pieces_are_chosen_does_not_depend_on_their_size() -> None:
    texts = [f"{number:04d}" + "x" * (number * 37 % 900) for number in range(500)]
    sample = sample_texts(texts, 20_000, 10**9, seed=3)
    digests = [hashlib.sha256(f"3/tokenizer sample/{number}".encode()).digest() for number in range(500)]
    training = [n for n in range(500) if texts[n] not in sample.held_out]
    by_key = sorted(training, key=lambda number: int.from_bytes(digests[number][8:16], "little"))
    assert sample.training == [texts[number] for number in sorted(by_key[: len(sample.training)])]
    assert len(sample.training) > 20


def test_a_corpus_within_the_budget_is_used_whole() -> None:
    text = "\n".join("字" * 100 for _ in range(1000))
    sample = sample_texts([text, "", "短"], 10**9, 10**9, seed=1)
    assert len("".join(sample.training + sample.held_out)) == len(text) + 1
    assert max(map(len, sample.training)) <= PIECE_CHARACTERS
    assert all(piece.endswith("\n") for piece in sample.training if len(piece) > PIECE_CHARACTERS // 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (TokenizerSettings(vocab_size=9000), r"cannot train a tokenizer of 9000 ids .*too high .* <= \d+; change"),
        (TokenizerSettings(vocab_size=270), r"cannot train a tokenizer of 270 ids .*smaller than required_chars"),
        (TokenizerSettings(vocab_size=200), r"vocabulary size 200 leaves no room beside 256 bytes"),
        (TokenizerSettings(vocab_size=340, character_coverage=1.5), r"character coverage 1.5 is not in \[0.98, 1\]"),
    ],
)
def test_settings_that_cannot_work(tmp_path: Path, settings: TokenizerSettings, message: str) -> None:
    with pytest.raises(DataError, match=message):
        train_sentencepiece(toy_texts(), tmp_path / "t.model", settings)
    assert not list(tmp_path.iterdir())


def test_no_text_and_a_wrong_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the corpus has no text to train a tokenizer on"):
        train_sentencepiece(["", " \n"], tmp_path / "t.model", TokenizerSettings(vocab_size=340))
    with pytest.raises(DataError, match=r"output .*t.json must end in .model"):
        train_sentencepiece(toy_texts(), tmp_path / "t.json", TokenizerSettings(vocab_size=340))


def test_a_full_disk_leaves_the_old_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "t.model").write_text("old")
    monkeypatch.setattr(Path, "write_bytes", fail)
    with pytest.raises(DataError, match=r"cannot be written to .*t\.model: No space left on device; free space there"):
        train_sentencepiece(toy_texts(), tmp_path / "t.model", TokenizerSettings(vocab_size=340))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.txt").write_text("\n".join(toy_texts()), encoding="utf-8")
    arguments = [str(tmp_path / "c.txt"), "--output", str(tmp_path / "t.model"), "--vocab-size"]
    assert run_tool(VERBS["train"], [*arguments, "340"]) == 0
    assert "characters/token" in capsys.readouterr().out
    assert run_tool(VERBS["train"], [*arguments, "99999"]) == 2
    assert "error: cannot train a tokenizer of 99999 ids" in capsys.readouterr().err
