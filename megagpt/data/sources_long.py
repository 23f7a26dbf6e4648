"""The bytes of a payload that is a place in a file. In: LongLine or LongText. Out: its bytes, as many as are asked for.

Bytes are read, not mapped: a file that shrinks is an error, not a signal. The one exception is `mapped`.
"""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from megagpt.data.corpus import CorpusFile
from megagpt.data.sources_plain import open_stored, read_at
from megagpt.data.sources_types import LongLine, LongText
from megagpt.errors import DataError

_BLOCK_BYTES = 1 << 20


class LongContent:
    """The content of a payload; a context manager. Places are counted from the content's first byte."""

    def __init__(self, payload: LongLine | LongText) -> None:
        """Raises DataError where the file is gone, or shorter than when it was listed."""
        self._start = payload.start
        self._stop = payload.stop
        self._file = CorpusFile(str(payload.path), payload.stop)
        self._descriptor = open_stored(self._file)
        try:
            self._refuse_shorter()
        except DataError:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> "LongContent":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def __len__(self) -> int:
        return self._stop - self._start

    def read(self, at: int, num_bytes: int) -> bytes:
        """`num_bytes` from `at` on, fewer only at the end. Raises DataError where they cannot be read any more."""
        return read_at(self._descriptor, self._file, min(num_bytes, len(self) - at), self._start + at)

    def blocks(self) -> Iterator[bytes]:
        """All of it, in blocks of a mebibyte."""
        for at in range(0, len(self), _BLOCK_BYTES):
            yield self.read(at, _BLOCK_BYTES)

    @contextmanager
    def mapped(self) -> Iterator[memoryview]:
        """All of it in the process's addresses, for a search that needs that; it takes no memory until it is touched.

        The file's length is checked first. If it shrinks between this and the end of the search, which is one pass
        over the line, the system ends the process (SIGBUS); the build goes on after its last committed shard.
        """
        self._refuse_shorter()
        page_start = self._start - self._start % mmap.ALLOCATIONGRANULARITY
        length = self._stop - page_start
        with mmap.mmap(self._descriptor, length, access=mmap.ACCESS_READ, offset=page_start) as pages:
            content = memoryview(pages)[self._start - page_start :]
            try:
                yield content
            finally:
                content.release()

    def changed(self) -> DataError:
        """The error for a file that was written to."""
        size = os.fstat(self._descriptor).st_size
        return DataError(
            f"corpus file {self._file.path} has changed while it was read: it had {self._stop} bytes or more when it "
            f"was listed, {size} now; run again when nothing writes to it"
        )

    def _refuse_shorter(self) -> None:
        if os.fstat(self._descriptor).st_size < self._stop:
            raise self.changed()
