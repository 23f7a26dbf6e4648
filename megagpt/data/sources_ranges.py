"""Which part of a corpus is whose, where several tasks share it. In: files, task and number of tasks. Out: FileRange.

Every task computes its own share alone; the shares in the order of tasks, joined, are the corpus.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

from megagpt.data.corpus import STANDARD_INPUT, CorpusFile
from megagpt.data.sources_columns import import_pyarrow
from megagpt.data.sources_types import FileRange
from megagpt.errors import DataError


def assign_ranges(files: Sequence[CorpusFile], task: int, num_tasks: int) -> list[FileRange]:
    """The share of `task` (from 0) of the corpus `files`: a contiguous part of it of about 1/num_tasks of its stored
    bytes, which may be nothing.

    Plain JSONL is cut at any byte (a line belongs to the range in which it starts), datasets between rows, parquet
    between row groups; other files are not cut. Raises DataError for a task that is none, and for standard input that
    several tasks cannot share.
    """
    if not 0 <= task < num_tasks:
        raise DataError(
            f"task {task} of {num_tasks} tasks does not exist; tasks are numbered from 0 to {num_tasks - 1}"
        )
    if num_tasks == 1:
        return [FileRange(number, 0, None) for number in range(len(files))]
    if any(file.path == STANDARD_INPUT for file in files):
        raise DataError(f"{num_tasks} tasks cannot share standard input; name files, or use one task")
    edges = list(accumulate((file.size_bytes or 0 for file in files), initial=0))
    share = _Share(edges[-1] * task // num_tasks, edges[-1] * (task + 1) // num_tasks, task == num_tasks - 1)
    return [
        FileRange(number, *rows)
        for number, (file, (start, stop)) in enumerate(zip(files, pairwise(edges), strict=True))
        if (rows := _part(file, start, stop, share)) is not None
    ]


class _Share(NamedTuple):
    """A task's bytes [start, stop) of the stored bytes of a corpus."""

    start: int
    stop: int
    is_last: bool

    def has(self, point: int) -> bool:
        """Whether a byte, or the end of the corpus, is this task's: it is exactly one task's."""
        return self.start <= point < self.stop or (self.is_last and point >= self.stop)


def _part(file: CorpusFile, start: int, stop: int, share: _Share) -> tuple[int, int | None] | None:
    """What of a file, which is bytes [start, stop) of the corpus, belongs to a share, in the file's own positions."""
    if start == stop or (share.start <= start and stop <= share.stop):
        return (0, None) if share.has(start) else None
    if stop <= share.start or share.stop <= start:
        return None
    if file.path.endswith(".jsonl") and file.dataset is None:
        return max(share.start - start, 0), None if share.stop >= stop else share.stop - start
    blocks = _blocks(file)
    if blocks is None:
        return (0, None) if share.has((start + stop) // 2) else None

    def point(block: int) -> int:
        return start + (stop - start) * blocks.double_middles[block] // max(2 * blocks.weight, 1)

    every = range(len(blocks.double_middles))
    low, high = (bisect_left(every, edge, key=point) for edge in (share.start, share.stop))
    if low == high:
        return None
    return blocks.first_rows[low], None if high == len(every) else blocks.first_rows[high]


class _Blocks(NamedTuple):
    """Runs of rows that are not cut: where each starts, twice the weight before its middle, and the whole weight."""

    first_rows: Sequence[int]
    double_middles: Sequence[int]
    weight: int


def _blocks(file: CorpusFile) -> _Blocks | None:
    """The blocks of a file; None where it must not be cut, or cannot be read, which reading it will report."""
    if file.dataset is not None:
        num_rows = file.dataset.num_rows
        return _Blocks(range(num_rows), range(1, 2 * num_rows, 2), num_rows)
    if not file.path.endswith(".parquet"):
        return None
    pyarrow = import_pyarrow()
    try:
        metadata = pyarrow.parquet.ParquetFile(file.path).metadata
    except (pyarrow.ArrowException, OSError):
        return None
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    rows = list(accumulate((group.num_rows for group in groups), initial=0))
    weights = list(accumulate((group.total_byte_size for group in groups), initial=0))
    return _Blocks(rows[:-1], [before + after for before, after in pairwise(weights)], weights[-1])
