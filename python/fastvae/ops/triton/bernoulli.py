"""The log-probability of data under Bernoulli variables that are given by their logits, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvae.ops.triton.latent import ELEMENTS, ROW_SUMS, place
from fastvae.ops.triton.math import DTYPES, const, decay, divide, log_1p, log_1p_of_unit
from fastvae.ops.triton.observed import data_row

__all__ = ["DTYPES", "ELEMENTS", "ROW_SUMS", "backward", "forward"]


@triton.jit
def side(logit, x, MAX: tl.constexpr):
    """|l|, e^-|l|, and the weight of the side that the logit is against.

    It is in steps of the data: exact for integers, where 1 - x is not.
    """
    distance = tl.abs(logit)
    against = tl.where(logit > const(logit, 0.0, 0.0), const(logit, MAX, MAX) - x, x)
    return distance, decay(distance), against


@triton.jit
def cost(logit, x, MAX: tl.constexpr):
    """-log p = |l| w + log(1 + e) as |l| w and e: two terms that are never negative."""
    distance, e, against = side(logit, x, MAX)
    zero = const(logit, 0.0, 0.0)
    weighted = distance * const(logit, 1.0 / MAX, 1.0 / MAX) * against
    # Where nothing is against it, an infinite logit costs nothing.
    return tl.where(against == zero, zero, weighted), e


@triton.jit
def both(distance, growth, other_distance, other_growth):
    """The cost of two: the sum of all |l| w, and the product of all 1 + e, minus 1, which cancels nothing."""
    return distance + other_distance, tl.fma(growth, other_growth, growth + other_growth)


@triton.jit
def halved(distance, growth, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The costs of neighbours as one."""
    distance, other_distance = tl.split(tl.reshape(distance, [ROWS, COLUMNS // 2, 2]))
    growth, other_growth = tl.split(tl.reshape(growth, [ROWS, COLUMNS // 2, 2]))
    return both(distance, growth, other_distance, other_growth)


@triton.jit(do_not_specialize=["data_rows"])
def forward(
    logits,
    data,
    log_prob,
    rows,
    columns,
    data_rows,
    logits_step,
    data_step,
    programs,
    STEPS: tl.constexpr,
    MATH: tl.constexpr,
    KIND: tl.constexpr,
    MAX: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The log-probability in nats, of each element or summed over what the program has of its rows.

    It is x log p + (1 - x) log(1 - p). The data are over ``MAX``, and ``SHARED`` where they have fewer rows.
    """
    first_row, first_column, along = place(programs, STEPS, False, ROWS, COLUMNS)
    row = first_row + tl.arange(0, ROWS)
    data_at = data_row(row, rows, data_rows, SHARED) * data_step
    distance, growth = tl.zeros([ROWS, COLUMNS], MATH), tl.zeros([ROWS, COLUMNS], MATH)
    for step in range(STEPS):
        column = first_column + step * COLUMNS + tl.arange(0, COLUMNS)
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        logit = tl.load(logits + row[:, None] * logits_step + column[None, :], mask=inside, other=0.0)
        logit = logit.to(MATH)
        x = tl.load(data + data_at[:, None] + column[None, :], mask=inside, other=0).to(MATH)
        of_one, e = cost(logit, x, MAX)
        if KIND == ELEMENTS:
            nats = const(e, 0.0, 0.0) - (of_one + log_1p_of_unit(e))
            tl.store(log_prob + row[:, None] * columns + column[None, :], nats, mask=inside)
        else:
            # Past an end the logit and its cost are 0, but e^0 is not.
            e = tl.where(inside, e, const(e, 0.0, 0.0))
            distance, growth = both(distance, growth, of_one, e)
    if KIND == ROW_SUMS:
        # One logarithm for four neighbours and all steps: their product stays below 2^32.
        distance, growth = halved(distance, growth, ROWS, COLUMNS)
        distance, growth = halved(distance, growth, ROWS, COLUMNS // 2)
        nats = tl.sum(distance + log_1p(growth), 1)
        tl.store(log_prob + row * programs + along, const(nats, 0.0, 0.0) - nats, mask=row < rows)


@triton.jit(do_not_specialize=["data_rows"])
def backward(
    logits,
    data,
    grad,
    grad_logits,
    rows,
    columns,
    data_rows,
    logits_step,
    data_step,
    grad_step,
    across,
    MATH: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    MAX: tl.constexpr,
    SHARED: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradient of :func:`forward` with respect to the logits, x - sigmoid(l)."""
    first_row, start, _ = place(across, 1, False, ROWS, COLUMNS)
    row = first_row + tl.arange(0, ROWS)
    column = start + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    data_at = data_row(row, rows, data_rows, SHARED) * data_step
    logit = tl.load(logits + row[:, None] * logits_step + column[None, :], mask=inside, other=0.0)
    logit = logit.to(MATH)
    x = tl.load(data + data_at[:, None] + column[None, :], mask=inside, other=0).to(MATH)
    if BY_COLUMN:
        g = tl.load(grad + row[:, None] * grad_step + column[None, :], mask=inside, other=0.0)
    else:
        g = tl.load(grad + row * grad_step, mask=row < rows, other=0.0)[:, None]
    _, e, against = side(logit, x, MAX)
    # With s = e^-|l| / (1 + e^-|l|) no 1 is subtracted from a number near it.
    s = divide(e, e + const(e, 1.0, 1.0))
    zero = const(e, 0.0, 0.0)
    positive = logit > zero
    signed = tl.where(positive, zero - against, against)
    slope = tl.fma(signed, const(e, 1.0 / MAX, 1.0 / MAX), tl.where(positive, s, zero - s))
    own = row[:, None] * columns + column[None, :]
    tl.store(grad_logits + own, (g * slope).to(grad_logits.dtype.element_ty), mask=inside)
