"""The chunks of a corpus, whatever its files are. In: files and ranges of them. Out: Chunk, a few MiB each, in order.

Opening, finding line starts and decompression happen where the chunks are asked for; a chunk's `load` does the rest in
any thread. Knows nothing of tokenizers.
"""

from collections.abc import Iterator
from pathlib import Path

from megagpt.data.corpus import STANDARD_INPUT, CorpusFile
from megagpt.data.corpus_formats import BadDocument, DamagedFile
from megagpt.data.sources_columns import dataset_chunks, parquet_chunks
from megagpt.data.sources_plain import count_lines, plain_chunks, text_chunks
from megagpt.data.sources_ranges import assign_ranges
from megagpt.data.sources_streams import compressed_chunks, input_chunks, lines_before
from megagpt.data.sources_types import (
    SIZES,
    Chunk,
    FileRange,
    JsonLines,
    LongLine,
    LongText,
    Payload,
    Sizes,
    Texts,
)

__all__ = [
    "SIZES",
    "BadDocument",
    "Chunk",
    "DamagedFile",
    "FileRange",
    "JsonLines",
    "LongLine",
    "LongText",
    "Payload",
    "Sizes",
    "Texts",
    "assign_ranges",
    "chunks",
    "line_of",
    "place_of",
]

_COMPRESSED = (".gz", ".zst")


def chunks(
    file: CorpusFile,
    number: int,
    text_key: str,
    start: int = 0,
    stop: int | None = None,
    *,
    spool: Path,
    sizes: Sizes = SIZES,
) -> Iterator[Chunk]:
    """The chunks of `file`, the `number`-th of the corpus, whose lines or rows start in [start, stop), in order.

    Where a chunk ends does not depend on `start`, so that reading can go on at the `stop` of any chunk. `text_key`
    names the column of tables. Long lines of a stream are put into files in the folder `spool`.

    Raises DataError where the file may not be read or has changed since it was listed, and DamagedFile, after the
    chunks of all that is whole, where the rest of a file cannot be read.
    """
    if file.path == STANDARD_INPUT:
        return input_chunks(number, start, stop, spool, sizes)
    if file.dataset is not None:
        return dataset_chunks(file, number, text_key, start, stop, sizes)
    if file.path.endswith(".parquet"):
        return parquet_chunks(file, number, text_key, start, stop, sizes)
    if file.path.endswith(".txt"):
        return text_chunks(file, number, start, sizes)
    if file.path.endswith(_COMPRESSED):
        return compressed_chunks(file, number, start, stop, spool, sizes)
    assert file.path.endswith(".jsonl"), file
    return plain_chunks(file, number, start, stop, sizes)


def line_of(file: CorpusFile, position: int) -> int:
    """The 1-based line (row of a table) that position `position` of a stored file is in; reads up to there."""
    if file.dataset is not None or file.path.endswith(".parquet"):
        return position + 1
    count = lines_before if file.path.endswith(_COMPRESSED) else count_lines
    return count(file, position) + 1


def place_of(file: CorpusFile, chunk: Chunk, payload: Payload, position: int) -> str:
    """FILE:LINE of byte or row `position` of the payload of a chunk of `file`, for a message."""
    if file.path != STANDARD_INPUT:
        return f"{file.path}:{line_of(file, chunk.start + position)}"
    assert chunk.first_line is not None, chunk
    before = payload.content.count(b"\n", 0, position) if isinstance(payload, JsonLines) else 0
    return f"standard input:{chunk.first_line + before}"
