# mypy: allow-untyped-defs
"""Casting a matrix to float8 on the GPU: one read gives it scaled as it lies, turned, or both.

A matrix product in float8 wants both operands with the summed dim innermost, so that a linear's input is needed as it
lies in the forward pass and turned in the backward pass. Started by float8.py alone, which says what the scale is.
"""

import triton
import triton.language as tl


@triton.jit
def cast_kernel(
    values,  # [rows, columns], contiguous
    largest,  # [] float32: largest magnitude in it
    plain,  # [rows, columns] float8, contiguous
    turned,  # [columns, rows] float8, contiguous
    inverse_scale,  # [] float32
    rows,
    columns,
    most,  # largest number of the format
    least,  # a largest magnitude below this counts as this
    WRITE_PLAIN: tl.constexpr,
    WRITE_TURNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One tile of the matrix; the first program also writes the inverse of the scale."""
    first_row, first_column = tl.program_id(0) * BLOCK, tl.program_id(1) * BLOCK
    ratio = most / tl.maximum(tl.load(largest), least)
    # the exponent's bits alone: the power of two that is not above the ratio
    scale = (ratio.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
    if (tl.program_id(0) == 0) & (tl.program_id(1) == 0):
        tl.store(inverse_scale, 1.0 / scale)

    row, column = first_row + tl.arange(0, BLOCK), first_column + tl.arange(0, BLOCK)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tile = tl.load(values + row[:, None].to(tl.int64) * columns + column[None, :], mask=inside, other=0.0)
    cast = (tile.to(tl.float32) * scale).to(plain.dtype.element_ty)
    if WRITE_PLAIN:
        tl.store(plain + row[:, None].to(tl.int64) * columns + column[None, :], cast, mask=inside)
    if WRITE_TURNED:
        tl.store(turned + column[:, None].to(tl.int64) * rows + row[None, :], tl.trans(cast), mask=tl.trans(inside))
