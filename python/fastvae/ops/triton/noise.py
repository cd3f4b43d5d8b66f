"""Noise by itself in Triton: matrices of it, keys to sort by, seeds from seeds."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvae.ops.triton.philox import FOLD_IN_2, FOLD_IN_3, normal_tile, philox, uniform_tile, words


@triton.jit(do_not_specialize=["draw", "row_offset"])
def fill(
    out,
    seed,
    draw,
    row_offset,
    row_ids,
    rows,
    columns,
    across,
    NORMAL: tl.constexpr,
    LISTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Normals or uniforms, float32, of consecutive rows or of those that are ``LISTED``."""
    program = tl.program_id(0)
    row = (program // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = (program % across).to(tl.int64) * COLUMNS
    column = start + tl.arange(0, COLUMNS)
    if LISTED:
        number = tl.load(row_ids + row, mask=row < rows, other=0)
    else:
        number = row + row_offset.to(tl.int64)
    if NORMAL:
        values = normal_tile(number, start, draw.to(tl.uint32), tl.load(seed), ROWS, COLUMNS)
    else:
        values = uniform_tile(number, start, draw.to(tl.uint32), tl.load(seed), ROWS, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    tl.store(out + row[:, None] * columns + column[None, :], values, mask=inside)


@triton.jit(do_not_specialize=["draw"])
def keys(out, seed, draw, rows, ROWS: tl.constexpr):
    """The 63-bit keys that a permutation sorts by."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    block = tl.zeros([1], tl.uint32)
    w0, w1, _, _ = words(row, block, draw.to(tl.uint32), tl.load(seed))
    key = (w1.to(tl.int64) << 31) | (w0 >> 1).to(tl.int64)
    tl.store(out + row[:, None], key, mask=(row < rows)[:, None])


@triton.jit
def fold_in(out, seed, tag, count, COUNT: tl.constexpr):
    """New seeds from seeds and tags, elementwise."""
    at = tl.program_id(0).to(tl.int64) * COUNT + tl.arange(0, COUNT)
    inside = at < count
    s, t = tl.load(seed + at, mask=inside, other=0), tl.load(tag + at, mask=inside, other=0)
    third, fourth = tl.full(t.shape, FOLD_IN_2, tl.uint32), tl.full(t.shape, FOLD_IN_3, tl.uint32)
    low, high = t.to(tl.uint32), (t >> 32).to(tl.uint32)
    w0, w1, _, _ = philox(low, high, third, fourth, s.to(tl.uint32), (s >> 32).to(tl.uint32))
    tl.store(out + at, (w1.to(tl.int64) << 32) | w0.to(tl.int64), mask=inside)
