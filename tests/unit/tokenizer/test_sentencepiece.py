"""SentencePiece tokenizers: ids, round trips, control symbols, damage, streaming."""

import hashlib
import io
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from megagpt.errors import DataError
from megagpt.tokenizer import StreamDecoder, load_tokenizer
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.tokenizer.toy import toy_texts

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from(" \n\t▁▅中国😀<>|s\0"), max_size=60)


@settings(max_examples=400, deadline=None)
@given(TEXT)
@example("")
@example(" ")
@example("  两  个 空格 ")
@example("\n\n一\r\n\t二\n")
@example("😀👩‍👩‍👧")
@example("▁ ▁▁ x▁")
@example("\ufeff\uffff\ufdd0\U0010ffff\0\ufffd")
@example("<s></s><unk><|endoftext|><0x0A>")
def test_decoding_gives_the_text_back(toy_tokenizer: SentencePieceTokenizer, text: str) -> None:
    ids = toy_tokenizer.encode(text)
    assert toy_tokenizer.decode(ids) == text
    assert toy_tokenizer.eod_id not in ids
    assert all(0 <= token_id < toy_tokenizer.vocab_size for token_id in ids)


@settings(max_examples=200, deadline=None)
@given(TEXT)
@example("a\ufffdb\ufffd")
def test_a_stream_gives_the_same_text_and_only_whole_characters(
    toy_tokenizer: SentencePieceTokenizer, text: str
) -> None:
    stream = StreamDecoder(toy_tokenizer)
    pieces = [stream.push(token_id) for token_id in toy_tokenizer.encode(text)]
    assert "".join(pieces) + stream.flush() == text
    if "\ufffd" not in text:
        assert "\ufffd" not in "".join(pieces)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, 339), max_size=30))
def test_a_stream_of_any_ids_equals_decoding_at_once(toy_tokenizer: SentencePieceTokenizer, ids: list[int]) -> None:
    stream = StreamDecoder(toy_tokenizer)
    streamed = "".join([stream.push(token_id) for token_id in ids] + [stream.flush()])
    assert streamed == toy_tokenizer.decode(ids)


def test_a_stream_holds_a_character_back_until_its_last_byte(toy_tokenizer: SentencePieceTokenizer) -> None:
    ids = toy_tokenizer.encode("龘")
    assert len(ids) == 3, "the character must be outside the toy vocabulary"
    stream = StreamDecoder(toy_tokenizer)
    assert [stream.push(token_id) for token_id in ids] == ["", "", "龘"]
    assert stream.flush() == ""
    cut = StreamDecoder(toy_tokenizer)
    assert [cut.push(token_id) for token_id in ids[:2]] == ["", ""]
    assert set(cut.flush()) == {"\ufffd"}


def test_a_batch_equals_single_texts_on_any_number_of_threads(toy_tokenizer: SentencePieceTokenizer) -> None:
    texts = [*toy_texts(40, seed=9), "", "▁标记▁", "plain"]
    expected = [toy_tokenizer.encode(text) for text in texts]
    assert toy_tokenizer.encode_batch(texts) == expected
    assert toy_tokenizer.encode_batch(texts, num_threads=3) == expected


def test_ids_are_sentencepieces_own_where_the_text_has_no_space_mark(toy_tokenizer: SentencePieceTokenizer) -> None:
    own = sentencepiece.SentencePieceProcessor(model_file=toy_tokenizer.path)
    for text in toy_texts(40, seed=3):
        assert toy_tokenizer.encode(text) == own.encode(text)


def test_what_the_tokenizer_says_of_itself(toy_tokenizer: SentencePieceTokenizer) -> None:
    assert toy_tokenizer.kind == "sentencepiece"
    assert toy_tokenizer.vocab_size == 340
    assert toy_tokenizer.eod_id == 1
    assert toy_tokenizer.fingerprint == hashlib.sha256(Path(toy_tokenizer.path).read_bytes()).hexdigest()
    assert toy_tokenizer.decode([toy_tokenizer.eod_id]) == ""
    assert toy_tokenizer.model_bytes == Path(toy_tokenizer.path).read_bytes()
    assert toy_tokenizer.space_mark_ids == tuple(toy_tokenizer.encode("▁"))
    assert load_tokenizer(Path(toy_tokenizer.path).parent).fingerprint == toy_tokenizer.fingerprint


@pytest.mark.parametrize("wrong", [-1, 340, 10**6])
def test_an_id_beyond_the_vocabulary(toy_tokenizer: SentencePieceTokenizer, wrong: int) -> None:
    with pytest.raises(DataError, match=rf"token id {wrong} does not exist in .*ids 0 to 339"):
        toy_tokenizer.decode([5, wrong])


def test_a_lone_surrogate(toy_tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(DataError, match=r"lone surrogate U\+D800 at character 2"):
        toy_tokenizer.encode("ab\ud800")


def foreign_model(path: Path, **settings_of_trainer: object) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(toy_texts()).split("\n")),
        model_writer=model,
        model_type="unigram",
        vocab_size=85,
        minloglevel=2,
        **settings_of_trainer,
    )
    path.write_bytes(model.getvalue())


def test_another_ones_model_is_encoded_as_sentencepiece_does(tmp_path: Path) -> None:
    path = tmp_path / "foreign.model"
    foreign_model(path)
    tokenizer = load_tokenizer(path)
    own = sentencepiece.SentencePieceProcessor(model_file=str(path))
    text = "  刘备▁the  quick fox，公民"
    assert tokenizer.encode(text) == own.encode(text)
    assert isinstance(tokenizer, SentencePieceTokenizer)
    assert tokenizer.space_mark_ids == ()
    assert tokenizer.eod_id == own.eos_id() == 2
    ids = [*own.encode("the quick 刘备"), tokenizer.eod_id, *own.encode("fox")]
    assert tokenizer.decode(ids) == "the quick 刘备 fox"
    stream = StreamDecoder(tokenizer)
    assert "".join([stream.push(token_id) for token_id in ids] + [stream.flush()]) == tokenizer.decode(ids)


def test_a_model_without_an_end_symbol(tmp_path: Path) -> None:
    path = tmp_path / "foreign.model"
    foreign_model(path, eos_id=-1)
    with pytest.raises(DataError, match=r"foreign.model has no symbol to end a document with; train it with"):
        load_tokenizer(path)


@pytest.mark.parametrize("content", [b"", b"not a model", None])
def test_a_damaged_model(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer, content: bytes | None) -> None:
    path = tmp_path / "broken.model"
    model = Path(toy_tokenizer.path).read_bytes()
    path.write_bytes(model[: len(model) // 2] if content is None else content)
    with pytest.raises(DataError, match=r"broken.model is not a SentencePiece model, or is damaged .*train a new one"):
        load_tokenizer(path)
