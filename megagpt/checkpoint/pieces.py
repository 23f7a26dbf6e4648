"""Pieces of a run's state: flat ranges of parameters, whatever layout cut them, and how one cut overlays another.

A parameter is a matrix of R rows whose C columns are divided over S tensor slices: split along dim d of its shape, R is
the product of the sizes before d and C of those from d on; one that is not split has a single slice. A slice is
[R, C / S] row by row, and a piece is a range of its elements. Pure: knows nothing of files or ranks.
"""

from math import prod
from typing import NamedTuple

from torch import Tensor

from megagpt.model.names import ParameterInfo

MASTER, EXP_AVG, EXP_AVG_SQ = "master", "exp_avg", "exp_avg_sq"
KINDS = (MASTER, EXP_AVG, EXP_AVG_SQ)  # float32 weight, and AdamW's two moments


class Piece(NamedTuple):
    """Elements [start, stop) of one tensor slice of a parameter: [stop - start] float32 views, contiguous."""

    name: str
    tensor_slice: int  # 0 where tensor parallelism does not split the parameter
    start: int
    stop: int
    master: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    def tensor(self, kind: str) -> Tensor:
        """One of KINDS."""
        value: Tensor = getattr(self, kind)
        return value

    def narrow(self, start: int, stop: int) -> "Piece":
        """The part of this piece that lies in [start, stop) of the slice."""
        assert self.start <= start <= stop <= self.stop, (self.start, start, stop, self.stop)
        views = (self.tensor(kind)[start - self.start : stop - self.start] for kind in KINDS)
        return Piece(self.name, self.tensor_slice, start, stop, *views)


class Cut(NamedTuple):
    """Where a piece lies: elements [start, stop) of slice `tensor_slice` of `num_slices`."""

    tensor_slice: int
    num_slices: int
    start: int
    stop: int


class Copy(NamedTuple):
    """A block to copy from one flat piece to another, as (offset, stride of a row) on either side."""

    source: tuple[int, int]
    target: tuple[int, int]
    num_rows: int
    num_columns: int

    def within(self, start: int, stop: int) -> "list[Copy]":
        """What of it has its source elements in [start, stop), with offsets of the source from `start` on."""
        offset, stride = self.source
        first = max(0, -(-(start - offset) // stride))  # the first row that begins there
        last = min(self.num_rows, (stop - offset - self.num_columns) // stride + 1)  # after the last that ends there
        found = [self._block(first, last, 0, self.num_columns, start)] if first < last else []
        for row in {first - 1, max(first - 1, last)}:  # cut by an end, or by both
            begin = offset + row * stride
            column, stop_column = max(start - begin, 0), min(stop - begin, self.num_columns)
            if 0 <= row < self.num_rows and column < stop_column:
                found.append(self._block(row, row + 1, column, stop_column, start))
        return found

    def _block(self, row: int, stop_row: int, column: int, stop_column: int, start: int) -> "Copy":
        (source, source_stride), (target, target_stride) = self.source, self.target
        return Copy(
            (source + row * source_stride + column - start, source_stride),
            (target + row * target_stride + column, target_stride),
            stop_row - row,
            stop_column - column,
        )

    def run(self, source: Tensor, target: Tensor) -> None:
        """Copy the block between two flat tensors; converts the dtype where they differ."""
        shape = (self.num_rows, self.num_columns)
        target.as_strided(shape, (self.target[1], 1), target.storage_offset() + self.target[0]).copy_(
            source.as_strided(shape, (self.source[1], 1), source.storage_offset() + self.source[0])
        )


class _Block(NamedTuple):
    """A rectangle of the parameter's matrix that lies in a piece from element `offset` of the piece on."""

    row: int
    stop_row: int
    column: int
    stop_column: int
    offset: int


def num_slices(info: ParameterInfo, tensor_ranks: int) -> int:
    """Slices of a parameter over so many tensor ranks."""
    return 1 if info.split_dim is None else tensor_ranks


def slice_size(info: ParameterInfo, slices: int) -> int:
    """Elements of one slice."""
    size = prod(info.shape)
    assert size % slices == 0, (info, slices)
    return size // slices


def overlay(info: ParameterInfo, source: Cut, target: Cut) -> list[Copy]:
    """What to copy to fill, in `target`, all that `source` holds of it; empty where they share nothing."""
    columns = prod(info.shape[info.split_dim or 0 :])
    found = []
    for there in _blocks(source, columns):
        for here in _blocks(target, columns):
            row, stop_row = max(there.row, here.row), min(there.stop_row, here.stop_row)
            column, stop_column = max(there.column, here.column), min(there.stop_column, here.stop_column)
            if row < stop_row and column < stop_column:
                found.append(
                    Copy(
                        _address(there, row, column), _address(here, row, column), stop_row - row, stop_column - column
                    )
                )
    return found


def _blocks(cut: Cut, columns: int) -> list[_Block]:
    """A range of a slice as rectangles, at most three: the rest of a row, whole rows, the start of a row."""
    width = columns // cut.num_slices
    first = cut.tensor_slice * width
    found, position = [], cut.start
    while position < cut.stop:
        row, column = divmod(position, width)
        if column == 0 and cut.stop - position >= width:
            rows, count = (cut.stop - position) // width, width
        else:
            rows, count = 1, min(width - column, cut.stop - position)
        found.append(_Block(row, row + rows, first + column, first + column + count, position - cut.start))
        position += rows * count
    return found


def _address(block: _Block, row: int, column: int) -> tuple[int, int]:
    """Offset of an element within its piece, and the step from row to row."""
    width = block.stop_column - block.column
    return block.offset + (row - block.row) * width + column - block.column, width
