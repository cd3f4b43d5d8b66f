"""The log-density of data under Gaussian variables in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvae.ops.triton.latent import ELEMENTS, ROW_SUMS, place
from fastvae.ops.triton.math import DTYPES, EXP_SATURATES_32, EXP_SATURATES_64, at_least, const, decay
from fastvae.ops.triton.observed import data_row

__all__ = ["DTYPES", "ELEMENTS", "ROW_SUMS", "backward", "forward"]

LN_2_PI = tl.constexpr(1.8378770664093453)


@triton.jit
def inverse_deviation(logvar):
    """One over the standard deviation: its square would overflow half an exponent range earlier."""
    least = const(logvar, -EXP_SATURATES_32, -EXP_SATURATES_64)
    return decay(at_least(logvar * const(logvar, 0.5, 0.5), least))


@triton.jit
def standardized(mean, x, inverse, MAX: tl.constexpr):
    """(x - mean) / sigma.

    The difference is in steps of the data and rounded once: near the mean, 254/255 rounded first would leave
    no right digit.
    """
    steps = tl.fma(const(mean, 0.0, 0.0) - mean, const(mean, MAX, MAX), x)
    return steps * const(mean, 1.0 / MAX, 1.0 / MAX) * inverse


@triton.jit(do_not_specialize=["data_rows"])
def forward(
    mean,
    logvar,
    data,
    log_prob,
    rows,
    columns,
    data_rows,
    mean_step,
    logvar_step,
    data_step,
    programs,
    STEPS: tl.constexpr,
    MATH: tl.constexpr,
    KIND: tl.constexpr,
    ONE_LOGVAR: tl.constexpr,
    MAX: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The log-density in nats, of each element or summed over what the program has of its rows.

    It is -1/2 (logvar + (x - mean)^2 e^-logvar + ln(2 pi)). ``ONE_LOGVAR`` is for all elements. The data are
    over ``MAX``, and ``SHARED`` where they have fewer rows.
    """
    first_row, first_column, along = place(programs, STEPS, False, ROWS, COLUMNS)
    row = first_row + tl.arange(0, ROWS)
    data_at = data_row(row, rows, data_rows, SHARED) * data_step
    if ONE_LOGVAR:
        l = tl.load(logvar + tl.zeros([1, 1], tl.int32))
        inverse = inverse_deviation(l)
    total = tl.zeros([ROWS, COLUMNS], MATH)
    for step in range(STEPS):
        column = first_column + step * COLUMNS + tl.arange(0, COLUMNS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        m = tl.load(mean + row[:, None] * mean_step + column[None, :], mask=inside, other=0.0).to(MATH)
        x = tl.load(data + data_at[:, None] + column[None, :], mask=inside, other=0).to(MATH)
        if not ONE_LOGVAR:
            # Past an end all are 0, and so are the terms.
            l = tl.load(logvar + row[:, None] * logvar_step + column[None, :], mask=inside, other=0.0)
            l = l.to(MATH)
            inverse = inverse_deviation(l)
        scaled = standardized(m, x, inverse, MAX)
        if KIND == ELEMENTS:
            twice = tl.fma(scaled, scaled, l + const(l, LN_2_PI, LN_2_PI))
            own = row[:, None] * columns + column[None, :]
            tl.store(log_prob + own, twice * const(m, -0.5, -0.5), mask=inside)
        elif ONE_LOGVAR:
            # An infinite deviation makes 0 times infinity past an end.
            total += tl.where(inside, scaled * scaled, const(m, 0.0, 0.0))
        else:
            total += tl.fma(scaled, scaled, l)
    if KIND == ROW_SUMS:
        # What every element adds is added once, in float64.
        count = tl.minimum(columns - first_column, STEPS * COLUMNS).to(tl.float64)
        constant = tl.full([1], LN_2_PI, tl.float64)
        if ONE_LOGVAR:
            constant += tl.reshape(l, [1]).to(tl.float64)
        of_row = tl.full([1], -0.5, tl.float64) * (tl.sum(total, 1).to(tl.float64) + count * constant)
        tl.store(log_prob + row * programs + along, of_row.to(log_prob.dtype.element_ty), mask=row < rows)


@triton.jit(do_not_specialize=["data_rows"])
def backward(
    mean,
    logvar,
    data,
    grad,
    grad_mean,
    grad_logvar,
    rows,
    columns,
    data_rows,
    mean_step,
    logvar_step,
    data_step,
    grad_step,
    programs,
    STEPS: tl.constexpr,
    MATH: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    ONE_LOGVAR: tl.constexpr,
    MAX: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of :func:`forward` with respect to mean and logvar.

    Of the ``ONE_LOGVAR`` each program leaves what it has of the sum over everything, in float64.
    """
    first_row, first_column, _ = place(programs, STEPS, False, ROWS, COLUMNS)
    row = first_row + tl.arange(0, ROWS)
    data_at = data_row(row, rows, data_rows, SHARED) * data_step
    if ONE_LOGVAR:
        inverse = inverse_deviation(tl.load(logvar + tl.zeros([1, 1], tl.int32)))
    total = tl.zeros([ROWS, COLUMNS], MATH)
    for step in range(STEPS):
        column = first_column + step * COLUMNS + tl.arange(0, COLUMNS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        m = tl.load(mean + row[:, None] * mean_step + column[None, :], mask=inside, other=0.0).to(MATH)
        x = tl.load(data + data_at[:, None] + column[None, :], mask=inside, other=0).to(MATH)
        if not ONE_LOGVAR:
            l = tl.load(logvar + row[:, None] * logvar_step + column[None, :], mask=inside, other=0.0)
            l = l.to(MATH)
            inverse = inverse_deviation(l)
        if BY_COLUMN:
            g = tl.load(grad + row[:, None] * grad_step + column[None, :], mask=inside, other=0.0)
        else:
            g = tl.load(grad + row * grad_step, mask=row < rows, other=0.0)[:, None]
        scaled = standardized(m, x, inverse, MAX)
        of_mean = g * scaled * inverse
        of_logvar = g * tl.fma(scaled, scaled, const(m, -1.0, -1.0)) * const(m, 0.5, 0.5)
        own = row[:, None] * columns + column[None, :]
        tl.store(grad_mean + own, of_mean.to(grad_mean.dtype.element_ty), mask=inside)
        if ONE_LOGVAR:
            total += tl.where(inside, of_logvar, const(m, 0.0, 0.0))
        else:
            tl.store(grad_logvar + own, of_logvar.to(grad_logvar.dtype.element_ty), mask=inside)
    if ONE_LOGVAR:
        of_program = tl.sum(tl.sum(total.to(tl.float64), 1), 0)
        tl.store(grad_logvar + tl.program_id(0), of_program)
