"""Reparametrized sampling and the KL from the standard normal in Triton: alone, or in one pass."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvae.ops.triton.math import (
    DTYPES,
    NEAR_LIMIT,
    deviation,
    deviation_excess,
    deviation_growth,
    half_deviation_times,
    kl_slope,
    loaded,
    sample,
    twice_kl_of,
    widened,
)
from fastvae.ops.triton.philox import normal_tile

__all__ = ["COLUMN_SUMS", "DTYPES", "ELEMENTS", "NO_KL", "ROW_SUMS", "backward", "forward"]

NO_KL, ELEMENTS, ROW_SUMS, COLUMN_SUMS = map(tl.constexpr, range(4))
"""What a forward kernel makes of the KL."""


@triton.jit
def place(programs, STEPS: tl.constexpr, DOWN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Where this program begins (row, column, both int64), and its number along the axis of the steps."""
    program = tl.program_id(0)
    along, across = program % programs, program // programs
    if DOWN:
        return along.to(tl.int64) * (STEPS * ROWS), across.to(tl.int64) * COLUMNS, along
    else:
        return across.to(tl.int64) * ROWS, along.to(tl.int64) * (STEPS * COLUMNS), along


@triton.jit
def stored(pointers, value, inside, WHOLE: tl.constexpr):
    """Write a tile as far as it goes."""
    if WHOLE:
        tl.store(pointers, value)
    else:
        tl.store(pointers, value, mask=inside)


@triton.jit
def largest_of_four(x, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The largest of each four neighbours, which one thread has."""
    a, b = tl.split(tl.reshape(x, [ROWS, COLUMNS // 2, 2]))
    c, d = tl.split(tl.reshape(tl.maximum(a, b), [ROWS, COLUMNS // 4, 2]))
    return tl.maximum(c, d)


@triton.jit
def forward_steps(
    mu,
    logvar,
    z,
    kl,
    key,
    draw,
    row_offset,
    rows,
    columns,
    mu_step,
    logvar_step,
    free_bits,
    first_row,
    first_column,
    STEPS: tl.constexpr,
    MATH: tl.constexpr,
    SAMPLE: tl.constexpr,
    KL: tl.constexpr,
    FREE: tl.constexpr,
    NEAR: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The tiles of a program: twice their KL added up, and the largest magnitude of a logarithm, NaN aside.

    ``NEAR``: what is written is right where none of these is beyond :data:`NEAR_LIMIT`.
    """
    DOWN: tl.constexpr = KL == COLUMN_SUMS
    BITS: tl.constexpr = z.dtype.element_ty.primitive_bitwidth
    total = tl.zeros([ROWS, COLUMNS], MATH)
    largest = tl.zeros([ROWS, COLUMNS // 4], MATH)
    for step in range(STEPS):
        row = first_row + tl.arange(0, ROWS)
        start = first_column
        if DOWN:
            row += step * ROWS
        else:
            start += step * COLUMNS
        column = start + tl.arange(0, COLUMNS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        # Past an end both are 0, and so is their KL.
        m = widened(loaded(mu + row[:, None] * mu_step + column[None, :], inside, WHOLE), MATH)
        l = widened(loaded(logvar + row[:, None] * logvar_step + column[None, :], inside, WHOLE), MATH)
        if NEAR:
            largest = tl.maximum(largest, largest_of_four(tl.abs(l), ROWS, COLUMNS))
        level, twice_growth, twice_excess = deviation(l, NEAR)
        own = row[:, None] * columns + column[None, :]
        if SAMPLE:
            number = row + row_offset.to(tl.int64)
            eps = normal_tile(number, start, draw.to(tl.uint32), key, ROWS, COLUMNS, BITS).to(MATH)
            value = sample(m, level, twice_growth, eps, NEAR)
            stored(z + own, value.to(z.dtype.element_ty), inside, WHOLE)
        if KL != NO_KL:
            growth = deviation_growth(level, twice_growth, NEAR)
            twice = twice_kl_of(growth, deviation_excess(level, twice_excess, growth, l, NEAR), m)
            if FREE:
                floor = 2.0 * tl.load(free_bits)
                # NaN stays.
                twice = tl.where(inside & (twice <= floor), floor, twice)
            if KL == ELEMENTS:
                stored(kl + own, 0.5 * twice, inside, WHOLE)
            else:
                total += twice
    return total, largest


@triton.jit(do_not_specialize=["draw", "row_offset"])
def forward(
    mu,
    logvar,
    z,
    kl,
    seed,
    draw,
    row_offset,
    rows,
    columns,
    mu_step,
    logvar_step,
    free_bits,
    programs,
    STEPS: tl.constexpr,
    MATH: tl.constexpr,
    SAMPLE: tl.constexpr,
    KL: tl.constexpr,
    FREE: tl.constexpr,
    WHOLE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """z = mu + sigma eps where ``SAMPLE``, and the KL in nats as ``KL`` says.

    ``FREE``: an element counts its free bits at least. ``WHOLE``: no tile goes beyond an end.
    """
    # One question at the end pays where a program has several tiles; without noise memory is the limit.
    TRY_NEAR: tl.constexpr = SAMPLE and STEPS > 1
    first_row, first_column, along = place(programs, STEPS, KL == COLUMN_SUMS, ROWS, COLUMNS)
    key = tl.load(seed) if SAMPLE else 0
    total, largest = forward_steps(
        mu, logvar, z, kl, key, draw, row_offset, rows, columns, mu_step, logvar_step, free_bits,
        first_row, first_column, STEPS, MATH, SAMPLE, KL, FREE, TRY_NEAR, WHOLE, ROWS, COLUMNS,
    )  # fmt: skip
    if TRY_NEAR:
        far = not tl.max(largest) <= NEAR_LIMIT
        if far:
            # Rare: all of it once more, over what was written.
            total, _ = forward_steps(
                mu, logvar, z, kl, key, draw, row_offset, rows, columns, mu_step, logvar_step, free_bits,
                first_row, first_column, STEPS, MATH, SAMPLE, KL, FREE, False, WHOLE, ROWS, COLUMNS,
            )  # fmt: skip
    if KL == ROW_SUMS:
        row = first_row + tl.arange(0, ROWS)
        tl.store(kl + row * programs + along, 0.5 * tl.sum(total, 1), mask=row < rows)
    if KL == COLUMN_SUMS:
        column = first_column + tl.arange(0, COLUMNS)
        place_of_band = along.to(tl.int64) * columns
        # There may be many rows: their sum is in float64, as on the CPU.
        of_band = (0.5 * tl.sum(total.to(tl.float64), 0)).to(MATH)
        tl.store(kl + place_of_band + column, of_band, mask=column < columns)


@triton.jit(do_not_specialize=["draw", "row_offset"])
def backward(
    mu,
    logvar,
    grad_z,
    grad_kl,
    weight,
    grad_mu,
    grad_logvar,
    seed,
    draw,
    row_offset,
    rows,
    columns,
    mu_step,
    logvar_step,
    grad_z_step,
    grad_kl_step,
    free_bits,
    group_size,
    across,
    MATH: tl.constexpr,
    SAMPLE: tl.constexpr,
    KL: tl.constexpr,
    KL_BY_COLUMN: tl.constexpr,
    FREE: tl.constexpr,
    WEIGHTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of :func:`forward`, with the noise drawn again; what has no gradient does not count.

    ``FREE``: elements at or below their free bits have none. ``WEIGHTED``: groups have weights of 0 or 1.
    """
    BITS: tl.constexpr = grad_logvar.dtype.element_ty.primitive_bitwidth
    first_row, start, _ = place(across, 1, False, ROWS, COLUMNS)
    row = first_row + tl.arange(0, ROWS)
    column = start + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    own = row[:, None] * columns + column[None, :]
    l = widened(tl.load(logvar + row[:, None] * logvar_step + column[None, :], mask=inside, other=0.0), MATH)
    level, twice_growth, twice_excess = deviation(l)
    if KL:
        m = widened(tl.load(mu + row[:, None] * mu_step + column[None, :], mask=inside, other=0.0), MATH)
        if KL_BY_COLUMN:
            g_kl = tl.load(grad_kl + row[:, None] * grad_kl_step + column[None, :], mask=inside, other=0.0)
        else:
            g_kl = tl.load(grad_kl + row * grad_kl_step, mask=row < rows, other=0.0)[:, None]
            g_kl = tl.broadcast_to(g_kl, [ROWS, COLUMNS])
        growth = deviation_growth(level, twice_growth)
        if FREE:
            twice = twice_kl_of(growth, deviation_excess(level, twice_excess, growth, l), m)
            free = twice <= 2.0 * tl.load(free_bits)
            g_kl = tl.where(free, tl.zeros_like(g_kl), g_kl)
        if WEIGHTED:
            groups = columns // group_size
            counted = tl.load(
                weight + row[:, None] * groups + (column // group_size)[None, :], mask=inside, other=0.0
            )
            g_kl = tl.where(counted == 0.0, tl.zeros_like(g_kl), g_kl)
        of_logvar = g_kl * kl_slope(growth)
    if SAMPLE:
        g_z = widened(
            tl.load(grad_z + row[:, None] * grad_z_step + column[None, :], mask=inside, other=0.0), MATH
        )
        number = row + row_offset.to(tl.int64)
        eps = normal_tile(number, start, draw.to(tl.uint32), tl.load(seed), ROWS, COLUMNS, BITS).to(MATH)
        slope = half_deviation_times(level, twice_growth, eps)
        if KL:
            of_logvar = tl.fma(g_z, slope, of_logvar)
            of_mu = tl.fma(g_kl, m, g_z)
        else:
            of_logvar = g_z * slope
    elif KL:
        of_mu = g_kl * m
    if KL:
        tl.store(grad_mu + own, of_mu.to(grad_mu.dtype.element_ty), mask=inside)
    tl.store(grad_logvar + own, of_logvar.to(grad_logvar.dtype.element_ty), mask=inside)
