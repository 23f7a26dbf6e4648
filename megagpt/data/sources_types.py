"""What passes from reading a corpus to encoding it: ranges of files, chunks of them, and what a chunk holds.

Positions are bytes of a file's content (after decompression) for JSONL, rows for parquet and datasets, 0 and 1 for
plain text. Nothing here reads a file.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from megagpt.data.corpus_formats import BadDocument

CHUNK_BYTES = 2 << 20
LONG_LINE_BYTES = 8 << 20
BOM = b"\xef\xbb\xbf"


class Sizes(NamedTuple):
    """How big the parts are that a corpus is read in."""

    chunk_bytes: int = CHUNK_BYTES  # of content; one more line may follow
    long_line_bytes: int = LONG_LINE_BYTES  # a longer line, its line end included, is never held whole in memory


SIZES = Sizes()


class FileRange(NamedTuple):
    """A part of one file: the lines or rows that start in [start, stop); `stop` None is the end of the file."""

    file: int  # index in the list of CorpusFile
    start: int
    stop: int | None


class JsonLines(NamedTuple):
    """Whole lines of JSONL. A BOM of the file is gone; CRLF and blank lines are still in; the last may lack its end."""

    content: bytes


class Texts(NamedTuple):
    """n texts: text i is data[offsets[i]:offsets[i + 1]], meant to be UTF-8, which nobody has checked yet.

    `offsets` int64 [n + 1]; the first need not be 0, and `data` may go on after the last (both are Arrow's own
    buffers, not copied). The texts listed in `bad` by their index are none, whatever their bytes.
    """

    data: memoryview | bytes
    offsets: NDArray[np.int64]
    bad: tuple[tuple[int, BadDocument], ...] = ()


class LongLine(NamedTuple):
    """One line of JSONL, bytes [start, stop) of the file `path`; whoever has encoded it removes a `temporary` file."""

    path: Path
    start: int
    stop: int
    temporary: bool = False


class LongText(NamedTuple):
    """One document of plain text, bytes [start, stop) of the file `path`, with its BOM and CRLF still in."""

    path: Path
    start: int
    stop: int


Payload = JsonLines | Texts | LongLine | LongText


class Chunk(NamedTuple):
    """A part of one file: reading it costs little, `load` does the rest and may run in any thread.

    What lies at byte or row p of the payload lies at `start` + p of the file. `load` raises DataError where the file
    has changed since it was listed, and DamagedFile where it cannot be read.
    """

    file: int  # index in the list of CorpusFile
    start: int
    stop: int  # where the next chunk of this file starts
    stored_bytes: int  # how far this file, as it is stored, is read when this chunk is done
    load: Callable[[], Payload]
    first_line: int | None = None  # 1-based line at `start`, where the input cannot be read again (standard input)
