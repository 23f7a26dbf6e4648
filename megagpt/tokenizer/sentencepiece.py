"""SentencePiece models (`*.model`) as a Tokenizer. In: the model file. Out: the ids sentencepiece itself gives.

One exception, for models that change no text (as ours): sentencepiece writes a space as U+2581 and so reads a U+2581 in
the text as a space. Here such a character is encoded by its three bytes, and decodes to itself.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import sentencepiece

from megagpt.errors import DataError
from megagpt.tokenizer.checks import check_ids, check_unicode
from megagpt.tokenizer.protocol import END_OF_DOCUMENT, TokenizerKind

SPACE_MARK = "\u2581"


class SentencePieceTokenizer:
    """A SentencePiece model, BPE or unigram, ours or another's. Implements `Tokenizer`.

    `model_bytes` is the file's content; `space_mark_ids` the three byte ids that stand for a U+2581 in the text, empty
    where that is left to sentencepiece.
    """

    kind: TokenizerKind = "sentencepiece"

    def __init__(self, path: str | Path) -> None:
        """Raises DataError where the file is damaged or has no end-of-document symbol."""
        self.path = str(path)
        self.model_bytes = Path(path).read_bytes()
        self.fingerprint = hashlib.sha256(self.model_bytes).hexdigest()
        self.processor = _load(self.model_bytes, self.path)
        self.vocab_size: int = self.processor.vocab_size()
        self.eod_id = _end_of_document_id(self.processor, self.path)
        self.space_mark_ids = _space_mark_ids(self.processor)

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Raises DataError on a lone surrogate."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text on `num_threads` threads."""
        marked = [number for number, text in enumerate(texts) if SPACE_MARK in text] if self.space_mark_ids else []
        rows = self._encode_plain(list(texts), num_threads)
        for number in marked:
            rows[number] = self._encode_with_space_marks(texts[number])
        return rows

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`. Raises DataError on an id beyond the vocabulary."""
        return self.processor.decode(check_ids(ids, self.vocab_size, self.path))

    def _encode_plain(self, texts: list[str], num_threads: int) -> list[list[int]]:
        try:
            return self.processor.encode(texts, num_threads=num_threads)
        except (RuntimeError, TypeError):
            for text in texts:
                check_unicode(text)
            raise

    def _encode_with_space_marks(self, text: str) -> list[int]:
        ids: list[int] = []
        for part in re.split(f"({SPACE_MARK})", text):
            ids += self.space_mark_ids if part == SPACE_MARK else self._encode_plain([part], 1)[0]
        return ids


def _load(model: bytes, path: str) -> sentencepiece.SentencePieceProcessor:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        if not model:
            raise RuntimeError("the file is empty")
        processor.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise DataError(
            f"{path} is not a SentencePiece model, or is damaged ({str(error).strip()}); copy it again or "
            "train a new one"
        ) from error
    return processor


def _end_of_document_id(processor: sentencepiece.SentencePieceProcessor, path: str) -> int:
    """The control symbol `<|endoftext|>`, else the model's own end-of-sentence symbol."""
    named = processor.piece_to_id(END_OF_DOCUMENT)
    if processor.is_control(named):
        return named
    if processor.eos_id() >= 0:
        return processor.eos_id()
    raise DataError(
        f"{path} has no symbol to end a document with; train it with an end-of-sentence symbol or the control symbol "
        f"{END_OF_DOCUMENT}"
    )


def _space_mark_ids(processor: sentencepiece.SentencePieceProcessor) -> tuple[int, ...]:
    """Ids of U+2581's three bytes where the model keeps every text as it is; else none, as sentencepiece does."""
    probe = " \u00a0 a\u3000\uff21\t\n  b "
    ids = tuple(processor.piece_to_id(f"<0x{byte:02X}>") for byte in SPACE_MARK.encode("utf-8"))
    if not all(processor.is_byte(token_id) for token_id in ids) or processor.decode(processor.encode(probe)) != probe:
        return ()
    return ids
