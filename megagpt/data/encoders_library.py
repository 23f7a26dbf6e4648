"""Encoding through a tokenizer's own library. In: payloads. Out: Encoded.

Works for every tokenizer. A document is held in memory whole, as Python text and as a list of ids.
"""

from collections.abc import Iterator
from itertools import chain, pairwise

import numpy as np

from megagpt.data.corpus_formats import BadDocument, invalid_utf8
from megagpt.data.encoded import BadAt, Encoded, line_document, usable_text
from megagpt.data.sources_long import LongContent
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
        for position, found in payload_documents(payload, self._text_key):
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


def payload_documents(payload: Payload, text_key: str) -> Iterator[tuple[int, str | BadDocument]]:
    """The documents of a payload, each held whole, with their bytes or rows in it. Raises DataError."""
    match payload:
        case JsonLines(content):
            position = 0
            for raw in content.split(b"\n"):
                found = line_document(raw, text_key)
                if found is not None:
                    yield position, found
                position += len(raw) + 1
        case Texts(data, offsets, bad):
            wrong, view = dict(bad), memoryview(data)
            for row, (start, stop) in enumerate(pairwise(offsets.tolist())):
                yield row, wrong[row] if row in wrong else text_of(bytes(view[start:stop]))
        case LongLine():
            found = line_document(_whole(payload), text_key)
            if found is not None:
                yield 0, found
        case LongText():
            yield plain_document(_whole(payload))


def text_of(raw: bytes) -> str | BadDocument:
    """The text that `raw` is in UTF-8, or why there is none."""
    try:
        return usable_text(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        return invalid_utf8(error, "text")


def plain_document(raw: bytes) -> tuple[int, str | BadDocument]:
    """The text of a whole .txt file, and its position; where it is not UTF-8, the byte that is wrong, and why."""
    content = raw.removeprefix(BOM)
    try:
        return 0, usable_text(content.decode("utf-8").replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        return error.start, invalid_utf8(error, "file")


def _whole(payload: LongLine | LongText) -> bytes:
    with LongContent(payload) as content:
        return content.read(0, len(content))
