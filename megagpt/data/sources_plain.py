"""Chunks of plain JSONL and plain text. In: a stored file and a range of it. Out: Chunk; its bytes are read by `load`.

The reading side looks at a few kilobytes at each chunk's end to find where lines start. Nothing is mapped into memory:
what is read is the worker's own, and a file that shrinks is an error, not a signal.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from megagpt.data.corpus import CorpusFile
from megagpt.data.sources_types import BOM, SIZES, Chunk, JsonLines, LongLine, LongText, Payload, Sizes, Texts
from megagpt.errors import DataError

_FIRST_LOOK_BYTES = 4096
_SCAN_BYTES = 1 << 20


def plain_chunks(
    file: CorpusFile, number: int, start: int = 0, stop: int | None = None, sizes: Sizes = SIZES
) -> Iterator[Chunk]:
    """The lines of a JSONL file that start in [start, stop), in chunks that end at the first line start at or after
    k · chunk_bytes of the file, wherever reading began. A line over `long_line_bytes` is a chunk of its own.

    A BOM belongs to no line. Raises DataError where the file may not be read or is not as long as when it was listed.
    """
    assert sizes.chunk_bytes <= sizes.long_line_bytes, sizes
    path = Path(file.path)
    descriptor = open_stored(file)
    try:
        size = stored_size(descriptor, file)
        end = size if stop is None else _line_start(descriptor, file, stop)
        here = _line_start(descriptor, file, start)
        while here < end:
            edge = min((here // sizes.chunk_bytes + 1) * sizes.chunk_bytes, end)
            following = _line_start(descriptor, file, edge)
            last = here
            if following - here > sizes.long_line_bytes:
                last = _last_line_start(descriptor, file, here, edge)
            if following - last > sizes.long_line_bytes:
                if last > here:
                    yield Chunk(number, here, last, last, partial(_load_lines, file, here, last))
                yield Chunk(number, last, following, following, partial(LongLine, path, last, following))
            else:
                yield Chunk(number, here, following, following, partial(_load_lines, file, here, following))
            here = following
    finally:
        os.close(descriptor)


def text_chunks(file: CorpusFile, number: int, start: int = 0, sizes: Sizes = SIZES) -> Iterator[Chunk]:
    """A file of plain text: one document, at position 0; nothing where `start` is 1."""
    if start == 0:
        assert file.size_bytes is not None, file
        yield Chunk(number, 0, 1, file.size_bytes, partial(_load_text, file, sizes.chunk_bytes))


def count_lines(file: CorpusFile, stop: int) -> int:
    """How many lines end before byte `stop` of a stored file."""
    descriptor = open_stored(file)
    try:
        blocks = range(0, stop, _SCAN_BYTES)
        return sum(_some_at(descriptor, file, min(_SCAN_BYTES, stop - at), at).count(b"\n") for at in blocks)
    finally:
        os.close(descriptor)


def _load_lines(file: CorpusFile, start: int, stop: int) -> JsonLines:
    return JsonLines(_read(file, start, stop))


def _load_text(file: CorpusFile, short_bytes: int) -> Payload:
    """Texts of a short file, LongText of a long one and of one that is not UTF-8, which whoever encodes it reports."""
    assert file.size_bytes is not None, file
    whole = LongText(Path(file.path), 0, file.size_bytes)
    if file.size_bytes > short_bytes:
        return whole
    content = _read(file, 0, file.size_bytes)
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return whole
    content = content.removeprefix(BOM).replace(b"\r\n", b"\n")
    return Texts(content, np.array([0, len(content)], dtype=np.int64))


def open_stored(file: CorpusFile) -> int:
    """A descriptor of the file, which the caller closes; raises DataError where it may not be read."""
    try:
        return os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
    except PermissionError as error:
        raise DataError(f"corpus file {file.path} may not be read by this user; change its permissions") from error
    except FileNotFoundError as error:
        raise DataError(
            f"corpus file {file.path} is gone; it was there when this run listed its input: put it back, "
            "or name the inputs without it"
        ) from error
    except OSError as error:
        raise DataError(
            f"corpus file {file.path} cannot be opened ({error.strerror}); check its disk, or name "
            "the inputs without it"
        ) from error


def stored_size(descriptor: int, file: CorpusFile) -> int:
    """The file's size; raises DataError where it is not what it was when the file was listed."""
    size = os.fstat(descriptor).st_size
    if size != file.size_bytes:
        raise _changed(file, size)
    return size


def _changed(file: CorpusFile, size: int) -> DataError:
    return DataError(
        f"corpus file {file.path} has changed while it was read: {file.size_bytes} bytes when it was listed, "
        f"{size} now; run again when nothing writes to it"
    )


def _read(file: CorpusFile, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file whose size is still that of the listing."""
    descriptor = open_stored(file)
    try:
        stored_size(descriptor, file)
        return read_at(descriptor, file, stop - start, start)
    finally:
        os.close(descriptor)


def read_at(descriptor: int, file: CorpusFile, num_bytes: int, at: int) -> bytes:
    """Bytes [at, at + num_bytes) of a file; raises DataError where they cannot be had."""
    content = _some_at(descriptor, file, num_bytes, at)
    while len(content) < num_bytes:  # some file systems give less than was asked for
        more = _some_at(descriptor, file, num_bytes - len(content), at + len(content))
        if not more:
            raise _changed(file, at + len(content))
        content += more
    return content


def _some_at(descriptor: int, file: CorpusFile, num_bytes: int, at: int) -> bytes:
    """Up to `num_bytes` bytes from `at` on."""
    try:
        return os.pread(descriptor, num_bytes, at)
    except OSError as error:
        raise cannot_be_read(f"corpus file {file.path}", at, error) from error


def cannot_be_read(name: str, place: int | str, error: OSError) -> DataError:
    """The error for an input that fails at a byte of what is stored, or at another place; `name` says what it is."""
    place = f"at byte {place}" if isinstance(place, int) else place
    return DataError(
        f"{name} cannot be read {place} ({error.strerror or error}); check its disk or network, run again, or name the "
        "inputs without it"
    )


def _line_start(descriptor: int, file: CorpusFile, position: int) -> int:
    """The first line start at or after `position`; the file's size where there is none."""
    size = file.size_bytes
    assert size is not None, file
    if position <= len(BOM):
        first = len(BOM) if _some_at(descriptor, file, len(BOM), 0) == BOM else 0
        if position <= first:
            return first
    at, look = position - 1, _FIRST_LOOK_BYTES
    while at < size:
        block = _some_at(descriptor, file, look, at)
        if not block:
            raise _changed(file, at)
        found = block.find(b"\n")
        if found >= 0:
            return min(at + found + 1, size)
        at += len(block)
        look = _SCAN_BYTES
    return size


def _last_line_start(descriptor: int, file: CorpusFile, start: int, stop: int) -> int:
    """The last line start in [start, stop), where `start` is one; `stop` - `start` is at most a chunk."""
    content = read_at(descriptor, file, stop - 1 - start, start)
    return start + content.rfind(b"\n") + 1
