"""Chunks of columns of text: parquet files and Hugging Face datasets. In: a file and rows of it. Out: Chunk.

Texts are Arrow's own buffers, not copied where a chunk lies in one array, and never Python strings. Whether they are
UTF-8 is not checked here. Decoding of parquet happens where the chunks are asked for.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from megagpt.data.corpus import CorpusFile
from megagpt.data.corpus_formats import BadDocument, damaged, missing_key, not_text
from megagpt.data.sources_datasets import column_arrays
from megagpt.data.sources_plain import cannot_be_read, open_stored, stored_size
from megagpt.data.sources_types import SIZES, Chunk, Sizes, Texts
from megagpt.errors import DataError

_BATCH_ROWS = 128  # so that long texts, which a dictionary may hide behind short codes, stay small together
_CHUNK_ROWS = 1 << 14
_READ_BYTES = 1 << 18
_DECAY_MS = 10
_POOL, _POOL_VARIABLE = "jemalloc", "ARROW_DEFAULT_MEMORY_POOL"


def parquet_chunks(
    file: CorpusFile, number: int, text_key: str, start: int = 0, stop: int | None = None, sizes: Sizes = SIZES
) -> Iterator[Chunk]:
    """Rows [start, stop) of the column `text_key`; a chunk lies in one row group. Row groups before `start` are not
    read. Memory: a page of the column, packed and unpacked, its dictionary, and the chunks that are in use.

    Raises DamagedFile after the chunks of all rows that can be read; damage to a page's values is seen where the file
    has checksums of its pages.
    """
    pyarrow = import_pyarrow()
    _check(file)
    row = start
    try:
        source = pyarrow.OSFile(file.path)
        parquet = pyarrow.parquet.ParquetFile(
            source, pre_buffer=False, buffer_size=_READ_BYTES, page_checksum_verification=True
        )
        size, metadata = source.size(), parquet.metadata
        end = metadata.num_rows if stop is None else min(stop, metadata.num_rows)
        if text_key not in parquet.schema_arrow.names:
            yield from _missing_column(number, size, text_key, parquet.schema_arrow.names, start)
            return
        following = 0
        for group in range(metadata.num_row_groups):
            first, following = following, following + metadata.row_group(group).num_rows
            if following <= start or first >= end:
                continue
            rows = _batch_rows(metadata.row_group(group), text_key, sizes)
            batches = parquet.iter_batches(rows, row_groups=[group], columns=[text_key], use_threads=False)
            rows_left = _RowsWithin(batches, start - first, end - first)
            for texts in _cut(rows_left, sizes.chunk_bytes):
                row, before = row + sum(map(len, texts)), row
                yield Chunk(number, before, row, size * row // metadata.num_rows, partial(_load, texts, text_key))
            if rows_left.error is not None:
                raise rows_left.error
    except (pyarrow.ArrowException, OSError) as error:
        _check(file)
        if isinstance(error, OSError) and error.errno:  # the disk's; Arrow's own have no number
            raise cannot_be_read(f"corpus file {file.path}", f"after row {row}", error) from error
        raise damaged("parquet", row, str(error)) from error


def dataset_chunks(
    file: CorpusFile, number: int, text_key: str, start: int = 0, stop: int | None = None, sizes: Sizes = SIZES
) -> Iterator[Chunk]:
    """Rows [start, stop) of a column of a Hugging Face dataset (hf:NAME...)."""
    dataset = file.dataset
    assert dataset is not None, file
    assert file.size_bytes is not None, file
    if text_key not in dataset.columns:
        yield from _missing_column(number, file.size_bytes, text_key, dataset.columns, start)
        return
    end = dataset.num_rows if stop is None else min(stop, dataset.num_rows)
    for first, arrays in column_arrays(dataset, text_key, start):
        row = first
        for texts in _cut(_first_rows(arrays, end - first), sizes.chunk_bytes):
            row, before = row + sum(map(len, texts)), row
            stored = file.size_bytes * row // dataset.num_rows
            yield Chunk(number, before, row, stored, partial(_load, texts, text_key))


class _RowsWithin:
    """Rows [start, stop) of batches of one column, as arrays; ends before an error, which is then in `error`."""

    def __init__(self, batches: Iterator[Any], start: int, stop: int) -> None:
        self.error: Exception | None = None
        self._batches = batches
        self._start = start
        self._stop = stop

    def __iter__(self) -> Iterator[Any]:
        first = 0
        while first < self._stop:
            try:
                batch = next(self._batches, None)
            except Exception as error:
                self.error = error
                return
            if batch is None:
                return
            array = batch.column(0)
            low, high = max(self._start - first, 0), min(self._stop - first, len(array))
            first += len(array)
            if low < high:
                yield array[low:high]


def _first_rows(arrays: Iterator[Any], rows: int) -> Iterator[Any]:
    for array in arrays:
        if rows <= 0:
            return
        yield array[:rows]
        rows -= len(array)


def import_pyarrow() -> Any:
    """pyarrow with pyarrow.parquet, its memory set up. Raises DataError where it is not installed.

    All of its memory comes from one allocator that soon gives back what is free, not pages from one and arrays from
    another: a build of 969 MB of content takes 173 MB so, 200 MB with two. That can only be chosen before the first
    import, by the environment; where the user has chosen there, or has imported it already, arrays alone are from it.
    """
    chosen = os.environ.setdefault(_POOL_VARIABLE, _POOL)
    try:
        import pyarrow
        import pyarrow.parquet

        pyarrow.default_memory_pool()
    except ImportError as error:
        raise DataError("reading .parquet files needs the package pyarrow; pip install pyarrow") from error
    finally:
        if chosen is _POOL:
            del os.environ[_POOL_VARIABLE]
    if _POOL in pyarrow.supported_memory_backends():
        pyarrow.set_memory_pool(pyarrow.jemalloc_memory_pool())
        pyarrow.jemalloc_set_decay_ms(_DECAY_MS)
    return pyarrow


def _check(file: CorpusFile) -> None:
    """The file may be read and is as long as when it was listed."""
    descriptor = open_stored(file)
    try:
        stored_size(descriptor, file)
    finally:
        os.close(descriptor)


def _batch_rows(group: Any, text_key: str, sizes: Sizes) -> int:
    """How many rows of a row group to decode at once: at most about a chunk of text, as far as its size is known."""
    columns = [group.column(index) for index in range(group.num_columns)]
    text_bytes = sum(column.total_uncompressed_size for column in columns if column.path_in_schema == text_key)
    return max(1, min(_BATCH_ROWS, sizes.chunk_bytes * group.num_rows // max(text_bytes, 1)))


def _missing_column(number: int, size: int, text_key: str, present: Sequence[str], start: int) -> Iterator[Chunk]:
    """One row that says so, and is the whole file."""
    bad = ((0, missing_key(text_key, present, "column")),)
    if start == 0:
        yield Chunk(number, 0, 1, size, partial(Texts, b"", np.zeros(2, np.int64), bad))


def _cut(arrays: Iterable[Any], chunk_bytes: int) -> Iterator[list[Any]]:
    """The rows of `arrays` in groups of at most `chunk_bytes` of text and _CHUNK_ROWS rows, or one row; each group as
    slices of arrays.

    Where a group ends follows from where it starts.
    """
    group: list[Any] = []
    room, rows = chunk_bytes, _CHUNK_ROWS
    for array in map(_plain, arrays):
        ends = _text_ends(array)
        low = 0
        while low < len(array):
            before = int(ends[low - 1]) if low else 0
            high = int(np.searchsorted(ends, before + room, side="right"))
            high = min(max(high, low if group else low + 1), low + rows)
            if high > low:
                group.append(array[low:high])
                room -= int(ends[high - 1]) - before
                rows -= high - low
            if high < len(array):
                yield group
                group, room, rows = [], chunk_bytes, _CHUNK_ROWS
            low = high
    if group:
        yield group


def _text_ends(array: Any) -> NDArray[np.int64]:
    """int64 [n]: bytes of an array's texts up to and with each one; 0 where they are not stored one by one."""
    if not len(array) or not _is_text(array):
        return np.zeros(len(array), np.int64)
    offsets = _offsets(array)
    return offsets[1:] - offsets[0]


def _load(arrays: Sequence[Any], text_key: str) -> Texts:
    import pyarrow

    array = arrays[0] if len(arrays) == 1 else pyarrow.concat_arrays(arrays)
    if not _is_text(array):
        values = array.to_pylist()
        bad = tuple((index, not_text(text_key, value)) for index, value in enumerate(values))
        return Texts(b"", np.zeros(len(array) + 1, np.int64), bad)
    none: tuple[tuple[int, BadDocument], ...] = ()
    if array.null_count:
        valid = np.unpackbits(np.frombuffer(array.buffers()[0], np.uint8), bitorder="little")
        nulls = np.flatnonzero(valid[array.offset : array.offset + len(array)] == 0)
        none = tuple((index, not_text(text_key, None)) for index in nulls.tolist())
    data = array.buffers()[2]
    return Texts(memoryview(data) if data is not None else b"", _offsets(array), none)


def _is_text(array: Any) -> bool:
    import pyarrow

    return bool(pyarrow.types.is_string(array.type) or pyarrow.types.is_large_string(array.type))


def _plain(array: Any) -> Any:
    """Text that is stored as a dictionary or as views, as one buffer; anything else as it is."""
    import pyarrow

    if pyarrow.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    return array.cast(pyarrow.large_string()) if pyarrow.types.is_string_view(array.type) else array


def _offsets(array: Any) -> NDArray[np.int64]:
    """int64 [n + 1] into the array's data."""
    import pyarrow

    width = np.int32 if pyarrow.types.is_string(array.type) else np.int64
    offsets = np.frombuffer(array.buffers()[1], dtype=width)
    return offsets[array.offset : array.offset + len(array) + 1].astype(np.int64, copy=False)
