"""The KL between two diagonal Gaussians in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvae.ops.triton.latent import COLUMN_SUMS, ELEMENTS, ROW_SUMS, place
from fastvae.ops.triton.math import (
    DTYPES,
    LARGEST_32,
    LARGEST_64,
    const,
    deviation,
    deviation_excess,
    deviation_growth,
    deviation_times,
    kl_slope,
    twice_kl_of,
)

__all__ = ["COLUMN_SUMS", "DTYPES", "ELEMENTS", "ROW_SUMS", "backward", "forward"]


@triton.jit
def relative(m, l, prior_m, prior_l):
    """A posterior as seen from a prior.

    It is (mu - prior_mu) / prior_sigma, 1 / prior_sigma, and of s = sigma / prior_sigma both s - 1 and
    2 (s - 1 - ln s).
    """
    zero, one = const(l, 0.0, 0.0), const(l, 1.0, 1.0)
    # The rounding error of the difference (Knuth's two-sum) is worth a factor e^error in the result.
    difference = l - prior_l
    back = difference - l
    error = (l - (difference - back)) - (prior_l + back)
    level, twice_growth, twice_excess = deviation(difference)
    value = deviation_times(level, twice_growth, one)
    growth = deviation_growth(level, twice_growth)
    excess = deviation_excess(level, twice_excess, growth, difference)
    # Where the difference is infinite its error is NaN, and where the exponential overflowed infinity times 0
    # would be: there is nothing to correct.
    largest = const(l, LARGEST_32, LARGEST_64)
    correction = tl.where(tl.abs(difference) <= largest, error, zero)
    finite = tl.abs(growth) <= largest
    excess = tl.where(finite, tl.fma(growth, correction, excess), excess)
    growth = tl.where(finite, tl.fma(value, correction * const(l, 0.5, 0.5), growth), growth)
    level, twice_growth, _ = deviation(zero - prior_l)
    inverse = deviation_times(level, twice_growth, one)
    return (m - prior_m) * inverse, inverse, growth, excess


@triton.jit
def forward(
    mu,
    logvar,
    prior_mu,
    prior_logvar,
    kl,
    rows,
    columns,
    mu_step,
    logvar_step,
    prior_mu_step,
    prior_logvar_step,
    programs,
    STEPS: tl.constexpr,
    MATH: tl.constexpr,
    KL: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The KL in nats, as ``KL`` says."""
    DOWN: tl.constexpr = KL == COLUMN_SUMS
    first_row, first_column, along = place(programs, STEPS, DOWN, ROWS, COLUMNS)
    total = tl.zeros([ROWS, COLUMNS], MATH)
    for step in range(STEPS):
        row = first_row + tl.arange(0, ROWS)
        column = first_column + tl.arange(0, COLUMNS)
        if DOWN:
            row += step * ROWS
        else:
            column += step * COLUMNS
        inside = (row < rows)[:, None] & (column < columns)[None, :]
        # Past an end all are 0, and so is the KL.
        m = tl.load(mu + row[:, None] * mu_step + column[None, :], mask=inside, other=0.0).to(MATH)
        l = tl.load(logvar + row[:, None] * logvar_step + column[None, :], mask=inside, other=0.0).to(MATH)
        at = row[:, None] * prior_mu_step + column[None, :]
        prior_m = tl.load(prior_mu + at, mask=inside, other=0.0).to(MATH)
        at = row[:, None] * prior_logvar_step + column[None, :]
        prior_l = tl.load(prior_logvar + at, mask=inside, other=0.0).to(MATH)
        distance, _inverse, growth, excess = relative(m, l, prior_m, prior_l)
        twice = twice_kl_of(growth, excess, distance)
        if KL == ELEMENTS:
            tl.store(kl + row[:, None] * columns + column[None, :], 0.5 * twice, mask=inside)
        else:
            total += twice
    if KL == ROW_SUMS:
        row = first_row + tl.arange(0, ROWS)
        tl.store(kl + row * programs + along, 0.5 * tl.sum(total, 1), mask=row < rows)
    if KL == COLUMN_SUMS:
        column = first_column + tl.arange(0, COLUMNS)
        place_of_band = along.to(tl.int64) * columns
        # There may be many rows: their sum is in float64, as on the CPU.
        of_band = (0.5 * tl.sum(total.to(tl.float64), 0)).to(MATH)
        tl.store(kl + place_of_band + column, of_band, mask=column < columns)


@triton.jit
def backward(
    mu,
    logvar,
    prior_mu,
    prior_logvar,
    grad_kl,
    grad_mu,
    grad_logvar,
    grad_prior_mu,
    grad_prior_logvar,
    rows,
    columns,
    mu_step,
    logvar_step,
    prior_mu_step,
    prior_logvar_step,
    grad_kl_step,
    across,
    MATH: tl.constexpr,
    KL_BY_COLUMN: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of :func:`forward` with respect to its four inputs."""
    first_row, start, _ = place(across, 1, False, ROWS, COLUMNS)
    row = first_row + tl.arange(0, ROWS)
    column = start + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    own = row[:, None] * columns + column[None, :]
    m = tl.load(mu + row[:, None] * mu_step + column[None, :], mask=inside, other=0.0).to(MATH)
    l = tl.load(logvar + row[:, None] * logvar_step + column[None, :], mask=inside, other=0.0).to(MATH)
    at = row[:, None] * prior_mu_step + column[None, :]
    prior_m = tl.load(prior_mu + at, mask=inside, other=0.0).to(MATH)
    at = row[:, None] * prior_logvar_step + column[None, :]
    prior_l = tl.load(prior_logvar + at, mask=inside, other=0.0).to(MATH)
    if KL_BY_COLUMN:
        g = tl.load(grad_kl + row[:, None] * grad_kl_step + column[None, :], mask=inside, other=0.0)
    else:
        g = tl.load(grad_kl + row * grad_kl_step, mask=row < rows, other=0.0)[:, None]
    distance, inverse, growth, _ = relative(m, l, prior_m, prior_l)
    zero = const(l, 0.0, 0.0)
    mean = g * distance * inverse
    slope = kl_slope(growth)
    spread = tl.fma(const(l, 0.5, 0.5) * distance, distance, slope)
    tl.store(grad_mu + own, mean.to(grad_mu.dtype.element_ty), mask=inside)
    tl.store(grad_logvar + own, (g * slope).to(grad_logvar.dtype.element_ty), mask=inside)
    tl.store(grad_prior_mu + own, (zero - mean).to(grad_prior_mu.dtype.element_ty), mask=inside)
    tl.store(grad_prior_logvar + own, (zero - g * spread).to(grad_prior_logvar.dtype.element_ty), mask=inside)
