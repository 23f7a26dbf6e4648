"""Ids as a person reads them. In: a tokenizer, ids. Out: short texts. Knows nothing of where they are shown."""

from collections.abc import Sequence
from types import MappingProxyType

from numpy.typing import NDArray

from megagpt.tokenizer.protocol import END_OF_DOCUMENT, Tokenizer

UNFINISHED = "\ufffd"  # what decoders give for bytes that are not (yet) a character
_NAMES = MappingProxyType({" ": "␣", "\n": "⏎", "\t": "⇥", "\u3000": "␣(wide)", "\u00a0": "␣(no-break)"})


def token_text(tokenizer: Tokenizer, token_id: int, context: int) -> str:
    """What an id adds to a text: blanks made visible, a control symbol or a part of a character named.

    `context` is an id that stands before it, because some tokenizers drop the blank of a text's first token; one with
    text of its own, such as `context_id` gives.
    """
    if token_id == tokenizer.eod_id:
        return END_OF_DOCUMENT
    if token_id >= tokenizer.vocab_size:
        return "(beyond the vocabulary)"
    before = tokenizer.decode([context])
    text = tokenizer.decode([context, token_id])[len(before) :]
    if not text:
        return "(no text)"
    if UNFINISHED in text:
        return "(part of a character)"
    return visible(text)


def context_id(tokenizer: Tokenizer) -> int:
    """An id whose text is a complete character, to decode others after it."""
    ids = tokenizer.encode("a")
    assert ids, tokenizer.path
    return ids[-1]


def visible(text: str) -> str:
    """Text with its blanks and line ends as signs, other control characters as \\u escapes; one line."""
    return "".join(_NAMES.get(c) or (c if c.isprintable() else f"\\u{ord(c):04x}") for c in text)


def decode_with_ends(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The text of `ids` with each end-of-document id written out."""
    parts: list[str] = []
    document: list[int] = []
    for token_id in ids:
        if token_id == tokenizer.eod_id:
            parts.append(tokenizer.decode(document) + END_OF_DOCUMENT)
            document = []
        else:
            document.append(token_id)
    return "".join(parts) + tokenizer.decode(document)


def beginning(tokenizer: Tokenizer, document: NDArray, most_tokens: int, most_characters: int) -> str:
    """The text of a document's first ids; ends of documents are written out, and what is cut ends in " …"."""
    text = decode_with_ends(tokenizer, document[:most_tokens].tolist())
    if len(text) <= most_characters and len(document) <= most_tokens:
        return text
    return f"{text[:most_characters].rstrip(UNFINISHED)} …"
