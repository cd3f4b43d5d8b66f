"""The data of a likelihood in Triton: bytes or floats, shared by all samples of the code."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def data_row(row, rows, data_rows, SHARED: tl.constexpr):
    """The row of the data that belongs to a row of the parameters (int64); ``SHARED``: they begin again."""
    if not SHARED:
        return row
    elif rows.dtype == tl.int32:
        # There are no more of the data. A division of 64 bits is a subroutine. Whether a row past the end
        # fits does not matter.
        return ((row & 0x7FFFFFFF).to(tl.int32) % data_rows).to(tl.int64)
    else:
        return row % data_rows
