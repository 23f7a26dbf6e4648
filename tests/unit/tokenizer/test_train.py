"""Training: the same file every time, the settings asked for, the report, bounded samples, errors."""

import errno
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from megagpt.data.tool import run_tool
from megagpt.errors import DataError
from megagpt.tokenizer.cli import VERBS
from megagpt.tokenizer.sampling import PIECE_CHARACTERS, sample_texts
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from megagpt.tokenizer.train import TokenizerSettings, train_sentencepiece
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
    assert max(map(len, learned)) <= 10
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


def test_the_report_says_what_the_vocabulary_is_used_for(tmp_path: Path) -> None:
    text = "\n".join([*toy_texts(), "龘" * 30 + "𠮷" * 10 + "\u200b" * 20])  # one piece: none is held out
    settings = TokenizerSettings(vocab_size=340, character_coverage=0.98)
    report = train_sentencepiece([text], tmp_path / "t.model", settings)
    tokenizer = SentencePieceTokenizer(tmp_path / "t.model")
    used = set(tokenizer.encode(text))
    learned = {2, *range(259, 340)}
    assert report.vocabulary_used == len(used & learned) / len(learned) < 1
    pieces = [tokenizer.processor.id_to_piece(token_id) for token_id in used & learned]
    assert len(report.longest_pieces) == 5
    assert len(report.longest_pieces[0]) == max(map(len, pieces))
    assert report.common_fallbacks[:3] == ("龘", "U+200B", "𠮷")
    assert any("龘 U+200B 𠮷" in line for line in report.lines())


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


def trained(path: Path, texts: list[str], **changes: Any) -> SentencePieceTokenizer:
    train_sentencepiece(texts, path, TokenizerSettings(**{"vocab_size": 340, **changes}))
    return SentencePieceTokenizer(path)


def test_digits_can_stay_together(tmp_path: Path) -> None:
    texts = ["2024 2024 2024 一二\n"] * 50
    split = trained(tmp_path / "split.model", texts, vocab_size=268)
    assert len(split.encode("2024")) == 4
    joined = trained(tmp_path / "joined.model", texts, vocab_size=272, split_digits=False)
    assert len(joined.encode("2024")) == 1
    assert joined.decode(joined.encode("2024")) == "2024"


def test_without_byte_fallback_what_has_no_piece_is_unknown(tmp_path: Path) -> None:
    settings = TokenizerSettings(vocab_size=90, character_coverage=0.98, byte_fallback=False)
    report = train_sentencepiece(["\n".join([*toy_texts(), "龘"])], tmp_path / "t.model", settings)
    tokenizer = SentencePieceTokenizer(tmp_path / "t.model")
    assert tokenizer.encode("龘") == [0]
    assert tokenizer.space_mark_ids == ()
    assert report.unknown_rate > 0
    assert report.byte_fallback_rate == 0
    assert "龘" in report.common_fallbacks


@pytest.mark.parametrize(
    ("normalization", "expected"),
    [("identity", "Ａ①\u3000\u200b\n"), ("nfkc", "A1 \u200b\n"), ("nmt_nfkc", "A1  \n")],
)
@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_normalization(tmp_path: Path, model_type: str, normalization: str, expected: str) -> None:
    tokenizer = trained(
        tmp_path / "t.model", toy_texts(), normalization=normalization, model_type=model_type, vocab_size=310
    )
    assert tokenizer.decode(tokenizer.encode("Ａ①\u3000\u200b\n")) == expected
    own = sentencepiece.SentencePieceProcessor(model_file=tokenizer.path)
    assert tokenizer.encode("▁ａ") == own.encode("▁ａ") or normalization == "identity"


def test_the_longest_piece_can_be_set(tmp_path: Path) -> None:
    texts = ["中华人民共和国公民有权分久必合"] * 50
    assert len(trained(tmp_path / "2.model", texts, max_piece_characters=2, vocab_size=285).encode(texts[0])) >= 8
    assert len(trained(tmp_path / "15.model", texts, max_piece_characters=15, vocab_size=288).encode(texts[0])) == 1


def test_symbols_are_always_one_token(tmp_path: Path) -> None:
    symbols = ("<|标题|>", "\t", "天下大势")
    tokenizer = trained(tmp_path / "t.model", toy_texts(), symbols=symbols)
    text = "<|标题|>一\t天下大势天下大势\n<|标题"
    ids = tokenizer.encode(text)
    assert [ids.count(number) for number in (3, 4, 5, 2)] == [1, 1, 2, 1]
    assert tokenizer.decode(ids) == text
    assert tokenizer.processor.id_to_piece(6) == "<0x00>"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"symbols": ("a", "a")}, r"symbol 'a' is in the vocabulary already; name each symbol once"),
        ({"symbols": ("\n",)}, r"symbol '\\n' is in the vocabulary already"),
        ({"symbols": ("<|endoftext|>",)}, r"symbol '<\|endoftext\|>' is in the vocabulary already"),
        ({"symbols": ("a b",)}, r"symbol 'a b' is empty or has a space, U\+2581 or NUL; name symbols without"),
        ({"symbols": ("",)}, r"symbol '' is empty"),
        (
            {"symbols": tuple(map(str, range(81)))},
            r"vocabulary size 340 leaves no room beside 256 bytes and 84 symbols",
        ),
        ({"max_piece_characters": 513}, r"the longest piece cannot have 513 characters; use 1 to 512"),
        ({"byte_fallback": False, "vocab_size": 3}, r"vocabulary size 3 leaves no room beside 0 bytes and 3 symbols"),
    ],
)
def test_symbols_and_lengths_that_cannot_work(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        trained(tmp_path / "t.model", toy_texts(), **changes)


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


def test_every_option_of_the_command_reaches_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[TokenizerSettings] = []

    def train(texts: object, output: str, settings: TokenizerSettings) -> None:
        seen.append(settings)
        raise DataError("enough")

    monkeypatch.setattr("megagpt.tokenizer.cli.train_sentencepiece", train)
    (tmp_path / "c.txt").write_text("一")
    command = [str(tmp_path / "c.txt"), "--output", "t.model"]
    assert run_tool(VERBS["train"], command) == 2
    options = ["--vocab-size=9", "--model-type=unigram", "--character-coverage=0.99", "--no-split-digits"]
    options += ["--no-byte-fallback", "--normalization=nfkc", "--max-piece-characters=7", "--symbol=<a>"]
    assert run_tool(VERBS["train"], [*command, *options, "--symbol", "b", "--max-megabytes=3", "--seed=5"]) == 2
    given = TokenizerSettings(9, "unigram", 0.99, False, False, "nfkc", 7, ("<a>", "b"), 3_000_000, 5)
    assert seen == [TokenizerSettings(), given]
    assert all(left != right for left, right in zip(*seen, strict=True))
