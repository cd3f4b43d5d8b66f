"""Rows of a data set as a batch in Triton: gathered, brought to floats, scaled and made binary."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvae.ops.triton.math import const, divide
from fastvae.ops.triton.philox import uniform_tile, upper24_tile

__all__ = ["AS_IT_IS", "DRAW", "DRAW_PIXELS", "THRESHOLD", "gather"]

AS_IT_IS, THRESHOLD, DRAW, DRAW_PIXELS = map(tl.constexpr, range(4))
"""How values become zeros and ones; bytes over 255 are drawn in integers."""


@triton.jit(debug=True, do_not_specialize=["draw", "divisor"])
def gather(
    data,
    index,
    row_numbers,
    seed,
    out,
    draw,
    divisor,
    samples,
    rows,
    columns,
    data_step,
    across,
    DIVIDE: tl.constexpr,
    BINARIZE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Row ``index[i]`` of the data to row i of ``out``, with the noise of row ``row_numbers[i]``."""
    program = tl.program_id(0)
    row = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = (program % across).to(tl.int64) * COLUMNS
    column = start + tl.arange(0, COLUMNS)
    picked = tl.load(index + row, mask=row < rows, other=0)
    of_data = (picked >= 0) & (picked < samples)
    tl.device_assert(of_data | (row >= rows), "gather_batch: an index is not a row of the data")
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    # An assertion may be compiled away: nothing outside the data is read.
    raw = tl.load(
        data + picked[:, None] * data_step + column[None, :], mask=inside & of_data[:, None], other=0
    )
    if BINARIZE == DRAW_PIXELS:
        # 2^24 p / 255 = 65793 p + p / 255: so many of the uniforms are below p / 255, rounded to float32.
        pixel = raw.to(tl.int32)
        number = tl.load(row_numbers + row, mask=row < rows, other=0)
        word = upper24_tile(number, start, draw.to(tl.uint32), tl.load(seed), ROWS, COLUMNS)
        result = (word < pixel * 65793 + ((pixel + 255) >> 8)).to(tl.float32)
    else:
        values = raw.to(tl.float32)
        if DIVIDE:
            values = divide(values, tl.full(values.shape, 1.0, tl.float32) * divisor)
        if BINARIZE == THRESHOLD:
            result = (values > const(values, 0.5, 0.5)).to(tl.float32)
        elif BINARIZE == DRAW:
            number = tl.load(row_numbers + row, mask=row < rows, other=0)
            uniform = uniform_tile(number, start, draw.to(tl.uint32), tl.load(seed), ROWS, COLUMNS)
            result = (values > uniform).to(tl.float32)
        else:
            result = values
    tl.store(out + row[:, None] * columns + column[None, :], result.to(out.dtype.element_ty), mask=inside)
