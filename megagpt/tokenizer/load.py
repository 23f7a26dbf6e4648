"""From a tokenizer file to a Tokenizer, by its kind or what lies beside it; the libraries are imported when needed."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

from megagpt.errors import DataError
from megagpt.tokenizer.protocol import Tokenizer, TokenizerKind

KINDS: tuple[TokenizerKind, ...] = get_args(TokenizerKind)
# What a tokenizer's file is called; two kinds can share a name.
FILE_NAMES: Mapping[TokenizerKind, str] = MappingProxyType(
    {
        "sentencepiece": "tokenizer.model",
        "huggingface": "tokenizer.json",
        "jieba-bpe": "tokenizer.json",
        "wordpiece": "vocab.txt",
        "wordpiece-cased": "vocab.txt",
    }
)
_NAMES = ("tokenizer.model", "tokenizer.json", "vocab.txt")
_MODELSCOPE_JIEBA = "text-gen-jieba-tokenizer"  # preprocessor.type in ModelScope's configuration.json


def load_tokenizer(path: str | Path, kind: TokenizerKind | None = None) -> Tokenizer:
    """The tokenizer in `path`, a file or a folder with a `tokenizer.model`, `tokenizer.json` or `vocab.txt`.

    A user names the kind before the path, as in `jieba-bpe:tokenizer.json`; a program can give it as `kind`. Else it is
    what the manifest of a checkpoint beside the file says, or that of the name: `*.model` is SentencePiece; `*.json`
    Hugging Face's or, where ModelScope's configuration.json beside it says so, Jieba-BPE; `vocab.txt` WordPiece,
    lower-casing unless the tokenizer_config.json beside it says otherwise. Raises DataError, also where the kind
    cannot be told.
    """
    if kind is None:
        kind, path = split_kind(path)
    file = Path(path)
    if file.is_dir():
        file = _file_in_folder(file, kind)
    if not file.is_file():
        raise DataError(
            f"tokenizer file {file} does not exist; train one with `python data_tools/train_tokenizer.py` or correct "
            "tokenizer.path"
        )
    return _load(file, kind) if kind else _load_by_name(file)


def split_kind(path: str | Path) -> tuple[TokenizerKind | None, Path]:
    """The kind before a path, as in `jieba-bpe:tokenizer.json`, and the path itself."""
    for kind in KINDS:
        if str(path).startswith(f"{kind}:"):
            return kind, Path(str(path)[len(kind) + 1 :])
    return None, Path(path)


def _load(file: Path, kind: TokenizerKind) -> Tokenizer:
    if kind == "sentencepiece":
        from megagpt.tokenizer.sentencepiece import SentencePieceTokenizer

        return SentencePieceTokenizer(file)
    if kind == "huggingface":
        from megagpt.tokenizer.hf import HuggingFaceTokenizer

        return HuggingFaceTokenizer(file)
    if kind == "jieba-bpe":
        from megagpt.tokenizer.jieba_bpe import JiebaBpeTokenizer

        return JiebaBpeTokenizer(file)
    from megagpt.tokenizer.wordpiece import WordPieceTokenizer

    return WordPieceTokenizer(file, lowercase=kind == "wordpiece")


def _load_by_name(file: Path) -> Tokenizer:
    saved_as = _read_json(file.with_name("manifest.json")).get("tokenizer_kind")  # of a checkpoint of ours
    if saved_as in KINDS:
        return _load(file, saved_as)
    if file.suffix == ".model":
        return _load(file, "sentencepiece")
    if file.name == "vocab.txt":
        return _load(file, _wordpiece_kind(file))
    if file.suffix == ".json":
        return _load_json(file)
    raise DataError(
        f"cannot tell what kind of tokenizer {file} is; write KIND:{file}, where KIND is {', '.join(KINDS)}, or name a "
        "SentencePiece model `*.model`, a Hugging Face tokenizer `tokenizer.json` and a BERT vocabulary `vocab.txt`"
    )


def _load_json(file: Path) -> Tokenizer:
    """Hugging Face's or Jieba-BPE. Their files look alike, their ids differ; so it is never guessed from the file."""
    preprocessor = _read_json(file.with_name("configuration.json")).get("preprocessor")
    if isinstance(preprocessor, dict) and preprocessor.get("type") == _MODELSCOPE_JIEBA:
        return _load(file, "jieba-bpe")
    if _can_be_jieba_bpe(file):
        raise DataError(
            f"{file} can be a Jieba-BPE tokenizer, as ModelScope's, or a plain one: its vocabulary has the symbols of "
            f"both; write jieba-bpe:{file} or huggingface:{file}"
        )
    return _load(file, "huggingface")


def _can_be_jieba_bpe(file: Path) -> bool:
    from megagpt.tokenizer.hf import read_tokenizer_json
    from megagpt.tokenizer.jieba_bpe import SEPARATOR, SYMBOLS

    content = file.read_bytes()
    if SEPARATOR.encode() not in content:  # most files are read once
        return False
    processor = read_tokenizer_json(content, str(file))
    return all(processor.token_to_id(symbol) is not None for symbol in SYMBOLS)


def _wordpiece_kind(file: Path) -> TokenizerKind:
    """What transformers' BertTokenizer makes of the same folder. Raises DataError for settings of it we do not have."""
    settings_file = file.with_name("tokenizer_config.json")
    settings = _read_json(settings_file)
    lowercase = settings.get("do_lower_case", True)
    for name, only in (("tokenize_chinese_chars", True), ("strip_accents", None)):
        value = settings.get(name, only)
        if value is not only:
            raise DataError(f"{settings_file} sets {name} to {json.dumps(value)}, which is not supported; remove it")
    return "wordpiece" if lowercase else "wordpiece-cased"


def _read_json(file: Path) -> dict[str, Any]:
    """The object in a file of settings; empty where there is no such file. Raises DataError where it is damaged."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{file} is damaged ({error}); copy it again, or write KIND:FILE") from error
    return values if isinstance(values, dict) else {}


def _file_in_folder(folder: Path, kind: TokenizerKind | None) -> Path:
    names = (FILE_NAMES[kind],) if kind else _NAMES
    found = [name for name in names if (folder / name).is_file()]
    if len(found) == 1:
        return folder / found[0]
    if not found:
        raise DataError(f"folder {folder} has no {' and no '.join(names)}; name the tokenizer file")
    raise DataError(f"folder {folder} has {' and '.join(found)}; name the one that is meant")
