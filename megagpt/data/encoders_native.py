"""Encoding through the native core. In: payloads. Out: Encoded, with the ids that the tokenizer's library gives.

A document of any length is encoded in bounded memory: a long one is read window by window, and its ids are spooled.
Lines that the core finds odd are judged by Python, so that errors are the same with and without the core, but for lines
too long for memory, of which only the plain ones are read.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megagpt.data.corpus_formats import BadDocument, invalid_utf8, unreadable_long_line
from megagpt.data.encoded import EMPTY_TEXT, BadAt, Encoded, SpooledIds, line_document
from megagpt.data.encoders_library import text_of
from megagpt.data.sources_long import LongContent
from megagpt.data.sources_types import BOM, JsonLines, LongLine, LongText, Payload, Texts
from megagpt.native import _encoder

_WINDOW_BYTES = 1 << 20
_EMPTY = BadDocument(EMPTY_TEXT, "the text is empty")
_TEXT, _BLANK = 0, 1  # what _encoder.find_text finds


class NativeEncoder:
    """Implements `Encoder` with one native worker; for one thread."""

    def __init__(self, model: _encoder.Model, eod_id: int, dtype: np.dtype, text_key: str, spool: Path) -> None:
        self._worker = _encoder.Worker(model, eod_id, dtype.itemsize)
        self._dtype = dtype.newbyteorder("<")
        self._text_key = text_key
        self._key = text_key.encode("utf-8")
        self._spool = spool

    def encode(self, payload: Payload) -> Encoded:
        """See Encoder."""
        match payload:
            case JsonLines(content):
                return self._taken(self._lines(content))
            case Texts():
                return self._taken(self._texts(payload))
            case LongLine():
                return self._long_line(payload)
            case LongText(_, start, stop):
                return self._long_text(payload) if start < stop else self._nothing(_EMPTY)

    def encode_text(self, text: bytes) -> list[int]:
        """Ids of one text, without the end-of-document id; what is not UTF-8 is encoded as U+FFFD."""
        self._worker.encode_text(text)
        ids, _, _, _ = self._worker.take()
        return np.frombuffer(ids, self._dtype)[:-1].tolist()

    def _taken(self, bad: list[BadAt]) -> Encoded:
        ids, lengths, text_bytes, num_characters = self._worker.take()
        highest = int(np.frombuffer(ids, self._dtype).max()) if ids else -1
        return Encoded(ids, np.frombuffer(lengths, np.int64), text_bytes, num_characters, highest, tuple(bad))

    def _lines(self, content: bytes) -> list[BadAt]:
        bad: list[BadAt] = []
        at = self._worker.encode_lines(content, 0, self._key)
        while at < len(content):  # an odd line starts here
            end = content.find(b"\n", at) + 1 or len(content)
            found = line_document(content[at:end], self._text_key)
            if isinstance(found, str):
                self._worker.encode_text(found.encode("utf-8"))
            elif found is not None:
                bad.append(BadAt(at, found.reason, found.message))
            at = self._worker.encode_lines(content, end, self._key)
        return bad

    def _texts(self, payload: Texts) -> list[BadAt]:
        bad = [BadAt(row, found.reason, found.message) for row, found in payload.bad]
        view = memoryview(payload.data)
        offsets = np.ascontiguousarray(payload.offsets, np.int64)
        left_out = [row for row, _ in payload.bad]
        first = 0
        for stop in [*left_out, len(offsets) - 1]:
            while True:
                first = self._worker.encode_texts(view, offsets[: stop + 1].data, first)
                if first >= stop:
                    break
                found = text_of(bytes(view[offsets[first] : offsets[first + 1]]))
                assert isinstance(found, BadDocument), first
                bad.append(BadAt(first, found.reason, found.message))
                first += 1
            first = stop + 1
        return sorted(bad)

    def _long_line(self, payload: LongLine) -> Encoded:
        with LongContent(payload) as line:
            with line.mapped() as mapped:
                kind, start, stop = _encoder.find_text(mapped, self._key)
            if kind != _TEXT:
                is_blank = kind == _BLANK or all(block.isspace() for block in line.blocks())  # also \v and \f
                return self._nothing(None if is_blank else self._odd_long_line(payload))
            with self._spool_file() as stream:
                highest = self._push_json(line, start, stop, stream)
                if highest is None or not self._worker.finish():
                    return self._nothing(self._odd_long_line(payload))
                return self._spooled(stream, highest)

    def _push_json(self, line: LongContent, at: int, stop: int, stream: BinaryIO) -> int | None:
        """Encode the JSON string line[at:stop]; the largest id, or None where the string is wrong."""
        self._worker.begin()
        highest = -1
        while at < stop:
            end = min(at + _WINDOW_BYTES, stop)
            used = self._worker.push_json(line.read(at, end - at), end == stop)
            if used < 0:
                return None
            at += used
            highest = max(highest, self._write_ids(stream))
        return highest

    def _odd_long_line(self, payload: LongLine) -> BadDocument:
        return unreadable_long_line(payload.stop - payload.start, self._text_key)

    def _long_text(self, payload: LongText) -> Encoded:
        with LongContent(payload) as content, self._spool_file() as stream:
            self._worker.begin()
            at = len(BOM) if content.read(0, len(BOM)) == BOM else 0
            if at == len(content):
                return self._nothing(_EMPTY)
            begin, highest, rest = at, -1, b""
            while at < len(content):
                window = rest + content.read(at, _WINDOW_BYTES)
                at = min(at + _WINDOW_BYTES, len(content))
                rest = b"\r" if window.endswith(b"\r") and at < len(content) else b""  # perhaps of a CRLF
                if not self._worker.push(window[: len(window) - len(rest)].replace(b"\r\n", b"\n")):
                    return self._wrong_text(content, begin)
                highest = max(highest, self._write_ids(stream))
            if not self._worker.finish():
                return self._wrong_text(content, begin)
            return self._spooled(stream, highest)

    def _wrong_text(self, content: LongContent, begin: int) -> Encoded:
        """Says where `content` from byte `begin` on is not UTF-8."""
        at = begin
        while at < len(content):
            window = content.read(at, _WINDOW_BYTES)
            try:
                window.decode("utf-8")
            except UnicodeDecodeError as error:
                if error.start > len(window) - 4 and at + len(window) < len(content) and error.start > 0:
                    at += error.start  # perhaps a character cut by the window
                    continue
                return self._nothing(invalid_utf8(error, "file", at - begin), at - begin + error.start)
            at += len(window)
        raise content.changed()

    def _nothing(self, found: BadDocument | None, position: int = 0) -> Encoded:
        self._worker.take()
        bad = () if found is None else (BadAt(position, found.reason, found.message),)
        return Encoded(b"", np.zeros(0, np.int64), 0, 0, -1, bad)

    def _write_ids(self, stream: BinaryIO) -> int:
        ids = self._worker.take_ids()
        stream.write(ids)
        return int(np.frombuffer(ids, self._dtype).max()) if ids else -1

    def _spooled(self, stream: BinaryIO, highest: int) -> Encoded:
        ids, lengths, text_bytes, num_characters = self._worker.take()
        stream.write(ids)
        highest = max(highest, int(np.frombuffer(ids, self._dtype).max()))
        spooled = SpooledIds(Path(stream.name), stream.tell())
        stream.close()
        return Encoded(spooled, np.frombuffer(lengths, np.int64), text_bytes, num_characters, highest, ())

    @contextmanager
    def _spool_file(self) -> Iterator[BinaryIO]:
        """A file in the spool folder, removed unless it was closed with its ids in it."""
        stream = tempfile.NamedTemporaryFile(dir=self._spool, prefix="ids-", delete=False)  # noqa: SIM115
        try:
            yield stream  # type: ignore[misc]
        finally:
            if not stream.closed:
                stream.close()
                os.unlink(stream.name)
