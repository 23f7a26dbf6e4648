"""A converted tokenizer gives sentencepiece's ids for any text; models that cannot be converted are refused."""

import io
import sys
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from megagpt.errors import ConfigError
from megagpt.export.huggingface import export_huggingface
from megagpt.export.huggingface_tokenizer import _Piece, merges_of, sentencepiece_to_json
from megagpt.parallel.mesh import Mesh
from megagpt.tokenizer import load_tokenizer
from tests.unit.inference.tiny import LINES, SPEC, VOCAB_SIZE, random_parameters, write_checkpoint

transformers = pytest.importorskip("transformers")

TEXTS = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=LINES, max_size=80),
    st.lists(
        st.sampled_from(
            ["<s>", "</s>", "<unk>", "<|endoftext|>", "<0x0A>", "\n", " ", "  ", "\u2581", "ab", "哈哈", "--"]
        )
    ).map("".join),
)


@pytest.fixture(scope="module")
def converted(tokenizer_path: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_str(sentencepiece_to_json(tokenizer_path))
    tokenizer.encode_special_tokens = True  # what "split_special_tokens" of tokenizer_config.json sets
    return tokenizer


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_ids_are_sentencepieces_and_texts_come_back(
    text: str, converted: tokenizers.Tokenizer, tokenizer_path: Path
) -> None:
    ids = converted.encode(text, add_special_tokens=False).ids
    assert ids == load_tokenizer(tokenizer_path).encode(text)
    if "\u2581" not in text:  # sentencepiece itself cannot tell it from a space
        assert ids == sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path)).encode(text)
    assert converted.decode(ids) == text


def test_the_texts_of_this_test_use_merges_bytes_and_symbols(
    converted: tokenizers.Tokenizer, tokenizer_path: Path
) -> None:
    text = "清晨的薄雾\n\n从河面🎉升起 \u2581 <s> ababab"
    ids = converted.encode(text).ids
    tokens = [converted.id_to_token(token_id) for token_id in ids]
    assert converted.decode(ids) == text
    assert "\n" in tokens
    assert "<0xF0>" in tokens
    assert "<s>" not in tokens
    assert max(map(len, tokens)) > 1


def test_merges_are_every_split_in_order_of_score_longer_left_part_first() -> None:
    pieces = [_Piece("a", -9.0), _Piece("b", -8.0), _Piece("aba", -3.0), _Piece("ba", -2.0), _Piece("ab", -1.0)]
    assert merges_of(pieces) == [("a", "b"), ("b", "a"), ("ab", "a"), ("a", "ba")]


def train_foreign(path: Path, **options: object) -> Path:
    """A model by sentencepiece's own trainer, ours but for `options`."""
    model = io.BytesIO()
    values = {
        "model_type": "bpe",
        "vocab_size": 500,
        "byte_fallback": True,
        "add_dummy_prefix": False,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES.splitlines()), model_writer=model, **(values | options)
    )
    path.write_bytes(model.getvalue())
    return path


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"model_type": "unigram"}, "it is not BPE"),
        ({"byte_fallback": False}, "it has no byte fallback"),
        ({"add_dummy_prefix": True}, "it adds a dummy prefix"),
        ({"remove_extra_whitespaces": True}, "it removes whitespace"),
        ({"normalization_rule_name": "nmt_nfkc"}, r"it normalises text \(nmt_nfkc\)"),
        ({"treat_whitespace_as_suffix": True}, "it treats whitespace as a suffix"),
    ],
)
def test_models_whose_ids_would_differ_are_refused(tmp_path: Path, options: dict[str, object], reason: str) -> None:
    path = train_foreign(tmp_path / "foreign.model", **options)
    with pytest.raises(ConfigError, match=rf"foreign\.model cannot be exported with the same ids: .*{reason}.*; train"):
        sentencepiece_to_json(path)


def test_unused_pieces_are_refused(tmp_path: Path) -> None:
    from sentencepiece import sentencepiece_model_pb2

    path = train_foreign(tmp_path / "foreign.model")
    model = sentencepiece_model_pb2.ModelProto()
    model.ParseFromString(path.read_bytes())
    model.pieces[-1].type = sentencepiece_model_pb2.ModelProto.SentencePiece.UNUSED
    path.write_bytes(model.SerializeToString())
    with pytest.raises(ConfigError, match="it has unused pieces; train the tokenizer with"):
        sentencepiece_to_json(path)


def test_anothers_model_with_the_right_settings_is_converted(tmp_path: Path) -> None:
    path = train_foreign(tmp_path / "foreign.model", user_defined_symbols=["<sep>", "哈哈"], control_symbols=["<mask>"])
    converted = tokenizers.Tokenizer.from_str(sentencepiece_to_json(path))
    converted.encode_special_tokens = True
    for text in ["哈哈哈哈哈", "a<sep>b<mask>c</s>", " <sep> 渔夫", "<sep"]:
        assert converted.encode(text).ids == load_tokenizer(path).encode(text)


def test_protobuf_is_missing(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece.sentencepiece_model_pb2", None)
    monkeypatch.delattr(sentencepiece, "sentencepiece_model_pb2", raising=False)
    with pytest.raises(ConfigError, match=r"needs protobuf .*; install it: pip install 'megagpt\[export\]'"):
        sentencepiece_to_json(tokenizer_path)


def test_a_hugging_face_tokenizer_is_kept_without_what_its_template_adds(tmp_path: Path, mesh: Mesh) -> None:
    vocabulary = {symbol: token_id for token_id, symbol in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    original = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    original.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    original.decoder = tokenizers.decoders.ByteLevel()
    original.add_special_tokens(["<|endoftext|>", "[CLS]"])
    original.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 257)])
    original.enable_truncation(4)
    original.save(str(tmp_path / "tokenizer.json"))
    checkpoint = write_checkpoint(tmp_path / "c", SPEC, random_parameters(SPEC), tmp_path / "tokenizer.json")
    report = export_huggingface(checkpoint, tmp_path / "hf", mesh=mesh)
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    text = "渔夫 [CLS] <|endoftext|>"
    assert loaded(text).input_ids == load_tokenizer(tmp_path / "tokenizer.json").encode(text)
    assert loaded.eos_token == "<|endoftext|>"
    assert report.vocab_size == VOCAB_SIZE > 258, "the model may hold more ids than the tokenizer has"
