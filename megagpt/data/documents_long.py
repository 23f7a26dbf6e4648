"""Documents too long to be held whole, in parts. In: LongLine, LongText. Out: a document's parts, or what is wrong.

All of a document is checked before its first part is given, so it is read twice. Nothing is mapped into memory.
"""

import codecs
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from megagpt.data.corpus import CorpusFile
from megagpt.data.corpus_formats import BadDocument, invalid_utf8, unreadable_long_line
from megagpt.data.sources_plain import open_stored, read_at
from megagpt.data.sources_types import BOM, LONG_LINE_BYTES, LongLine, LongText

Found = tuple[int, str | BadDocument, bool]  # lines before it in the payload; what is there; whether the document ends

_WINDOW_BYTES = 1 << 18
_PAIR_BYTES = 12  # a character that is written as two escapes, the longest thing that a part must not cut
_QUOTE, _BACKSLASH, _COLON, _OPENING = ord('"'), ord("\\"), ord(":"), b"{["
_MARK = re.compile(rb'["{}\[\]]')
_QUOTE_MARK = re.compile(rb'"')
_NO_SPACE = re.compile(rb"[^ \t\n\r\v\f]")
_ESCAPE = re.compile(rb"\\(?:u[dD][89abAB]..\\u[dD][c-fC-F]..|u....|[^u])", re.DOTALL)
_HIGH_SURROGATE = re.compile(rb"\\u[dD][89abAB]..", re.DOTALL)


def long_text(payload: LongText) -> Iterator[Found]:
    """The parts of a text file: without its BOM, CRLF as LF."""
    with _opened(payload.path, payload.start, payload.stop) as content:
        first = content.start + (len(BOM) if content.read(content.start, content.start + len(BOM)) == BOM else 0)
        try:
            yield from _checked(lambda: _text_parts(content, first))
        except _InvalidText as invalid:
            place = invalid.window_start + invalid.error.start
            lines = content.count_lines(content.start, place)
            yield lines, invalid_utf8(invalid.error, "file", invalid.window_start - first), True


def long_line(payload: LongLine, text_key: str) -> Iterator[Found]:
    """The parts of the text of a line of JSONL; none where it is blank. A temporary file is removed."""
    try:
        with _opened(payload.path, payload.start, payload.stop) as line:
            if line.find(_NO_SPACE, line.start) == line.stop:
                return
            try:
                start, stop = _text_span(line, text_key)
                yield from _checked(lambda: _string_parts(line, start, stop))
            except (ValueError, RecursionError):
                yield 0, unreadable_long_line(payload.stop - payload.start, text_key), True
    finally:
        if payload.temporary:
            payload.path.unlink()


class _InvalidText(Exception):
    """What is not UTF-8 in a file: `error` counts from byte `window_start` of the file."""

    def __init__(self, window_start: int, error: UnicodeDecodeError) -> None:
        super().__init__(str(error))
        self.window_start = window_start
        self.error = error


class _Bytes:
    """Bytes [start, stop) of a file, a window of which is in memory."""

    def __init__(self, descriptor: int, file: CorpusFile, start: int, stop: int) -> None:
        self.start = start
        self.stop = stop
        self._descriptor = descriptor
        self._file = file
        self._at = start
        self._window = b""

    def read(self, start: int, stop: int) -> bytes:
        """Bytes [start, stop), or up to the end."""
        return read_at(self._descriptor, self._file, max(min(stop, self.stop) - start, 0), start)

    def byte(self, at: int) -> int:
        """The byte at `at`, which must not be the end."""
        self._look_at(at)
        return self._window[at - self._at]

    def find(self, one_byte: re.Pattern[bytes], at: int) -> int:
        """The first byte from `at` on that the pattern, which is of one byte, matches; the end where there is none."""
        while at < self.stop:
            self._look_at(at)
            if match := one_byte.search(self._window, at - self._at):
                return self._at + match.start()
            at = self._at + len(self._window)
        return self.stop

    def count_lines(self, start: int, stop: int) -> int:
        """How many lines end in bytes [start, stop)."""
        edges = range(start, stop, _WINDOW_BYTES)
        return sum(self.read(edge, min(edge + _WINDOW_BYTES, stop)).count(b"\n") for edge in edges)

    def _look_at(self, at: int) -> None:
        if not self._at <= at < self._at + len(self._window):
            start = at if at >= self._at else max(self.start, at - _WINDOW_BYTES // 2)  # backwards: more may be wanted
            self._at, self._window = start, self.read(start, start + _WINDOW_BYTES)


@contextmanager
def _opened(path: Path, start: int, stop: int) -> Iterator[_Bytes]:
    file = CorpusFile(str(path), os.path.getsize(path))
    descriptor = open_stored(file)
    try:
        yield _Bytes(descriptor, file, start, stop)
    finally:
        os.close(descriptor)


def _checked(parts: Callable[[], Iterator[str]]) -> Iterator[Found]:
    """The parts, after all of them were seen once."""
    num_parts = sum(1 for _ in parts())
    for number, part in enumerate(parts(), start=1):
        yield 0, part, number == num_parts


def _text_parts(content: _Bytes, first: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    rest = ""
    if first == content.stop:
        yield ""
    for at in range(first, content.stop, _WINDOW_BYTES):
        is_last = at + _WINDOW_BYTES >= content.stop
        before = len(decoder.getstate()[0])
        try:
            text = rest + decoder.decode(content.read(at, at + _WINDOW_BYTES), is_last)
        except UnicodeDecodeError as error:
            raise _InvalidText(at - before, error) from error
        rest = "\r" if text.endswith("\r") and not is_last else ""  # perhaps of a CRLF
        yield text[: len(text) - len(rest)].replace("\r\n", "\n")


def _text_span(line: _Bytes, text_key: str) -> tuple[int, int]:
    """Where the text is in a line, without its quotes. ValueError where the line is not what it must be: a JSON object
    with the key once, its value a string, and not too much beside it.
    """
    key = text_key.encode("utf-8")
    depth, at = 0, line.start
    start = stop = line.stop
    while (at := line.find(_MARK, at)) < line.stop:
        if at - line.start - (stop - start) > LONG_LINE_BYTES:
            raise ValueError("too much beside the text")
        if line.byte(at) != _QUOTE:
            depth += 1 if line.byte(at) in _OPENING else -1
            at += 1
            continue
        end = _string_end(line, at + 1)
        is_key = depth == 1 and start == line.stop and end - at - 1 == len(key) and line.read(at + 1, end) == key
        at = end + 1
        if is_key and (opening := _string_value(line, at)) is not None:
            start, stop = opening, _string_end(line, opening)
            at = stop + 1
    others = (line.read(line.start, start) + line.read(stop, line.stop)).decode("utf-8")
    pairs = json.loads(
        others, object_pairs_hook=tuple
    )  # the text is "" here; the line is a tuple where it is an object
    if not isinstance(pairs, tuple) or [value for name, value in pairs if name == text_key] != [""]:
        raise ValueError("not an object with one such key")
    return start, stop


def _string_end(line: _Bytes, start: int) -> int:
    """Where the closing quote of the string is that begins at `start`; the end where there is none."""
    at = start
    while (at := line.find(_QUOTE_MARK, at)) < line.stop:
        first = at
        while first > start and line.byte(first - 1) == _BACKSLASH:
            first -= 1
        if (at - first) % 2 == 0:
            return at
        at += 1
    return line.stop


def _string_value(line: _Bytes, at: int) -> int | None:
    """Where the string behind a colon begins, None where something else follows at `at`."""
    at = line.find(_NO_SPACE, at)
    if at == line.stop or line.byte(at) != _COLON:
        return None
    at = line.find(_NO_SPACE, at + 1)
    return None if at == line.stop or line.byte(at) != _QUOTE else at + 1


def _string_parts(line: _Bytes, at: int, stop: int) -> Iterator[str]:
    """The characters of the JSON string in bytes [at, stop). ValueError where it is wrong or has a lone surrogate."""
    if at == stop:
        yield ""
    while at < stop:
        raw = line.read(at, min(at + _WINDOW_BYTES, stop))
        if at + len(raw) < stop:
            raw = raw[: _whole_characters(raw)]
        part: str = json.loads(f'"{raw.decode("utf-8")}"')
        part.encode("utf-8")
        yield part
        at += len(raw)


def _whole_characters(raw: bytes) -> int:
    """How much of the beginning of a JSON string ends between two characters."""
    cut = len(raw)
    if raw[-1] >= 0x80:  # perhaps not all bytes of a character: it is left to the next part
        while raw[cut - 1] & 0xC0 == 0x80 and len(raw) - cut < 3:
            cut -= 1
        return cut - 1
    if b"\\" not in raw[-_PAIR_BYTES:]:
        return cut
    after, last = 0, b""
    for escape in _ESCAPE.finditer(raw):
        after, last = escape.end(), escape[0]
    broken = raw.find(b"\\", after)
    cut = len(raw) if broken < 0 else broken
    return cut - len(last) if after == cut and _HIGH_SURROGATE.fullmatch(last) else cut
