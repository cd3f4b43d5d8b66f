"""Several samples of one posterior, and the logarithm of the importance weight of each, in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvae.ops import cuda
from fastvae.ops.triton.math import DTYPES, const, deviation, deviation_growth, deviation_times
from fastvae.ops.triton.philox import normal_tile

__all__ = ["DTYPES", "RUN", "backward", "forward"]

RUN = tl.constexpr(cuda.RUN)


@triton.jit(do_not_specialize=["draw", "row_offset"])
def forward(
    mu,
    logvar,
    z,
    log_weight,
    seed,
    draw,
    row_offset,
    samples,
    rows,
    columns,
    mu_step,
    logvar_step,
    across,
    tiles,
    taken,
    MATH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Samples z = mu + sigma eps, and what a tile adds to log p(z) - log q(z | x), of ``taken`` samples.

    Sample k has the noise of draw ``draw + k``. The logarithm is 1/2 sum(eps^2 + logvar - z^2) =
    1/2 sum(logvar - (mu + (sigma - 1) eps)(eps + z)), which cancels nothing where the posterior is the prior.
    """
    program = tl.program_id(0)
    tile, first = program % tiles, (program // tiles).to(tl.int64) * taken
    along = tile % across
    row = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = along.to(tl.int64) * COLUMNS
    column = start + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    # Past an end both are 0, and so is the weight, whatever the noise.
    m = tl.load(mu + row[:, None] * mu_step + column[None, :], mask=inside, other=0.0).to(MATH)
    l = tl.load(logvar + row[:, None] * logvar_step + column[None, :], mask=inside, other=0.0).to(MATH)
    level, twice_growth, _ = deviation(l)
    growth = deviation_growth(level, twice_growth)
    key, number = tl.load(seed), row + row_offset.to(tl.int64)
    for sample in range(first, tl.minimum(first + taken, samples)):
        own_draw = (draw.to(tl.int64) + sample).to(tl.uint32)
        eps = normal_tile(number, start, own_draw, key, ROWS, COLUMNS).to(MATH)
        value = m + deviation_times(level, twice_growth, eps)
        of_sample = sample * rows + row
        tl.store(
            z + of_sample[:, None] * columns + column[None, :], value.to(z.dtype.element_ty), mask=inside
        )
        twice = l - tl.fma(growth, eps, m) * (eps + value)
        tl.store(log_weight + of_sample * across + along, 0.5 * tl.sum(twice, 1), mask=row < rows)


@triton.jit
def gradients(g_z, g, m, step, SAMPLE: tl.constexpr, WEIGHT: tl.constexpr):
    """The gradients of mu and logvar from one sample."""
    half = const(step, 0.5, 0.5)
    if WEIGHT:
        # What reaches z by way of the weight, whose own part is -z.
        towards_prior = const(step, 0.0, 0.0) - (m + step)
        if SAMPLE:
            of_z = tl.fma(g, towards_prior, g_z)
        else:
            of_z = g * towards_prior
        of_logvar = tl.fma(of_z * half, step, g * half)
    else:
        of_z = g_z
        of_logvar = of_z * half * step
    return of_z, of_logvar


@triton.jit
def minus_zeros(like):
    """What everything can be added to unchanged; older compilers lose the sign of a literal."""
    return const(like, -1.0, -1.0) * const(like, 0.0, 0.0)


@triton.jit
def run_of_samples(
    begin,
    end,
    grad_z,
    grad_log_weight,
    grad_z_step,
    grad_log_weight_step,
    m,
    level,
    twice_growth,
    row,
    rows,
    number,
    start,
    columns,
    draw,
    key,
    SAMPLE: tl.constexpr,
    WEIGHT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of a tile of mu and logvar, summed over some samples in the type itself."""
    column = start + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    of_mu = minus_zeros(twice_growth)
    of_logvar = of_mu
    for sample in range(begin, end):
        of_sample = sample * rows + row
        g_z, g = m, m
        if SAMPLE:
            at = of_sample[:, None] * grad_z_step + column[None, :]
            g_z = tl.load(grad_z + at, mask=inside, other=0.0).to(m.dtype)
        if WEIGHT:
            g = tl.load(grad_log_weight + of_sample * grad_log_weight_step, mask=row < rows, other=0.0)[
                :, None
            ]
        own_draw = (draw.to(tl.int64) + sample).to(tl.uint32)
        eps = normal_tile(number, start, own_draw, key, ROWS, COLUMNS).to(m.dtype)
        step = deviation_times(level, twice_growth, eps)
        more_mu, more_logvar = gradients(g_z, g, m, step, SAMPLE, WEIGHT)
        of_mu += more_mu
        of_logvar += more_logvar
    return of_mu, of_logvar


@triton.jit(do_not_specialize=["draw", "row_offset"])
def backward(
    grad_z,
    grad_log_weight,
    mu,
    logvar,
    grad_mu,
    grad_logvar,
    seed,
    draw,
    row_offset,
    samples,
    rows,
    columns,
    mu_step,
    logvar_step,
    grad_z_step,
    grad_log_weight_step,
    across,
    tiles,
    runs,
    MATH: tl.constexpr,
    SAMPLE: tl.constexpr,
    WEIGHT: tl.constexpr,
    WIDE: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """The gradients of :func:`forward`, with the noise drawn again, summed over ``runs`` runs of samples.

    ``WIDE``: there are several. Programs that have other runs of the same tile leave sums of their own.
    """
    program = tl.program_id(0)
    tile, part = program % tiles, (program // tiles).to(tl.int64)
    row = (tile // across).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    start = (tile % across).to(tl.int64) * COLUMNS
    column = start + tl.arange(0, COLUMNS)
    inside = (row < rows)[:, None] & (column < columns)[None, :]
    m = tl.zeros([ROWS, COLUMNS], MATH)
    if WEIGHT:
        m = tl.load(mu + row[:, None] * mu_step + column[None, :], mask=inside, other=0.0).to(MATH)
    l = tl.load(logvar + row[:, None] * logvar_step + column[None, :], mask=inside, other=0.0).to(MATH)
    level, twice_growth, _ = deviation(l)
    key, number = tl.load(seed), row + row_offset.to(tl.int64)
    first = part * runs * RUN
    last = tl.minimum(first + runs * RUN, samples)
    TOTAL: tl.constexpr = tl.float64 if WIDE else MATH
    if WIDE:
        of_mu = tl.zeros([ROWS, COLUMNS], TOTAL)
    else:
        of_mu = minus_zeros(m)  # the one run is left as it is
    of_logvar = of_mu
    for begin in range(first, last, RUN):
        more_mu, more_logvar = run_of_samples(
            begin,
            tl.minimum(begin + RUN, last),
            grad_z,
            grad_log_weight,
            grad_z_step,
            grad_log_weight_step,
            m,
            level,
            twice_growth,
            row,
            rows,
            number,
            start,
            columns,
            draw,
            key,
            SAMPLE,
            WEIGHT,
            ROWS,
            COLUMNS,
        )
        of_mu += more_mu.to(TOTAL)
        of_logvar += more_logvar.to(TOTAL)
    own = (part * rows + row)[:, None] * columns + column[None, :]
    tl.store(grad_mu + own, of_mu.to(MATH).to(grad_mu.dtype.element_ty), mask=inside)
    tl.store(grad_logvar + own, of_logvar.to(MATH).to(grad_logvar.dtype.element_ty), mask=inside)
