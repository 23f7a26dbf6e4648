"""Chunks of JSONL that cannot be read from the middle: gzip, Zstandard, standard input. In: a file. Out: Chunk.

Reading and decompression happen where the chunks are asked for, joining a chunk's bytes in `load`. A line too long to
be held goes into a file of its own.
"""

import errno
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from megagpt.data.corpus import CorpusFile
from megagpt.data.corpus_formats import damaged
from megagpt.data.sources_decompress import DamagedStream, Decompressor, gzip_pieces, zstd_pieces
from megagpt.data.sources_plain import cannot_be_read, open_stored, stored_size
from megagpt.data.sources_types import BOM, SIZES, Chunk, JsonLines, LongLine, Payload, Sizes
from megagpt.errors import DataError

_INPUT_BYTES = 1 << 18  # at once; a pipe has less


class _Job(NamedTuple):
    """What the chunks of one stream have in common."""

    number: int
    spool: Path
    sizes: Sizes
    stored_bytes: Callable[[], int]
    counts_lines: bool


def compressed_chunks(
    file: CorpusFile, number: int, start: int, stop: int | None, spool: Path, sizes: Sizes = SIZES
) -> Iterator[Chunk]:
    """The lines of a .gz or .zst file that start in bytes [start, stop) of its content, on the grid of `plain_chunks`.

    What lies before `start` is decompressed and dropped. Raises DamagedFile after the chunks of all lines that are
    whole, DataError where the file may not be read or changes.
    """
    form, pieces = _form(file)
    with os.fdopen(open_stored(file), "rb", buffering=0) as stream:
        job = _Job(number, spool, sizes, stream.tell, counts_lines=False)
        cutter = _Cutter(job, start, stop)
        try:
            yield from cutter.cut(pieces(_Stored(stream, file)))
        except DamagedStream as damage:
            stored_size(stream.fileno(), file)
            yield from cutter.whole_lines()
            raise damaged(form, lines_before(file, cutter.whole_until), str(damage)) from damage
        finally:
            cutter.discard()


def input_chunks(number: int, start: int, stop: int | None, spool: Path, sizes: Sizes = SIZES) -> Iterator[Chunk]:
    """The lines of standard input that start in its bytes [start, stop), on the grid of `plain_chunks`."""
    read = _Counted(sys.stdin.buffer)
    cutter = _Cutter(_Job(number, spool, sizes, read.tell, counts_lines=True), start, stop)
    try:
        yield from cutter.cut(read.pieces())
    finally:
        cutter.discard()


def lines_before(file: CorpusFile, stop: int) -> int:
    """How many lines end before byte `stop` of a compressed file's content; decompresses up to there."""
    lines = position = 0
    with os.fdopen(open_stored(file), "rb", buffering=0) as stream:
        pieces = _form(file)[1](_Stored(stream, file))
        while position < stop:
            piece = next(pieces)
            lines += piece.count(b"\n", 0, stop - position)
            position += len(piece)
    return lines


def _form(file: CorpusFile) -> tuple[str, Decompressor]:
    return ("gzip", gzip_pieces) if file.path.endswith(".gz") else ("zstd", zstd_pieces)


class _Part(NamedTuple):
    """Bytes [start, stop) of a piece of a stream, not copied."""

    piece: bytes
    start: int
    stop: int

    @property
    def view(self) -> memoryview:
        """The bytes themselves."""
        return memoryview(self.piece)[self.start : self.stop]


class _Stored:
    """A file as decompression reads it, whose errors name it."""

    def __init__(self, stream: BinaryIO, file: CorpusFile) -> None:
        self._stream = stream
        self._file = file

    def read(self, size: int, /) -> bytes:
        """As a file does it; DataError where the disk fails."""
        try:
            return self._stream.read(size)
        except OSError as error:
            raise cannot_be_read(f"corpus file {self._file.path}", self._stream.tell(), error) from error


class _Counted:
    """Standard input in pieces, and how many bytes of it were read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._position = 0

    def tell(self) -> int:
        """How many bytes were read."""
        return self._position

    def pieces(self) -> Iterator[bytes]:
        """What comes in, as it comes; DataError where it fails."""
        # Not through the buffer: a thread left waiting in it holds its lock, and Python aborts when it ends.
        raw = getattr(self._stream, "raw", None)
        read = self._stream.read1 if raw is None else raw.read  # type: ignore[attr-defined]
        try:
            while piece := read(_INPUT_BYTES):
                self._position += len(piece)
                yield piece
        except OSError as error:
            raise cannot_be_read("standard input", self._position, error) from error


class _Cutter:
    """Cuts a stream into chunks. Held is what was read of the current chunk: the stream's bytes [_begin, _end).

    The chunk ends at the first line start at or after `_edge`. Until the first one at or after `start` is found,
    nothing is held. While a long line is read, it goes to `_file`.
    """

    def __init__(self, job: _Job, start: int, stop: int | None) -> None:
        self._job = job
        self._stop = stop
        self._begin = self._end = 0
        self._edge = start
        self._dropping = True
        self._held: list[_Part] = []
        self._file: BinaryIO | None = None
        self._path = ""
        self._line = 1  # at _begin, where lines are counted

    @property
    def whole_until(self) -> int:
        """Where the chunks so far end."""
        return self._begin

    def cut(self, pieces: Iterator[bytes]) -> Iterator[Chunk]:
        """All chunks of the stream; where `pieces` raises, `whole_lines` has those that can still be had."""
        head = b""
        while len(head) < len(BOM) and (piece := next(pieces, b"")):
            head += piece
        if head.startswith(BOM):
            head = head[len(BOM) :]
            self._begin = self._end = len(BOM)
        if self._edge <= self._begin:
            self._go_on()
        for piece in chain([head], pieces):
            yield from self._add(piece)
            if self._done:
                return
        if self._end > self._begin and not self._dropping:
            yield self._take()

    def whole_lines(self) -> Iterator[Chunk]:
        """The lines held that have an end."""
        before, after = _before_and_after_last_line_end(self._held)
        self._held = before
        self._end -= _length(after)
        if before and self._file is None:
            yield self._take()

    def discard(self) -> None:
        """Remove the file of a long line that was not read to its end."""
        if self._file is not None:
            self._file.close()
            os.remove(self._path)

    @property
    def _done(self) -> bool:
        return self._stop is not None and not self._dropping and self._begin >= self._stop

    def _add(self, piece: bytes) -> Iterator[Chunk]:
        before, at = self._end, 0
        while not self._done:
            found = piece.find(b"\n", max(at, self._edge - 1 - before))
            upto = found + 1 if found >= 0 else len(piece)
            self._hold(_Part(piece, at, upto))
            yield from self._spill()
            if found < 0:
                return
            if self._dropping:
                self._begin = self._end
                self._go_on()
            else:
                yield self._take()
            at = upto

    def _hold(self, part: _Part) -> None:
        self._end += part.stop - part.start
        if self._file is not None:
            self._write(part)
        elif not self._dropping:
            self._held.append(part)
        elif self._job.counts_lines:
            self._line += part.piece.count(b"\n", part.start, part.stop)

    def _spill(self) -> Iterator[Chunk]:
        """Where the last line held is a long one: the lines before it as a chunk; the line goes to a file."""
        longest = self._job.sizes.long_line_bytes
        if self._dropping or self._file is not None or self._end - self._begin <= longest:
            return
        *others, last = self._held
        lines, line = _before_and_after_last_line_end([*others, last._replace(stop=last.stop - 1)])
        line[-1] = line[-1]._replace(stop=last.stop)
        if _length(line) <= longest:
            return
        if lines:
            end, self._end = self._end, self._begin + _length(lines)
            self._held = lines
            yield self._take()
            self._end = end
        self._held = []
        descriptor, self._path = tempfile.mkstemp(suffix=".jsonl", dir=self._job.spool)
        self._file = os.fdopen(descriptor, "wb", buffering=0)
        for part in line:
            self._write(part)

    def _write(self, part: _Part) -> None:
        assert self._file is not None
        view = part.view
        try:
            while len(view):
                view = view[self._file.write(view) :]
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            raise DataError(
                f"no space is left in {self._job.spool} for a line of the input that has more than "
                f"{(self._end - self._begin) / 1e6:.0f} MB; free space there"
            ) from error

    def _take(self) -> Chunk:
        """What is held, or was put into the file, as a chunk."""
        load: Callable[[], Payload]
        if self._file is not None:
            self._file.close()
            load = partial(LongLine, Path(self._path), 0, self._end - self._begin, temporary=True)
            self._file = None
            lines = 1
        else:
            load = partial(_join, tuple(self._held))
            lines = _count_lines(self._held) if self._job.counts_lines else 0
        first_line = self._line if self._job.counts_lines else None
        chunk = Chunk(self._job.number, self._begin, self._end, self._job.stored_bytes(), load, first_line)
        self._line += lines
        self._begin, self._held = self._end, []
        self._go_on()
        return chunk

    def _go_on(self) -> None:
        """A line starts at `_begin`: seek the end of a chunk that starts there."""
        self._dropping = False
        edge = (self._begin // self._job.sizes.chunk_bytes + 1) * self._job.sizes.chunk_bytes
        self._edge = edge if self._stop is None else min(edge, self._stop)


def _join(parts: Sequence[_Part]) -> JsonLines:
    return JsonLines(b"".join([part.view for part in parts]))


def _length(parts: Sequence[_Part]) -> int:
    return sum(part.stop - part.start for part in parts)


def _count_lines(parts: Sequence[_Part]) -> int:
    return sum(part.piece.count(b"\n", part.start, part.stop) for part in parts)


def _before_and_after_last_line_end(parts: Sequence[_Part]) -> tuple[list[_Part], list[_Part]]:
    """The parts, cut behind the last line end; the second half has at least one part, maybe empty."""
    for at in range(len(parts) - 1, -1, -1):
        part = parts[at]
        cut = part.piece.rfind(b"\n", part.start, part.stop) + 1
        if cut:
            return [*parts[:at], part._replace(stop=cut)], [part._replace(start=cut), *parts[at + 1 :]]
    return [], list(parts)
