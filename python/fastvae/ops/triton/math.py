"""The functions behind the kernels, for float32 and float64: ``rust/fastvae-core/src/math.rs``, step by step.

The coefficients are those of ``rust/fastvae-core/src/lanes/mod.rs``, highest power first.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64}
"""The dtypes of the arithmetic as Triton calls them."""

EXP_EXCESS_32 = tl.constexpr(
    (
        3.1079812288226094e-06,
        4.35429101344198e-05,
        0.0005208319053053856,
        0.0052083078771829605,
        0.0416666679084301,
        0.25,
    )
)
"""(2 e^(r / 2) - 2 - r) / r^2 on [-ln 2, ln 2]."""
EXP_EXCESS_64 = tl.constexpr(
    (
        1.4025213865214337e-15,
        3.9279741557644543e-14,
        1.0193715250769062e-12,
        2.4464905598343154e-11,
        5.38228891490609e-10,
        1.0764577834579642e-08,
        1.9376240079359502e-07,
        3.100198412696628e-06,
        4.340277777777778e-05,
        0.0005208333333333334,
        0.005208333333333333,
        0.041666666666666664,
        0.25,
    )
)
DECAY_32 = tl.constexpr(
    (
        0.0013814540579915047,
        -0.00836874544620514,
        0.04166838899254799,
        -0.1666652113199234,
        0.4999999403953552,
        -1.0,
        1.0,
    )
)
"""e^-r on [-ln 2 / 2, ln 2 / 2]."""
DECAY_64 = tl.constexpr(
    (
        -2.500001885308334e-08,
        2.7630306255647857e-07,
        -2.755758680384707e-06,
        2.480149294961707e-05,
        -0.00019841269505773806,
        0.0013888888943759984,
        -0.008333333333494976,
        0.041666666666529725,
        -0.1666666666666641,
        0.5000000000000011,
        -1.0,
        1.0,
    )
)
ATANH_EXCESS_32 = tl.constexpr(
    (0.23224329948425293, 0.2170657515525818, 0.285923570394516, 0.3999970555305481, 0.6666666865348816)
)
"""(2 atanh(s) / s - 2) / s^2 in powers of s^2 on [0, 1/9]."""
ATANH_EXCESS_64 = tl.constexpr(
    (
        0.1616404561194353,
        0.08800738486144674,
        0.12001072809590713,
        0.13314144209654935,
        0.15385570064958623,
        0.18181789436132859,
        0.22222222717427864,
        0.2857142856710876,
        0.40000000000014585,
        0.6666666666666666,
    )
)
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2_HIGH_32, LN_2_HIGH_64 = tl.constexpr(0.693359375), tl.constexpr(6.93147180369123816490e-01)
"""The upper part of ln 2, with so few bits that its multiples by an exponent are exact."""
LN_2_LOW_32, LN_2_LOW_64 = tl.constexpr(-2.12194440e-4), tl.constexpr(1.90821492927058770002e-10)
MAGIC_32, MAGIC_64 = tl.constexpr(12582912.0), tl.constexpr(6755399441055744.0)
"""Added to a small number, it leaves its rounded value in the low bits."""
NEAR_LIMIT = tl.constexpr(64.0)
"""With a logarithm of the variance up to this a deviation, and it times any noise, are far from the ends of
the range."""
EXP_SATURATES_32, EXP_SATURATES_64 = tl.constexpr(110.0), tl.constexpr(760.0)
"""exp is 0 below minus this and infinite above it."""
LARGEST_32 = tl.constexpr((2.0 - 2.0**-23) * 2.0**127)
LARGEST_64 = tl.constexpr((2.0 - 2.0**-52) * 2.0**1023)
SMALLEST_NORMAL_32 = tl.constexpr(2.0**-126)


@triton.jit
def const(like, OF_32: tl.constexpr, OF_64: tl.constexpr):
    """A number in the dtype and shape of a tensor: a plain literal would be rounded to float32."""
    if like.dtype == tl.float64:
        return tl.full(like.shape, OF_64, tl.float64)
    else:
        return tl.full(like.shape, OF_32, tl.float32)


@triton.jit
def horner(x, OF_32: tl.constexpr, TERMS_32: tl.constexpr, OF_64: tl.constexpr, TERMS_64: tl.constexpr):
    """Horner's rule with fused multiply-adds."""
    if x.dtype == tl.float64:
        y = tl.full(x.shape, OF_64[0], tl.float64)
        for i in tl.static_range(1, TERMS_64):
            y = tl.fma(y, x, tl.full(x.shape, OF_64[i], tl.float64))
        return y
    else:
        y = tl.full(x.shape, OF_32[0], tl.float32)
        for i in tl.static_range(1, TERMS_32):
            y = tl.fma(y, x, tl.full(x.shape, OF_32[i], tl.float32))
        return y


@triton.jit
def loaded(pointers, inside, WHOLE: tl.constexpr):
    """What lies there, 0 past an end; without a mask, as of a whole tile, neighbours are read together."""
    if WHOLE:
        return tl.load(pointers)
    else:
        return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def widened(x, MATH: tl.constexpr):
    """What was loaded in the type of the arithmetic: of a bfloat16 the bits are the upper half."""
    if x.dtype == tl.bfloat16 and tl.float32 == MATH:
        bits = x.to(tl.uint16, bitcast=True).to(tl.uint32)
        return (bits << 16).to(tl.float32, bitcast=True)
    else:
        return x.to(MATH)


@triton.jit
def divide(a, b):
    """a / b, rounded once."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def at_most(x, limit):
    """``x`` where it is not above the limit; NaN stays."""
    return tl.where(limit < x, limit, x)


@triton.jit
def at_least(x, limit):
    """``x`` where it is not below the limit; NaN stays."""
    return tl.where(limit > x, limit, x)


@triton.jit
def within(x, limit):
    """``x``, or the limit with its sign where it is beyond that; NaN stays."""
    if x.dtype == tl.float64:  # Triton has no code for it on all devices
        return at_least(at_most(x, limit), -limit)
    else:
        return tl.clamp(x, -limit, limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def bits_of(x):
    """The bits of a float as int32 or int64."""
    if x.dtype == tl.float64:
        return x.to(tl.int64, bitcast=True)
    else:
        return x.to(tl.int32, bitcast=True)


@triton.jit
def rounded(shifted):
    """The integer that a sum with :data:`MAGIC_32` holds, as int32 or int64."""
    return bits_of(shifted) - bits_of(const(shifted, MAGIC_32, MAGIC_64))


@triton.jit
def power_of_two(n):
    """2^n for int32 (float32) or int64 (float64) in the range of normal numbers."""
    if n.dtype == tl.int64:
        return ((n + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        return ((n + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def limited(n):
    """``n`` as far as 2^n is a normal number: where a kernel needs that power as well, it is the same one."""
    if n.dtype == tl.int64:
        return tl.minimum(tl.maximum(n, -1022), 1023)
    else:
        return tl.minimum(tl.maximum(n, -126), 127)


@triton.jit
def scale(x, n):
    """``x * 2^n``, rounded once, also where 2^n itself is no normal number.

    ``x`` times what 2^n has beyond the normal numbers has to be a normal number (or 0, infinite or NaN).
    """
    normal = limited(n)
    return x * power_of_two(n - normal) * power_of_two(normal)


@triton.jit
def magic_of(like, NEAR: tl.constexpr):
    """:data:`MAGIC_32`, and what makes of n the exponent of 2^(n - 1), or the sum of those of two factors."""
    if NEAR:
        return const(like, MAGIC_32 + 126, MAGIC_64 + 1022)
    else:
        return const(like, MAGIC_32 + 253, MAGIC_64 + 2045)


@triton.jit
def deviation(logvar, NEAR: tl.constexpr = False):
    """What makes up sigma = e^(l / 2) = 2^n e^(r / 2), l = n ln 4 + r: n, 2 e^(r / 2) - 2 and that less r.

    Of n the bits of a float that holds it, with what :func:`magic_of` adds. A logarithm of -inf gives
    sigma = 0, NaN gives NaN. ``NEAR``, here and below: it is NaN or within :data:`NEAR_LIMIT`, and the same
    bits take fewer instructions.
    """
    near = logvar
    if not NEAR:
        # Beyond these sigma is 0 or infinite anyway; within them the exponent fits.
        limit = const(logvar, 2.0 * EXP_SATURATES_32, 2.0 * EXP_SATURATES_64)
        near = within(logvar, limit)
    magic = magic_of(logvar, NEAR)
    shifted = tl.fma(near, const(logvar, 0.5 * LOG2_E, 0.5 * LOG2_E), magic)
    n = shifted - magic
    rest = tl.fma(n, const(logvar, -2.0 * LN_2_HIGH_32, -2.0 * LN_2_HIGH_64), near)
    low = const(logvar, -2.0 * LN_2_LOW_32, -2.0 * LN_2_LOW_64)
    r = tl.fma(n, low, rest)
    # What r lost in rounding: a quarter of an ulp of sigma.
    lost = tl.fma(n, low, rest - r)
    twice_excess = r * r * horner(r, EXP_EXCESS_32, 6, EXP_EXCESS_64, 13)
    return bits_of(shifted), r + (twice_excess + lost), twice_excess


@triton.jit
def half_powers(level):
    """Two normal numbers with the product 2^(n - 1), which may be none, for the n of :func:`deviation`."""
    if level.dtype == tl.int64:
        first = (level << 51) & 0x7FF0000000000000
        second = (level << 52) - first
        return first.to(tl.float64, bitcast=True), second.to(tl.float64, bitcast=True)
    else:
        first = (level << 22) & 0x7F800000
        second = (level << 23) - first
        return first.to(tl.float32, bitcast=True), second.to(tl.float32, bitcast=True)


@triton.jit
def power(level):
    """2^(n - 1) for a near n."""
    if level.dtype == tl.int64:
        return (level << 52).to(tl.float64, bitcast=True)
    else:
        return (level << 23).to(tl.float32, bitcast=True)


@triton.jit
def deviation_times(level, twice_growth, factor):
    """Sigma times a factor of common size: rounded as one product, also where sigma alone is subnormal.

    The first of the two products is exact, or the second is 0 or infinite.
    """
    first, second = half_powers(level)
    return tl.fma(twice_growth, factor, factor + factor) * first * second


@triton.jit
def sample(mean, level, twice_growth, eps, NEAR: tl.constexpr):
    """The mean and sigma times a normal."""
    if NEAR:
        # The product is exact.
        return tl.fma(tl.fma(twice_growth, eps, eps + eps), power(level), mean)
    else:
        return mean + deviation_times(level, twice_growth, eps)


@triton.jit
def half_deviation_times(level, twice_growth, factor):
    """Half of that, by the same powers of two."""
    first, second = half_powers(level)
    return tl.fma(twice_growth, factor * 0.5, factor) * first * second


@triton.jit
def deviation_growth(level, twice_growth, NEAR: tl.constexpr = False):
    """Sigma - 1, without cancellation."""
    if NEAR:
        half = power(level)
    else:
        first, second = half_powers(level)
        # Twice this is infinite, and so is what comes of it, but not NaN.
        half = tl.minimum(first * second, const(twice_growth, 2.0**127, 2.0**1023))
    less_one = tl.fma(half, const(half, 2.0, 2.0), const(half, -1.0, -1.0))
    return tl.fma(twice_growth, half, less_one)


@triton.jit
def deviation_excess(level, twice_excess, growth, logvar, NEAR: tl.constexpr = False):
    """2 (sigma - 1 - l / 2), given sigma - 1: without cancellation where sigma is near 1."""
    far = tl.fma(growth, const(growth, 2.0, 2.0), logvar * -1.0)
    return tl.where(level == bits_of(magic_of(growth, NEAR)), twice_excess, far)


@triton.jit
def twice_kl_of(growth, twice_excess, distance):
    """Twice the KL of a Gaussian whose mean is ``distance`` deviations of the prior away.

    With l = 2 ln s, e^l - 1 - l = 2 (s - 1 - ln s) + (s - 1)^2: terms that are never negative.
    """
    return tl.fma(distance, distance, tl.fma(growth, growth, twice_excess))


@triton.jit
def kl_slope(growth):
    """(s^2 - 1) / 2: the gradient of the KL with respect to the logarithm of the variance."""
    return growth * tl.fma(growth, const(growth, 0.5, 0.5), const(growth, 1.0, 1.0))


@triton.jit
def decay(d):
    """e^-d, to an ulp, for d from minus :data:`EXP_SATURATES_32` on, or NaN."""
    near = at_most(d, const(d, EXP_SATURATES_32, EXP_SATURATES_64))
    magic = const(d, MAGIC_32, MAGIC_64)
    # n is minus what the sum holds: e^-d = 2^n e^-(d + n ln 2).
    shifted = tl.fma(near, const(d, LOG2_E, LOG2_E), magic)
    n = magic - shifted
    rest = tl.fma(n, const(d, LN_2_HIGH_32, LN_2_HIGH_64), near)
    r = tl.fma(n, const(d, LN_2_LOW_32, LN_2_LOW_64), rest)
    return scale(horner(r, DECAY_32, 7, DECAY_64, 12), -rounded(shifted))


@triton.jit
def log_1p_of_unit(e):
    """log(1 + e) for e in [0, 1], to an ulp and a half of the result."""
    s = divide(e, e + const(e, 2.0, 2.0))
    square = s * s
    excess = horner(square, ATANH_EXCESS_32, 5, ATANH_EXCESS_64, 10)
    # log(1 + e) = 2 s + s^3 excess = e + s (s^2 excess - e).
    return tl.fma(tl.fma(square, excess, -e), s, e)


@triton.jit
def exponent(x):
    """floor(log2(x)) of positive normal numbers, as int32 or int64."""
    if x.dtype == tl.float64:
        return (x.to(tl.int64, bitcast=True) >> 52) - 1023
    else:
        return (x.to(tl.int32, bitcast=True) >> 23) - 127


@triton.jit
def log_1p(p):
    """log(1 + p) for p >= 0, to an ulp and a half of the result, however small it is."""
    one = const(p, 1.0, 1.0)
    # 1 + p = 2^n (1 + f). The rounded sum only chooses n: f comes from p itself.
    k = exponent(p + one)
    n = k.to(p.dtype)
    power = power_of_two(limited(-k))
    f = tl.fma(p, power, power - one)
    rest = tl.fma(n, const(p, LN_2_LOW_32, LN_2_LOW_64), log_1p_of_unit(f))
    return tl.fma(n, const(p, LN_2_HIGH_32, LN_2_HIGH_64), rest)
