"""Which tokenizer a file or a folder is, and when that must be said."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import tokenizers
from tokenizers import models

from megagpt.errors import DataError
from megagpt.tokenizer import load_tokenizer
from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer
from tests.unit.tokenizer.toy import write_toy_vocabulary


def write_json(path: Path, symbols: list[str]) -> Path:
    tokenizer = tokenizers.Tokenizer(models.BPE({"a": 0}, []))
    tokenizer.add_special_tokens(symbols)
    tokenizer.save(str(path))
    return path


def test_a_folder_is_the_tokenizer_in_it(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    with pytest.raises(DataError, match=r"has no tokenizer.model and no tokenizer.json and no vocab.txt; name the"):
        load_tokenizer(tmp_path)
    write_toy_vocabulary(tmp_path / "vocab.txt")
    assert load_tokenizer(tmp_path).kind == "wordpiece"
    (tmp_path / "tokenizer.model").write_bytes(toy_tokenizer.model_bytes)
    with pytest.raises(DataError, match=r"has tokenizer.model and vocab.txt; name the one that is meant"):
        load_tokenizer(tmp_path)
    assert load_tokenizer(tmp_path, "wordpiece-cased").kind == "wordpiece-cased"
    assert load_tokenizer(tmp_path, "sentencepiece").fingerprint == toy_tokenizer.fingerprint
    with pytest.raises(DataError, match=r"has no tokenizer.json; name the tokenizer file"):
        load_tokenizer(tmp_path, "jieba-bpe")


def test_a_name_that_says_nothing_needs_a_kind(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer file .*none.model does not exist; train one with"):
        load_tokenizer(tmp_path / "none.model")
    path = write_toy_vocabulary(tmp_path / "chinese.txt")
    with pytest.raises(DataError, match=r"cannot tell what kind of tokenizer .*chinese.txt is; write KIND:/"):
        load_tokenizer(path)
    assert load_tokenizer(path, "wordpiece").kind == "wordpiece"


def test_the_kind_can_stand_before_the_path(tmp_path: Path, toy_tokenizer: SentencePieceTokenizer) -> None:
    path = write_toy_vocabulary(tmp_path / "chinese.txt")
    assert load_tokenizer(f"wordpiece-cased:{path}").kind == "wordpiece-cased"
    loaded = load_tokenizer(f"sentencepiece:{Path(toy_tokenizer.path).parent}")
    assert (loaded.kind, loaded.path) == ("sentencepiece", toy_tokenizer.path)
    with pytest.raises(DataError, match=r"tokenizer file unigram:.*chinese.txt does not exist"):
        load_tokenizer(f"unigram:{path}")


def test_a_checkpoint_says_which_kind_its_copy_is(tmp_path: Path) -> None:
    path = write_toy_vocabulary(tmp_path / "vocab.txt")
    (tmp_path / "manifest.json").write_text(json.dumps({"tokenizer_kind": "wordpiece-cased"}))
    assert load_tokenizer(path).kind == load_tokenizer(tmp_path).kind == "wordpiece-cased"
    assert load_tokenizer(path, "wordpiece").kind == "wordpiece", "what is said counts"


def test_jieba_bpe_is_never_guessed_from_the_file(tmp_path: Path) -> None:
    path = write_json(tmp_path / "tokenizer.json", ["<|endoftext|>", "<sep>"])
    assert load_tokenizer(path).kind == "huggingface", "without a newline it cannot be Jieba-BPE"
    write_json(path, ["<|endoftext|>", "<sep>", "\n"])
    with pytest.raises(DataError, match=r"can be a Jieba-BPE tokenizer.* or a plain one.* write jieba-bpe:/.* or hug"):
        load_tokenizer(path)
    assert load_tokenizer(path, "huggingface").kind == "huggingface"


def test_modelscopes_configuration_says_that_it_is_jieba_bpe(tmp_path: Path) -> None:
    pytest.importorskip("jieba")
    path = write_json(tmp_path / "tokenizer.json", ["<|endoftext|>", "<sep>", "\n"])
    configuration = tmp_path / "configuration.json"
    configuration.write_text(json.dumps({"preprocessor": {"type": "text-gen-tokenizer"}}))
    with pytest.raises(DataError, match=r"can be a Jieba-BPE tokenizer"):
        load_tokenizer(path)
    configuration.write_text(json.dumps({"preprocessor": {"type": "text-gen-jieba-tokenizer"}}))
    assert load_tokenizer(path).kind == "jieba-bpe"
    assert load_tokenizer(tmp_path, "huggingface").kind == "huggingface", "what is said counts"
    configuration.write_text("{")
    with pytest.raises(DataError, match=r"configuration.json is damaged \(.*\); copy it again"):
        load_tokenizer(path)


def test_the_settings_beside_a_vocabulary_are_transformers(tmp_path: Path) -> None:
    path = write_toy_vocabulary(tmp_path / "vocab.txt")
    settings = tmp_path / "tokenizer_config.json"
    for value, kind in ((False, "wordpiece-cased"), (True, "wordpiece")):
        settings.write_text(json.dumps({"do_lower_case": value, "strip_accents": None}))
        assert load_tokenizer(path).kind == kind
    settings.write_text(json.dumps({"do_lower_case": True, "strip_accents": False}))
    with pytest.raises(DataError, match=r"tokenizer_config.json sets strip_accents to false, which is not supported"):
        load_tokenizer(path)
    settings.write_text(json.dumps({"tokenize_chinese_chars": False}))
    with pytest.raises(DataError, match=r"sets tokenize_chinese_chars to false, which is not supported; remove it"):
        load_tokenizer(path)
    assert load_tokenizer(path, "wordpiece").kind == "wordpiece"


def test_nothing_is_imported_before_it_is_needed(toy_tokenizer: SentencePieceTokenizer) -> None:
    libraries = {"torch", "tokenizers", "sentencepiece", "jieba", "transformers", "numpy", "pydantic"}
    program = (
        "import sys; from megagpt.tokenizer import load_tokenizer; before = set(sys.modules); "
        f"load_tokenizer({toy_tokenizer.path!r}); "
        f"print(sorted({libraries!r} & before), sorted({libraries!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[] ['sentencepiece']\n"
