"""WordPiece: BERT's ids, plain text, readable Chinese, long texts in slices, damaged vocabularies."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megagpt.errors import DataError
from megagpt.tokenizer import StreamDecoder, load_tokenizer
from megagpt.tokenizer.slices import slices
from megagpt.tokenizer.wordpiece import WORD_BREAK, WordPieceTokenizer
from tests.unit.tokenizer.toy import ALPHABETS, mixed_texts, write_toy_vocabulary

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("".join(ALPHABETS)), max_size=60)


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy_vocabulary(tmp_path_factory.mktemp("wordpiece") / "vocab.txt")


@pytest.fixture(scope="module")
def toy_wordpiece(vocabulary: Path) -> WordPieceTokenizer:
    loaded = load_tokenizer(vocabulary)
    assert isinstance(loaded, WordPieceTokenizer)
    return loaded


@pytest.mark.parametrize("lowercase", [True, False])
def test_ids_are_berts(vocabulary: Path, lowercase: bool) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizerFast(vocab=str(vocabulary), do_lower_case=lowercase)
    ours = WordPieceTokenizer(vocabulary, lowercase)
    texts = mixed_texts(3000)
    expected = theirs(texts, add_special_tokens=False)["input_ids"]
    assert ours.encode_batch(texts) == expected
    assert len({token_id for ids in expected for token_id in ids}) > 100, "the texts must use the vocabulary"
    assert sum(ids.count(1) for ids in expected) > 100, "and have words outside it"


def test_what_the_text_becomes(toy_wordpiece: WordPieceTokenizer, vocabulary: Path) -> None:
    def pieces(tokenizer: WordPieceTokenizer, text: str) -> list[str]:
        return [tokenizer.processor.id_to_token(token_id) for token_id in tokenizer.encode(text)]

    expected = ["中", "国", "quick", "##l", "##y", ",", "the", "a", "##b", "[UNK]"]
    assert pieces(toy_wordpiece, "中国 Quickly,THE\tÁ\u200bb%") == expected
    cased = WordPieceTokenizer(vocabulary, lowercase=False)
    assert pieces(cased, "The the THE é") == ["The", "the", "[UNK]", "é"]
    assert pieces(toy_wordpiece, "a" * 100 + " " + "a" * 101) == ["a", *["##a"] * 99, "[UNK]"]


def test_a_literal_symbol_is_text(toy_wordpiece: WordPieceTokenizer) -> None:
    ids = toy_wordpiece.encode("a[SEP]b [CLS]")
    assert toy_wordpiece.eod_id == 3
    assert not {0, 2, 3, 4} & set(ids)
    assert toy_wordpiece.decode([2, *ids, 3]) == toy_wordpiece.decode(ids)


def test_what_the_tokenizer_says_of_itself(vocabulary: Path, toy_wordpiece: WordPieceTokenizer) -> None:
    cased = load_tokenizer(vocabulary, "wordpiece-cased")
    assert (toy_wordpiece.kind, cased.kind) == ("wordpiece", "wordpiece-cased")
    assert toy_wordpiece.vocab_size == len(vocabulary.read_text().splitlines())
    assert toy_wordpiece.fingerprint != cased.fingerprint, "the ids differ"
    assert toy_wordpiece.fingerprint == load_tokenizer(vocabulary, "wordpiece").fingerprint


def test_decoding_puts_no_space_between_chinese_characters_and_punctuation(toy_wordpiece: WordPieceTokenizer) -> None:
    text = "中国人，the quick 中 2024 国（and）"
    assert toy_wordpiece.decode(toy_wordpiece.encode(text)) == "中国人， the quick 中 2024 国（ and ）"
    assert toy_wordpiece.decode(toy_wordpiece.encode("中龘国")) == "中[UNK]国", "what is unknown is seen"


def test_decoding_differs_from_transformers_by_those_spaces_only(
    vocabulary: Path, toy_wordpiece: WordPieceTokenizer
) -> None:
    transformers = pytest.importorskip("transformers")
    theirs = transformers.BertTokenizerFast(vocab=str(vocabulary))
    latin = "the quick a b 12 the. quick, the"  # the library itself leaves out the space before . and ,
    ids = toy_wordpiece.encode(latin)
    assert 1 not in ids
    assert toy_wordpiece.decode(ids) == theirs.decode(ids) == latin
    for text in mixed_texts(300, seed=5):
        ids = [token_id for token_id in toy_wordpiece.encode(text) if token_id != 1]
        assert toy_wordpiece.decode(ids).replace(" ", "") == theirs.decode(ids).replace(" ", "")


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 148), max_size=30))
@example([3, 3, 40, 3])
def test_a_stream_of_any_ids_equals_decoding_at_once(toy_wordpiece: WordPieceTokenizer, ids: list[int]) -> None:
    stream = StreamDecoder(toy_wordpiece)
    streamed = "".join([stream.push(token_id) for token_id in ids] + [stream.flush()])
    assert streamed == toy_wordpiece.decode(ids)


@settings(max_examples=300, deadline=None)
@given(TEXT)
@example("a e\u0301 \u0301天\u0301")
def test_slices_have_the_ids_of_the_whole(toy_wordpiece: WordPieceTokenizer, text: str) -> None:
    parts = list(slices(text, WORD_BREAK, num_characters=4))
    assert "".join(parts) == text
    joined = [token_id for part in parts for token_id in toy_wordpiece.encode(part)]
    assert joined == toy_wordpiece.encode(text)


def test_a_long_text_is_encoded_in_slices(toy_wordpiece: WordPieceTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "天下the quick " * 40_000
    whole = toy_wordpiece.processor.encode(text, add_special_tokens=False).ids
    sizes: list[int] = []
    encode = toy_wordpiece._encode
    monkeypatch.setattr(toy_wordpiece, "_encode", lambda texts: sizes.append(sum(map(len, texts))) or encode(texts))
    assert toy_wordpiece.encode_batch([text, "天", text], num_threads=2) == [whole, toy_wordpiece.encode("天"), whole]
    assert max(sizes) < 200_000


def test_a_text_without_a_place_to_cut_stays_whole() -> None:
    assert list(slices("a" * 100, WORD_BREAK, 10)) == ["a" * 100]
    assert list(slices("a" * 50 + " " + "b" * 5, WORD_BREAK, 10)) == ["a" * 50, " " + "b" * 5]
    assert list(slices("", WORD_BREAK, 10)) == [""]


def test_a_lone_surrogate_and_an_id_beyond_the_vocabulary(toy_wordpiece: WordPieceTokenizer) -> None:
    with pytest.raises(DataError, match=r"lone surrogate U\+D800 at character 1"):
        toy_wordpiece.encode("a\ud800")
    size = toy_wordpiece.vocab_size
    with pytest.raises(DataError, match=rf"token id {size} does not exist in .*ids 0 to {size - 1}"):
        toy_wordpiece.decode([size])


def test_line_ends_and_a_last_line_without_one(vocabulary: Path, tmp_path: Path) -> None:
    windows = tmp_path / "vocab.txt"
    windows.write_bytes(vocabulary.read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n"))
    text = "中国 the quick"
    assert load_tokenizer(windows).encode(text) == load_tokenizer(vocabulary).encode(text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"vocab.txt is not BERT's vocab.txt: it has no line \[UNK\] and no line \[SEP\]; name the vocabulary"),
        ("[UNK]\n中\n".encode(), r"it has no line \[SEP\]; name the vocabulary file"),
        ("[UNK]\n[SEP]\n中\n".encode("utf-16"), r"is not a vocab.txt: byte 0 is not UTF-8; copy it again"),
    ],
)
def test_a_damaged_vocabulary(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_tokenizer(tmp_path / "vocab.txt")
