"""Train a SentencePiece tokenizer. In: texts. Out: a model file and a report of how it does on held-out text.

The default settings make ids portable: BPE, identity normalisation, no dummy prefix, byte fallback and pieces of at
most 10 characters are what llama.cpp, CTranslate2 and Hugging Face tokenizers reproduce exactly.
"""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import sentencepiece

from megagpt.errors import DataError
from megagpt.tokenizer.checks import check_unicode
from megagpt.tokenizer.protocol import END_OF_DOCUMENT
from megagpt.tokenizer.report import TokenizerReport, judge
from megagpt.tokenizer.sampling import sample_texts
from megagpt.tokenizer.sentencepiece import SPACE_MARK, SentencePieceTokenizer

Normalization = Literal["identity", "nfkc", "nmt_nfkc"]
_LINE_CHARACTERS = 1000  # sentencepiece leaves out training lines over 4192 bytes; a character has at most 4
_HELD_OUT_BYTES = 4_000_000
_BYTE_PIECES = 256
_LONGEST_PIECE = 512  # sentencepiece's own limit
_UNKNOWN = "<unk>"
NEWLINE = "\n"


class TokenizerSettings(NamedTuple):
    """What is trained, and on how much.

    The BPE trainer takes about 27 bytes of memory per byte of training text (measured on 81 MB).
    """

    vocab_size: int = 32_000
    model_type: Literal["bpe", "unigram"] = "bpe"
    character_coverage: float = 0.9995  # share of the text's characters that get pieces of their own
    split_digits: bool = True
    byte_fallback: bool = True  # characters without a piece become their bytes; else the unknown token
    normalization: Normalization = "identity"
    max_piece_characters: int = 10  # llama-cpp-python drops pieces over 32 bytes; 10 Chinese characters are 30
    symbols: tuple[str, ...] = ()  # texts that are always one token
    max_training_bytes: int = 100_000_000
    seed: int = 1234


def train_sentencepiece(texts: Iterable[str], output: str | Path, settings: TokenizerSettings) -> TokenizerReport:
    """Train on a sample of `texts` and write the model to `output` (`*.model`), atomically.

    The same texts and settings give the same file. Ids: 0 unknown, 1 end of document, 2 newline, then the symbols, then
    256 bytes, then pieces. Raises DataError where the corpus cannot give such a vocabulary.
    """
    path = Path(output)
    _check_settings(path, settings)
    sample = sample_texts(texts, settings.max_training_bytes, _HELD_OUT_BYTES, settings.seed)
    training = sample.training or sample.held_out
    if not any(piece.strip() for piece in training):
        raise DataError("the corpus has no text to train a tokenizer on; name files with text")
    model = _train(training, settings)
    _write(path, model)
    held_out = sample.held_out if sample.training else []
    return judge(
        SentencePieceTokenizer(path),
        held_out or training,
        judged_on="held-out text" if held_out else "training text (too little to hold any out)",
        corpus_bytes=sample.corpus_bytes,
        training_bytes=sample.training_bytes or sample.corpus_bytes,
    )


def _write(path: Path, model: bytes) -> None:
    """All or nothing. Raises DataError."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(model)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise DataError(
            f"the tokenizer cannot be written to {path}: {error.strerror}; free space there, or choose another output"
        ) from error


def _check_settings(path: Path, settings: TokenizerSettings) -> None:
    if path.suffix != ".model":
        raise DataError(f"output {path} must end in .model; write {path}.model")
    if not 0.98 <= settings.character_coverage <= 1:  # sentencepiece takes no less
        raise DataError(f"character coverage {settings.character_coverage} is not in [0.98, 1]; use 0.9995 for Chinese")
    if not 1 <= settings.max_piece_characters <= _LONGEST_PIECE:
        raise DataError(
            f"the longest piece cannot have {settings.max_piece_characters} characters; use 1 to {_LONGEST_PIECE}"
        )
    _check_symbols(settings.symbols)
    num_bytes = _BYTE_PIECES if settings.byte_fallback else 0
    taken = num_bytes + len(settings.symbols) + 3
    if settings.vocab_size <= taken:
        raise DataError(
            f"vocabulary size {settings.vocab_size} leaves no room beside {num_bytes} bytes and {taken - num_bytes} "
            "symbols; use 8000 or more"
        )


def _check_symbols(symbols: tuple[str, ...]) -> None:
    for number, symbol in enumerate(symbols):
        check_unicode(symbol)
        if not symbol or " " in symbol or SPACE_MARK in symbol or "\0" in symbol:
            raise DataError(f"symbol {symbol!r} is empty or has a space, U+2581 or NUL; name symbols without them")
        if symbol in (_UNKNOWN, END_OF_DOCUMENT, NEWLINE, *symbols[:number]):
            raise DataError(f"symbol {symbol!r} is in the vocabulary already; name each symbol once")


def _train(pieces: list[str], settings: TokenizerSettings) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(pieces),
            model_writer=model,
            model_type=settings.model_type,
            vocab_size=settings.vocab_size,
            character_coverage=settings.character_coverage,
            byte_fallback=settings.byte_fallback,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name=settings.normalization,
            max_sentencepiece_length=settings.max_piece_characters,
            split_digits=settings.split_digits,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=END_OF_DOCUMENT,
            unk_piece=_UNKNOWN,
            user_defined_symbols=[NEWLINE, *settings.symbols],
            required_chars=SPACE_MARK,  # a corpus without spaces would else give a model that decodes them wrongly
            input_sentence_size=0,  # the sample is drawn by sampling.py
            shuffle_input_sentence=False,
            num_threads=1,  # written into the model file, so it must not depend on the machine
            minloglevel=2,
        )
    except RuntimeError as error:
        if "Vocabulary size" not in str(error):
            raise
        raise DataError(
            f"cannot train a tokenizer of {settings.vocab_size} ids on this corpus: {_reason(error)}; "
            "change --vocab-size, or use more text"
        ) from error
    return model.getvalue()


def _reason(error: RuntimeError) -> str:
    """sentencepiece's own words without its source line."""
    return str(error).rsplit("] ", 1)[-1].strip().rstrip(".")


def _training_lines(pieces: list[str]) -> Iterator[str]:
    for piece in pieces:
        for line in piece.split("\n"):
            for start in range(0, len(line), _LINE_CHARACTERS):
                yield line[start : start + _LINE_CHARACTERS]
