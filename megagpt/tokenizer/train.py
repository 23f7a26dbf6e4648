"""Train a SentencePiece tokenizer. In: texts. Out: a model file and a report of how it does on held-out text.

The settings make ids portable: identity normalisation, no dummy prefix, byte fallback and pieces of at most 10
characters are what llama.cpp, CTranslate2 and Hugging Face tokenizers reproduce exactly.
"""

import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import sentencepiece

from megagpt.errors import DataError
from megagpt.tokenizer.protocol import END_OF_DOCUMENT
from megagpt.tokenizer.sampling import sample_texts
from megagpt.tokenizer.sentencepiece import SPACE_MARK, SentencePieceTokenizer

MAX_PIECE_CHARACTERS = 10  # llama-cpp-python's detokenizer drops pieces over 32 bytes; 10 CJK characters are 30
_LINE_CHARACTERS = 1000  # sentencepiece leaves out training lines over 4192 bytes; a character has at most 4
_HELD_OUT_BYTES = 4_000_000
_BYTE_PIECES = 256


class TokenizerSettings(NamedTuple):
    """What is trained. `character_coverage`: share of the text's characters that get pieces; the others are bytes.

    The BPE trainer takes about 27 bytes of memory per byte of training text (measured on 81 MB).
    """

    vocab_size: int = 32_000
    model_type: Literal["bpe", "unigram"] = "bpe"
    character_coverage: float = 0.9995
    max_training_bytes: int = 100_000_000
    seed: int = 1234


class TokenizerReport(NamedTuple):
    """How a trained tokenizer does. Rates are shares of the tokens of the text it was judged on."""

    path: str
    fingerprint: str
    vocab_size: int
    corpus_bytes: int
    training_bytes: int
    judged_on: str  # "held-out text", or "training text" where the corpus is too small to hold any out
    judged_bytes: int
    characters_per_token: float
    bytes_per_token: float
    unknown_rate: float
    byte_fallback_rate: float

    def lines(self) -> list[str]:
        """The report in words."""
        return [
            f"tokenizer      {self.path} ({self.vocab_size} ids, sha256 {self.fingerprint[:16]}…)",
            f"trained on     {self.training_bytes / 1e6:.2f} MB of the corpus's {self.corpus_bytes / 1e6:.2f} MB",
            f"judged on      {self.judged_bytes / 1e6:.3f} MB of {self.judged_on}",
            f"compression    {self.characters_per_token:.3f} characters/token, {self.bytes_per_token:.3f} bytes/token",
            f"unknown        {self.unknown_rate:.4%} of tokens",
            f"byte fallback  {self.byte_fallback_rate:.4%} of tokens",
        ]


def train_sentencepiece(texts: Iterable[str], output: str | Path, settings: TokenizerSettings) -> TokenizerReport:
    """Train on a sample of `texts` and write the model to `output` (`*.model`), atomically.

    The same texts and settings give the same file. Ids: 0 unknown, 1 end of document, 2 newline, then 256 bytes, then
    pieces. Raises DataError where the corpus cannot give such a vocabulary.
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
    return _judge(
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
    if settings.vocab_size <= _BYTE_PIECES + 3:
        raise DataError(
            f"vocabulary size {settings.vocab_size} leaves no room beside {_BYTE_PIECES} bytes and 3 symbols; "
            "use 8000 or more"
        )


def _train(pieces: list[str], settings: TokenizerSettings) -> bytes:
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_training_lines(pieces),
            model_writer=model,
            model_type=settings.model_type,
            vocab_size=settings.vocab_size,
            character_coverage=settings.character_coverage,
            byte_fallback=True,
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            max_sentencepiece_length=MAX_PIECE_CHARACTERS,
            split_digits=True,
            unk_id=0,
            eos_id=1,
            bos_id=-1,
            pad_id=-1,
            eos_piece=END_OF_DOCUMENT,
            user_defined_symbols=["\n"],
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


def _judge(
    tokenizer: SentencePieceTokenizer, pieces: list[str], judged_on: str, corpus_bytes: int, training_bytes: int
) -> TokenizerReport:
    processor = tokenizer.processor
    is_byte = [processor.is_byte(token_id) for token_id in range(tokenizer.vocab_size)]
    num_tokens = num_unknown = num_bytes_tokens = 0
    for piece in pieces:
        ids = tokenizer.encode(piece)
        num_tokens += len(ids)
        num_unknown += ids.count(processor.unk_id())
        num_bytes_tokens += sum(map(is_byte.__getitem__, ids))
    judged_bytes = sum(len(piece.encode("utf-8")) for piece in pieces)
    return TokenizerReport(
        path=tokenizer.path,
        fingerprint=tokenizer.fingerprint,
        vocab_size=tokenizer.vocab_size,
        corpus_bytes=corpus_bytes,
        training_bytes=training_bytes,
        judged_on=judged_on,
        judged_bytes=judged_bytes,
        characters_per_token=sum(map(len, pieces)) / num_tokens,
        bytes_per_token=judged_bytes / num_tokens,
        unknown_rate=num_unknown / num_tokens,
        byte_fallback_rate=num_bytes_tokens / num_tokens,
    )
