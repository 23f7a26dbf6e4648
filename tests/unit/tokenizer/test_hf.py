"""Hugging Face tokenizers: plain text in, control symbols never, streaming, damage."""

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from megagpt.errors import DataError
from megagpt.tokenizer import StreamDecoder, load_tokenizer
from megagpt.tokenizer.hf import HuggingFaceTokenizer
from tests.unit.tokenizer.toy import toy_texts


def byte_level(special: str = "<|endoftext|>") -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[special], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(toy_texts(), trainer)
    return tokenizer


@pytest.fixture(scope="module")
def hf_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> HuggingFaceTokenizer:
    path = tmp_path_factory.mktemp("hf") / "tokenizer.json"
    tokenizer = byte_level()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(path))
    loaded = load_tokenizer(path)
    assert isinstance(loaded, HuggingFaceTokenizer)
    return loaded


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_decoding_and_streaming_give_the_text_back(hf_tokenizer: HuggingFaceTokenizer, text: str) -> None:
    ids = hf_tokenizer.encode(text)
    assert hf_tokenizer.decode(ids) == text
    stream = StreamDecoder(hf_tokenizer)
    assert "".join([stream.push(token_id) for token_id in ids] + [stream.flush()]) == text


def test_nothing_is_added_cut_or_read_as_control(hf_tokenizer: HuggingFaceTokenizer) -> None:
    text = "<|endoftext|>中国😀" * 3
    ids = hf_tokenizer.encode(text)
    assert hf_tokenizer.eod_id == 0
    assert 0 not in ids
    assert hf_tokenizer.decode([0, *ids, 0]) == text
    assert hf_tokenizer.encode_batch([text, ""], num_threads=2) == [ids, []]
    assert (hf_tokenizer.kind, hf_tokenizer.vocab_size) == ("huggingface", 320)


def test_errors(hf_tokenizer: HuggingFaceTokenizer, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"token id 320 does not exist in .*ids 0 to 319"):
        hf_tokenizer.decode([320])
    with pytest.raises(DataError, match=r"lone surrogate U\+DC00 at character 0"):
        hf_tokenizer.encode("\udc00")
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer.json is not a Hugging Face tokenizer.json, or is damaged"):
        load_tokenizer(path)
    byte_level(special="<end>").save(str(path))
    with pytest.raises(DataError, match=r"has no symbol to end a document with; add one of <\|endoftext\|>, <eod>"):
        load_tokenizer(path)
    byte_level().save(str(path))
    content = json.loads(path.read_text())
    content["added_tokens"][0]["special"] = False
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"encodes a literal <\|endoftext\|> in a text as the end of a document; mark"):
        load_tokenizer(path)
