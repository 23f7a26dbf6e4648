"""What encoding a chunk of a corpus gives, and what an encoder is. Knows no tokenizer."""

from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from megagpt.data.corpus_formats import BadDocument, json_text, utf8_bytes
from megagpt.data.sources_types import Payload

EMPTY_TEXT = "empty text"  # the reason under which documents without text are counted


class SpooledIds(NamedTuple):
    """Ids of a document too long for memory, in a temporary file that whoever takes them removes."""

    path: Path
    num_bytes: int


class BadAt(NamedTuple):
    """A document that was left out: byte of the payload where its line starts, or its row, and why."""

    position: int
    reason: str
    message: str


class Encoded(NamedTuple):
    """The documents of one payload, in order. Tokens include the end-of-document ids; text is counted in UTF-8."""

    ids: bytes | SpooledIds  # little-endian, in the dataset's id type
    lengths: NDArray[np.int64]  # tokens of each document
    text_bytes: int
    num_characters: int
    max_token_id: int  # -1 where there is no document
    bad: tuple[BadAt, ...]


class Encoder(Protocol):
    """One thread's encoder."""

    def encode(self, payload: Payload) -> Encoded:
        """The documents of `payload`. Documents that cannot be read are left out and listed in `bad`."""


def line_document(raw: bytes, text_key: str) -> str | BadDocument | None:
    """The text of a line of JSONL, why there is none, or None where the line is blank."""
    if not raw.strip():
        return None
    found = json_text(raw, text_key)
    return usable_text(found) if isinstance(found, str) else found


def usable_text(text: str) -> str | BadDocument:
    """`text` where it can be encoded; else why not: empty, or a lone surrogate in it."""
    if not text:
        return BadDocument(EMPTY_TEXT, "the text is empty")
    size = utf8_bytes(text)
    return text if isinstance(size, int) else size
