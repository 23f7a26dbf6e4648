"""How each kind of corpus file is read. In: an open binary file and the text's key. Out: (line, text or BadDocument).

A reader raises DamagedFile where the rest of the file cannot be read. Nothing here knows paths or what to do on errors.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, BinaryIO, NamedTuple

from megagpt.data.sources_datasets import DatasetFiles, column_arrays
from megagpt.data.sources_decompress import DamagedStream, gzip_pieces, zstd_pieces
from megagpt.errors import DataError

_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS = 256  # held at once


class BadDocument(NamedTuple):
    """A document that cannot be read: a short reason to count under, and a message with the fix."""

    reason: str
    message: str


class DamagedFile(Exception):
    """The rest of a file cannot be read."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


Entry = tuple[int, str | BadDocument]
Reader = Callable[[BinaryIO, str], Iterator[Entry]]


def json_lines(stream: BinaryIO, text_key: str) -> Iterator[Entry]:
    """JSONL: an object a line, UTF-8, with or without BOM and CRLF; blank lines are passed over."""
    return _json_entries(stream, text_key)


def json_lines_gz(stream: BinaryIO, text_key: str) -> Iterator[Entry]:
    """JSONL in gzip, one or several members."""
    return _compressed_entries("gzip", gzip_pieces(stream), text_key)


def json_lines_zst(stream: BinaryIO, text_key: str) -> Iterator[Entry]:
    """JSONL in Zstandard, one or several frames."""
    return _compressed_entries("zstd", zstd_pieces(stream), text_key)


def plain_text(stream: BinaryIO, text_key: str) -> Iterator[Entry]:
    """A text file is one document; a BOM is removed and CRLF becomes LF. `text_key` does not matter."""
    content = stream.read().removeprefix(_BOM)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        yield line, _invalid_utf8(error, "file")
        return
    yield 1, text.replace("\r\n", "\n")


def parquet(stream: BinaryIO, text_key: str) -> Iterator[Entry]:
    """The column `text_key` of a parquet file; a row is a document."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise DataError("reading .parquet files needs the package pyarrow; pip install pyarrow") from error
    row = 0
    try:
        file = pyarrow.parquet.ParquetFile(stream)
        columns = file.schema_arrow.names
        if text_key not in columns:
            yield 1, missing_key(text_key, columns, "column")
            return
        for batch in file.iter_batches(batch_size=_PARQUET_ROWS, columns=[text_key]):
            yield from _column_entries(batch.column(0), row, text_key)
            row += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise damaged("parquet", row, str(error)) from error


def dataset_rows(dataset: DatasetFiles, text_key: str) -> Iterator[Entry]:
    """The column `text_key` of a Hugging Face dataset; a row is a document."""
    if text_key not in dataset.columns:
        yield 1, missing_key(text_key, dataset.columns, "column")
        return
    for row, arrays in column_arrays(dataset, text_key):
        for array in arrays:
            yield from _column_entries(array, row, text_key)
            row += len(array)


def _column_entries(column: Any, row: int, text_key: str) -> Iterator[Entry]:
    """The values of a pyarrow column whose first is behind row `row`."""
    for number, value in enumerate(column.to_pylist(), start=row + 1):
        yield number, value if isinstance(value, str) else not_text(text_key, value)


FORMATS: Mapping[str, Reader] = MappingProxyType(
    {
        ".jsonl": json_lines,
        ".jsonl.gz": json_lines_gz,
        ".jsonl.zst": json_lines_zst,
        ".json.gz": json_lines_gz,
        ".json.zst": json_lines_zst,
        ".txt": plain_text,
        ".parquet": parquet,
    }
)


def _compressed_entries(form: str, pieces: Iterator[bytes], text_key: str) -> Iterator[Entry]:
    line = 0
    try:
        for line, found in _json_entries(_lines(pieces), text_key):
            yield line, found
    except DamagedStream as damage:
        raise damaged(form, line, str(damage)) from damage


def _json_entries(lines: Iterable[bytes], text_key: str) -> Iterator[Entry]:
    for number, raw in enumerate(lines, start=1):
        raw = raw.removeprefix(_BOM) if number == 1 else raw
        if raw.strip():
            yield number, json_text(raw, text_key)


def json_text(raw: bytes, text_key: str) -> str | BadDocument:
    """The text of one line of JSONL, its line end or not, or why there is none. A lone surrogate is not looked for."""
    try:
        row = json.loads(raw.rstrip(b"\r\n").decode("utf-8"))
    except UnicodeDecodeError as error:
        return _invalid_utf8(error, "line")
    except (ValueError, RecursionError) as error:  # JSONDecodeError, or an integer of more digits than Python reads
        return BadDocument("not JSON", f"the line is not JSON ({error}); repair it, or use --on-error skip")
    if not isinstance(row, dict):
        return BadDocument(
            "not a JSON object",
            f'the line is a JSON {type(row).__name__}, not an object such as {{"{text_key}": "…"}}; '
            "repair it, or use --on-error skip",
        )
    if text_key not in row:
        return missing_key(text_key, list(row), "key")
    text = row[text_key]
    return text if isinstance(text, str) else not_text(text_key, text)


def utf8_bytes(text: str) -> int | BadDocument:
    """The length of `text` in UTF-8, or what is wrong with it: a lone surrogate, which a JSON escape can hold."""
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        surrogate = f"U+{ord(text[error.start]):04X}"
        return BadDocument(
            "lone surrogate",
            f"the text has a lone surrogate {surrogate} at character {error.start}, which is no character; "
            "repair the line, or use --on-error skip",
        )


def missing_key(text_key: str, present: Sequence[str], noun: str) -> BadDocument:
    """Says that there is no such key or column (`noun`), and which there are."""
    names = ", ".join(map(repr, present)) or "none"
    return BadDocument(
        f"no {noun} {text_key!r}",
        f"there is no {noun} {text_key!r}; the {noun}s are: {names}; name the text's {noun} with --text-key",
    )


def not_text(text_key: str, value: Any) -> BadDocument:
    """Says that `value`, which stands where the text must be, is none."""
    kind = "null" if value is None else type(value).__name__
    return BadDocument(
        f"{text_key!r} is not text",
        f"{text_key!r} is {kind}, not text; name another with --text-key, or use --on-error skip",
    )


def _invalid_utf8(error: UnicodeDecodeError, noun: str) -> BadDocument:
    return BadDocument(
        "invalid UTF-8",
        f"invalid UTF-8 at byte {error.start} of the {noun} (0x{error.object[error.start]:02x}: {error.reason}); "
        "convert the file to UTF-8, or use --on-error skip",
    )


def damaged(form: str, last_good_line: int, detail: str) -> DamagedFile:
    """The error for a file of a compressed form (such as gzip) that is whole up to a line; `detail` is the reason."""
    detail = detail.strip().splitlines()[0] if detail.strip() else "it ends too early"
    return DamagedFile(
        f"damaged {form} file",
        f"the {form} data is truncated or damaged after line {last_good_line} ({detail}); copy the file again, "
        "or use --on-error skip",
    )


def _lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    rest: list[bytes] = []
    for chunk in chunks:
        pieces = chunk.split(b"\n")
        rest.append(pieces[0])
        if len(pieces) > 1:
            yield b"".join(rest)
            yield from pieces[1:-1]
            rest = [pieces[-1]]
    if last := b"".join(rest):
        yield last
