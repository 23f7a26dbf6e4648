"""Jieba-BPE: ModelScope's ids, plain text, long texts in slices, what the file must have, jieba missing."""

import json
import marshal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, trainers

from megagpt.errors import DataError
from megagpt.tokenizer import StreamDecoder, load_tokenizer
from megagpt.tokenizer.jieba_bpe import WORD_START, JiebaBpeTokenizer
from megagpt.tokenizer.slices import slices
from tests.unit.tokenizer.toy import ALPHABETS, mixed_texts, toy_texts

jieba = pytest.importorskip("jieba")

TEXT = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("".join(ALPHABETS)), max_size=60)


def byte_level(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()


def byte_level_with_a_space_before_each_word(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()


def metaspace(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()


def metaspace_before_the_first_word(tokenizer: tokenizers.Tokenizer) -> None:
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")


def nothing_but_bpe(tokenizer: tokenizers.Tokenizer) -> None:
    pass


# what a published file may have: each treats a word's beginning, or its characters, in another way
VARIANTS = (
    byte_level,
    byte_level_with_a_space_before_each_word,
    metaspace,
    metaspace_before_the_first_word,
    nothing_but_bpe,
)


def write_jieba_bpe(path: Path, change: Callable[[tokenizers.Tokenizer], None], special_newline: bool = False) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    change(tokenizer)
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<|endoftext|>", "<sep>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if "byte_level" in change.__name__ else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator((word for text in toy_texts() for word in jieba.cut(text)), trainer)
    newline = AddedToken("\n", normalized=False)
    if special_newline:
        tokenizer.add_special_tokens([newline])
    else:
        tokenizer.add_tokens([newline])
    tokenizer.save(str(path))
    return path


@pytest.fixture(scope="module")
def jieba_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jieba_bpe(tmp_path_factory.mktemp("jieba") / "tokenizer.json", byte_level)


@pytest.fixture(scope="module")
def toy_jieba(jieba_file: Path) -> JiebaBpeTokenizer:
    loaded = load_tokenizer(jieba_file, "jieba-bpe")
    assert isinstance(loaded, JiebaBpeTokenizer)
    return loaded


@pytest.mark.parametrize(("change", "special_newline"), [*((change, False) for change in VARIANTS), (byte_level, True)])
def test_ids_are_modelscopes(tmp_path: Path, change: Callable, special_newline: bool) -> None:
    """ModelScope gives the library all of jieba's words at once, and decodes up to the first `<sep>`."""
    path = write_jieba_bpe(tmp_path / "tokenizer.json", change, special_newline)
    theirs = tokenizers.Tokenizer.from_file(str(path))
    ours = JiebaBpeTokenizer(path)
    texts = [*mixed_texts(300), *toy_texts(20)]
    for text, ids in zip(texts, ours.encode_batch(texts), strict=True):
        expected = theirs.encode(list(jieba.cut(text)), is_pretokenized=True, add_special_tokens=True).ids
        assert ids == expected, repr(text)
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert not {ours.eod_id, theirs.token_to_id("<sep>")} & set(ids)


def test_words_are_not_joined(toy_jieba: JiebaBpeTokenizer) -> None:
    plain = tokenizers.Tokenizer.from_file(toy_jieba.path)
    text = "曹操，刘备"
    assert toy_jieba.encode(text) == [
        token_id for word in ("曹操", "，", "刘备") for token_id in plain.encode(word).ids
    ]
    newline = plain.token_to_id("\n")
    assert toy_jieba.encode("\n\r\n \n").count(newline) == 3


@settings(max_examples=200, deadline=None)
@given(TEXT)
@example("<sep><|endoftext|>\n<unk>")
@example("\r\n\r \u3000x\n")
def test_decoding_and_streaming_give_the_text_back(toy_jieba: JiebaBpeTokenizer, text: str) -> None:
    ids = toy_jieba.encode(text)
    assert toy_jieba.decode(ids) == text
    stream = StreamDecoder(toy_jieba)
    assert "".join([stream.push(token_id) for token_id in ids] + [stream.flush()]) == text


def test_control_symbols_give_no_text(toy_jieba: JiebaBpeTokenizer) -> None:
    """ModelScope stops at `<sep>`; a row of training data goes on after it."""
    separator = toy_jieba.processor.token_to_id("<sep>")
    ids = toy_jieba.encode("刘备")
    assert toy_jieba.decode([*ids, separator, *ids, toy_jieba.eod_id]) == "刘备刘备"
    assert toy_jieba.processor.id_to_token(toy_jieba.eod_id) == "<|endoftext|>"


@settings(max_examples=200, deadline=None)
@given(TEXT)
@example("\r\n" * 20)
@example("曹操\r\n刘备 a\r\r\nb-c")
def test_slices_have_the_ids_of_the_whole(toy_jieba: JiebaBpeTokenizer, text: str) -> None:
    parts = list(slices(text, WORD_START, num_characters=4))
    assert "".join(parts) == text
    assert [token_id for part in parts for token_id in toy_jieba.encode(part)] == toy_jieba.encode(text)


def test_a_long_text_is_encoded_in_slices(toy_jieba: JiebaBpeTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "刘备，the quick\r\n" * 30_000
    line = toy_jieba.encode(text[:14])
    sizes: list[int] = []
    encode = toy_jieba._encode
    monkeypatch.setattr(toy_jieba, "_encode", lambda texts: sizes.append(sum(map(len, texts))) or encode(texts))
    assert toy_jieba.encode_batch(["", text]) == [[], line * 30_000]
    assert max(sizes) < 200_000


def test_the_cache_of_words_is_bounded(toy_jieba: JiebaBpeTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = mixed_texts(200, seed=3)
    expected = [toy_jieba.encode(text) for text in texts]
    monkeypatch.setattr("megagpt.tokenizer.jieba_bpe._MAX_CACHE_SIZE", 500)
    assert [toy_jieba.encode(text) for text in texts] == expected
    assert len(toy_jieba._ids_of_word) < 200


def test_the_dictionary_does_not_come_from_the_temporary_folder(
    jieba_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """jieba itself reads jieba.cache there, whichever version of it wrote that."""
    expected = JiebaBpeTokenizer(jieba_file).encode("我来到北京清华大学")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    word = "我来到北京"
    frequencies = {word[:length]: 9 * (word[:length] == word) for length in range(1, len(word) + 1)}
    (tmp_path / "jieba.cache").write_bytes(marshal.dumps((frequencies, 9)))
    assert next(jieba.Tokenizer().cut("我来到北京清华大学")) == "我来到北京", "jieba must have been misled"
    assert JiebaBpeTokenizer(jieba_file).encode("我来到北京清华大学") == expected


def test_the_fingerprint_covers_the_words_too(
    jieba_file: Path, toy_jieba: JiebaBpeTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert toy_jieba.fingerprint == JiebaBpeTokenizer(jieba_file).fingerprint
    assert toy_jieba.fingerprint != load_tokenizer(jieba_file, "huggingface").fingerprint
    monkeypatch.setattr(jieba, "__version__", "0.40")
    assert toy_jieba.fingerprint != JiebaBpeTokenizer(jieba_file).fingerprint


def test_what_the_tokenizer_says_of_itself(toy_jieba: JiebaBpeTokenizer) -> None:
    assert toy_jieba.kind == "jieba-bpe"
    assert toy_jieba.vocab_size == toy_jieba.processor.get_vocab_size(with_added_tokens=True)
    with pytest.raises(DataError, match=r"lone surrogate U\+DC00 at character 0"):
        toy_jieba.encode("\udc00")
    size = toy_jieba.vocab_size
    with pytest.raises(DataError, match=rf"token id {size} does not exist in .*ids 0 to {size - 1}"):
        toy_jieba.decode([size])


def test_without_jieba(jieba_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jieba", None)
    with pytest.raises(DataError, match=r"needs jieba \(.*\); install it: pip install 'megagpt\[jieba\]'"):
        JiebaBpeTokenizer(jieba_file)


def test_a_file_that_is_another_tokenizer(jieba_file: Path, tmp_path: Path) -> None:
    content = json.loads(jieba_file.read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "\n"]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(DataError, match=r"is not a Jieba-BPE tokenizer: its vocabulary lacks '\\n'; name the"):
        load_tokenizer(path, "jieba-bpe")
    path.write_text("{}")
    with pytest.raises(DataError, match=r"is not a Hugging Face tokenizer.json, or is damaged"):
        load_tokenizer(path, "jieba-bpe")
