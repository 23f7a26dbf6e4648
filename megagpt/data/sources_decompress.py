"""Decompression of gzip and Zstandard. In: an open binary file. Out: pieces of its content, at most PIECE_BYTES each.

Memory does not depend on how well the file is compressed. Knows nothing of lines. gzip is read by isal (Intel's
igzip, twice as fast), which is installed with megagpt on x86_64 and aarch64, the processors it is made for, and by
zlib on others. Nobody is told: the content and the errors are the same, and there is nothing for a user to do.
"""

import importlib
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from megagpt.errors import DataError

PIECE_BYTES = 2 << 20
_READ_BYTES = 1 << 17  # measured: larger is slower with isal and zlib, equal with zstandard
_ZSTD_MAX_WINDOW_BYTES = 1 << 31
_MAGIC_BYTES = 4
_MAGIC = 0xFD2FB528
_SKIPPABLE_MAGIC = 0x184D2A50
_ZSTD_BLOCK_BYTES = 1 << 17
_RUN_LENGTH_BLOCK = 1


class DamagedStream(Exception):
    """The rest of the content cannot be had; the message says why, in the library's words."""


class Readable(Protocol):
    """The part of a binary file that is used here."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; none at the end."""


Decompressor = Callable[[Readable], Iterator[bytes]]


def gzip_pieces(stream: Readable) -> Iterator[bytes]:
    """The content of a gzip file of any number of members, padded with zeros or not; raises DamagedStream."""
    make, library_error = _inflater()
    member: Any = None
    try:
        while data := stream.read(_READ_BYTES):
            while data:
                if member is None:
                    data = data.lstrip(b"\0")
                    member = make(wbits=31) if data else None
                    continue
                piece = member.decompress(data, PIECE_BYTES)
                if piece:
                    yield piece
                data = member.unused_data if member.eof else member.unconsumed_tail
                if member.eof:
                    member = None
        while member is not None and (piece := member.decompress(b"", PIECE_BYTES)):
            yield piece
            member = None if member.eof else member
    except library_error as error:
        raise DamagedStream(str(error)) from error
    if member is not None and not member.eof:
        raise DamagedStream("the last member is not complete")


def zstd_pieces(stream: Readable) -> Iterator[bytes]:
    """The content of a Zstandard file of any number of frames, skippable ones among them; raises DamagedStream."""
    try:
        import zstandard
    except ImportError as error:
        raise DataError("reading .zst files needs the package zstandard; pip install zstandard") from error
    source: Any = _FrameWatch(stream)
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_MAX_WINDOW_BYTES)
    reader = decompressor.stream_reader(source, read_size=_READ_BYTES, read_across_frames=True, closefd=False)
    try:
        while piece := reader.read(_ZSTD_BLOCK_BYTES):  # an error loses what it has read of this
            yield piece
    except zstandard.ZstdError as error:
        raise DamagedStream(str(error)) from error
    if source.unknown_frame:
        raise DamagedStream("what follows the last frame is no frame")
    if not source.between_frames:
        raise DamagedStream("the last frame is not complete")


def _inflater() -> tuple[Callable[..., Any], type[Exception]]:
    try:
        isal_zlib: Any = importlib.import_module("isal.isal_zlib")
    except ImportError:
        return zlib.decompressobj, zlib.error
    return isal_zlib.decompressobj, isal_zlib.error


class _FrameWatch:
    """A file that zstandard reads, up to what is no frame, and whether what was read so far ends with a whole frame.

    zstandard's reader takes the end of a file for the end of its content, even in the middle of a frame, and where
    something else follows a frame, it does not give the frame's last bytes. So the frames' own lengths are followed
    here (RFC 8878 §3.1).
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._passing = 0  # bytes to pass over, before
        self._wanted = _MAGIC_BYTES  # bytes to collect in
        self._seen = b""  # for
        self._look: Callable[[bytes], None] = self._magic
        self._checksum_bytes = 0
        self.unknown_frame = False

    @property
    def between_frames(self) -> bool:
        """Whether nothing of a further frame was read yet."""
        return self._look == self._magic and not self._passing and not self._seen

    def read(self, size: int) -> bytes:
        """As a file does it."""
        data = b"" if self.unknown_frame else self._stream.read(size)
        at = 0
        while at < len(data):
            passed = min(self._passing, len(data) - at)
            self._passing -= passed
            at += passed
            part = data[at : at + self._wanted - len(self._seen)]
            self._seen += part
            at += len(part)
            if len(self._seen) == self._wanted:
                seen, self._seen = self._seen, b""
                self._look(seen)
                if self.unknown_frame:
                    return data[: max(0, at - _MAGIC_BYTES)]
        return data

    def _magic(self, seen: bytes) -> None:
        magic = int.from_bytes(seen, "little")
        self.unknown_frame = magic != _MAGIC and magic & ~0xF != _SKIPPABLE_MAGIC
        if magic & ~0xF == _SKIPPABLE_MAGIC:
            self._then(0, 4, self._skippable)
        else:
            self._then(0, 1, self._descriptor)

    def _skippable(self, seen: bytes) -> None:
        self._then(int.from_bytes(seen, "little"), _MAGIC_BYTES, self._magic)

    def _descriptor(self, seen: bytes) -> None:
        flags = seen[0]
        single_segment = flags >> 5 & 1
        content_size_bytes = (single_segment, 2, 4, 8)[flags >> 6]
        dictionary_bytes = (0, 1, 2, 4)[flags & 3]
        self._checksum_bytes = 4 * (flags >> 2 & 1)
        self._then((1 - single_segment) + dictionary_bytes + content_size_bytes, 3, self._block)

    def _block(self, seen: bytes) -> None:
        header = int.from_bytes(seen, "little")
        size = 1 if header >> 1 & 3 == _RUN_LENGTH_BLOCK else header >> 3
        if header & 1:  # the frame's last
            self._then(size + self._checksum_bytes, _MAGIC_BYTES, self._magic)
        else:
            self._then(size, 3, self._block)

    def _then(self, passing: int, wanted: int, look: Callable[[bytes], None]) -> None:
        self._passing, self._wanted, self._look = passing, wanted, look
