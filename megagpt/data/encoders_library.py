"""Encoding through a tokenizer's own library. In: payloads. Out: Encoded.

Works for every tokenizer. A document is held in memory whole, as Python text and as a list of ids.
"""

from collections.abc import Iterator
from itertools import chain

import numpy as np

from megagpt.data.corpus_formats import BadDocument, json_text
from megagpt.data.encoded import BadAt, Encoded, line_document, usable_text
from megagpt.data.sources_types import BOM, JsonLines, LongLine, LongText, Payload, Texts
from megagpt.tokenizer.protocol import Tokenizer

_BATCH_CHARACTERS = 1 << 18


class LibraryEncoder:
    """Implements `Encoder` with `tokenizer.encode_batch`."""

    def __init__(self, tokenizer: Tokenizer, dtype: np.dtype, text_key: str) -> None:
        self._tokenizer = tokenizer
        self._dtype = dtype
        self._text_key = text_key

    def encode(self, payload: Payload) -> Encoded:
        """See Encoder."""
        texts: list[str] = []
        bad: list[BadAt] = []
        for position, found in self._documents(payload):
            if isinstance(found, str):
                texts.append(found)
            else:
                bad.append(BadAt(position, found.reason, found.message))
        rows = list(self._rows(texts))
        lengths = np.fromiter(map(len, rows), np.int64, len(rows))
        ids = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
        return Encoded(
            ids=ids.astype(self._dtype.newbyteorder("<")).tobytes(),
            lengths=lengths,
            text_bytes=sum(len(text.encode("utf-8")) for text in texts),
            num_characters=sum(map(len, texts)),
            max_token_id=int(ids.max()) if len(ids) else -1,
            bad=tuple(bad),
        )

    def _rows(self, texts: list[str]) -> Iterator[list[int]]:
        batch: list[str] = []
        size = 0
        for text in texts:
            batch.append(text)
            size += len(text)
            if size >= _BATCH_CHARACTERS:
                yield from self._ended(batch)
                batch, size = [], 0
        yield from self._ended(batch)

    def _ended(self, batch: list[str]) -> list[list[int]]:
        rows = self._tokenizer.encode_batch(batch) if batch else []
        for row in rows:
            row.append(self._tokenizer.eod_id)
        return rows

    def _documents(self, payload: Payload) -> Iterator[tuple[int, str | BadDocument]]:
        match payload:
            case JsonLines(content):
                yield from self._lines(content)
            case Texts():
                yield from _texts(payload)
            case LongLine():
                found = json_text(_read(payload), self._text_key)
                yield 0, usable_text(found) if isinstance(found, str) else found
            case LongText():
                yield plain_document(_read(payload))

    def _lines(self, content: bytes) -> Iterator[tuple[int, str | BadDocument]]:
        position = 0
        for raw in content.split(b"\n"):
            found = line_document(raw, self._text_key)
            if found is not None:
                yield position, found
            position += len(raw) + 1


def _texts(payload: Texts) -> Iterator[tuple[int, str | BadDocument]]:
    bad = dict(payload.bad)
    view = memoryview(payload.data)
    offsets = payload.offsets.tolist()
    for row in range(len(offsets) - 1):
        yield row, bad[row] if row in bad else text_of(bytes(view[offsets[row] : offsets[row + 1]]))


def text_of(raw: bytes) -> str | BadDocument:
    """The text that `raw` is in UTF-8, or why there is none."""
    try:
        return usable_text(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return invalid_text(error)


def invalid_text(error: UnicodeDecodeError) -> BadDocument:
    """Says where a text is not UTF-8."""
    return BadDocument(
        "invalid UTF-8",
        f"invalid UTF-8 at byte {error.start} of the text (0x{error.object[error.start]:02x}: {error.reason}); "
        "convert the file to UTF-8, or use --on-error skip",
    )


def plain_document(raw: bytes) -> tuple[int, str | BadDocument]:
    """The text of a whole .txt file, and its position; where it is not UTF-8, the byte that is wrong, and why."""
    content = raw.removeprefix(BOM)
    try:
        return 0, usable_text(content.decode("utf-8").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        found = invalid_text(error)
        return error.start, found._replace(message=found.message.replace("of the text", "of the file", 1))


def _read(payload: LongLine | LongText) -> bytes:
    with open(payload.path, "rb") as stream:
        stream.seek(payload.start)
        return stream.read(payload.stop - payload.start)
