"""What every tokenizer can do, and text from a growing row of token ids. Knows no tokenizer library."""

from collections.abc import Sequence
from typing import Literal, Protocol

TokenizerKind = Literal["sentencepiece", "huggingface", "wordpiece", "wordpiece-cased", "jieba-bpe"]

# The control symbol that our own tokenizers end a document with, and look for first in others' models.
END_OF_DOCUMENT = "<|endoftext|>"
_UNFINISHED = "\ufffd"  # what decoders give for bytes that are not (yet) a character


class Tokenizer(Protocol):
    """Text to token ids and back.

    Ids are in [0, vocab_size). Encoding is plain: nothing is added before or after, and text that looks like a control
    symbol (a literal `<|endoftext|>`) is encoded as the characters it is made of.
    """

    @property
    def kind(self) -> TokenizerKind:
        """The family, which with the file decides the ids."""

    @property
    def path(self) -> str:
        """The file it was loaded from."""

    @property
    def vocab_size(self) -> int:
        """One more than the largest id, before any padding."""

    @property
    def eod_id(self) -> int:
        """The id that ends a document; no text encodes to it."""

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the file, and of what else decides the ids: with the same fingerprint they are the same."""

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`. Raises DataError where it is not valid Unicode (a lone surrogate)."""

    def encode_batch(self, texts: Sequence[str], num_threads: int = 1) -> list[list[int]]:
        """`encode` of each text, on `num_threads` threads where the library can."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`; control symbols give nothing, bytes that are no character give U+FFFD.

        Raises DataError for an id that does not exist.
        """


class StreamDecoder:
    """Text as it becomes complete while ids arrive one by one: a character of several byte tokens waits for the last.

    The pieces joined equal `tokenizer.decode` of all ids. Decoding the ids alone would be wrong where a character spans
    tokens; decoding everything anew at each id would be quadratic. So only the ids since the last complete character
    are decoded, together with those just before them, because some tokenizers treat a text's beginning in another way.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._context: list[int] = []  # ids whose text was given already
        self._waiting: list[int] = []

    def push(self, token_id: int) -> str:
        """The characters that `token_id` completes; empty where it completes none."""
        self._waiting.append(token_id)
        text = self._text()
        return "" if text.endswith(_UNFINISHED) else self._give(text)

    def flush(self) -> str:
        """What is still waiting, incomplete bytes as U+FFFD; call it once after the last id."""
        return self._give(self._text())

    def _text(self) -> str:
        before = self._tokenizer.decode(self._context)
        return self._tokenizer.decode(self._context + self._waiting)[len(before) :]

    def _give(self, text: str) -> str:
        if text:  # ids without text (control symbols) cannot stand for the text before them
            self._context = self._waiting
        else:
            self._context = self._context + self._waiting
        self._waiting = []
        return text
