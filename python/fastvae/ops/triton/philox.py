"""The noise contract (docs/noise.md) in Triton."""

from __future__ import annotations

import triton
import triton.language as tl

from fastvae.ops.noise import reference

MULTIPLIER_0, MULTIPLIER_1 = map(tl.constexpr, reference.PHILOX_MULTIPLIERS)
WEYL_0, WEYL_1 = map(tl.constexpr, reference.PHILOX_WEYL)
ROUNDS = tl.constexpr(reference.PHILOX_ROUNDS)
LOG, LOG_TERMS = tl.constexpr(reference.LOG), tl.constexpr(len(reference.LOG))
SIN, SIN_TERMS = tl.constexpr(reference.SIN), tl.constexpr(len(reference.SIN))
COS, COS_TERMS = tl.constexpr(reference.COS), tl.constexpr(len(reference.COS))
LOG_2 = tl.constexpr(reference.LOG_2)
FOLD_IN_2, FOLD_IN_3 = map(tl.constexpr, reference.FOLD_IN_DOMAIN)


@triton.jit
def philox(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10 on uint32 that broadcast; what the counters of a row share is computed once for it."""
    for _ in tl.static_range(ROUNDS):
        # As one wide product: fewer instructions than a low and a high one.
        p0 = c0.to(tl.uint64) * MULTIPLIER_0
        p1 = c2.to(tl.uint64) * MULTIPLIER_1
        c0, c1, c2, c3 = (
            (p1 >> 32).to(tl.uint32) ^ c1 ^ k0,
            p1.to(tl.uint32),
            (p0 >> 32).to(tl.uint32) ^ c3 ^ k1,
            p0.to(tl.uint32),
        )
        k0 += WEYL_0
        k1 += WEYL_1
    return c0, c1, c2, c3


@triton.jit
def words(row, block, draw, seed):
    """The four words of blocks ``block`` (uint32, along a tile) of rows ``row`` (int64, down it)."""
    low, high = row.to(tl.uint32)[:, None], (row >> 32).to(tl.uint32)[:, None]
    return philox(block[None, :], draw, low, high, seed.to(tl.uint32), (seed >> 32).to(tl.uint32))


@triton.jit
def series(x, COEFFICIENTS: tl.constexpr, TERMS: tl.constexpr):
    """Horner's rule with fused multiply-adds, highest power first, in float32."""
    y = tl.full(x.shape, COEFFICIENTS[0], tl.float32)
    for i in tl.static_range(1, TERMS):
        y = tl.fma(y, x, tl.full(x.shape, COEFFICIENTS[i], tl.float32))
    return y


@triton.jit
def root(x):
    """The square root of 0 or of a number from 2^-64 on, rounded once.

    As the hardware's own, less the branch to what the other numbers need.
    """
    inverse = tl.rsqrt(tl.maximum(x, tl.full(x.shape, 2.0**-64, tl.float32)))
    near = x * inverse
    # Times -1: older compilers make a subtraction of a sign.
    return tl.fma(tl.fma(near * -1.0, near, x), inverse * 0.5, near)


@triton.jit
def radius(word):
    """sqrt(-2 ln u) with u = (word + 1/2) / 2^32, the word rounded to float32 and u again."""
    bits = (word.to(tl.float32) + 0.5).to(tl.int32, bitcast=True)
    # u = m 2^e with m from 3/4 on and below 3/2: e stays where the exponent of a number is.
    e = (bits - (0x3F400000 + (32 << 23))) & -0x800000
    f = (bits - e - (32 << 23)).to(tl.float32, bitcast=True) - 1.0
    y = series(f, LOG, LOG_TERMS) * f
    return root(tl.fma(e.to(tl.float32), tl.full(f.shape, LOG_2 * 2.0**-23, tl.float32), y))


@triton.jit
def half_circle(word):
    """Cosine and sine of pi/2 (k + 1/2) / 2^30, with k the lower 31 bits of the word as a signed number."""
    signed = (word << 1).to(tl.int32, bitcast=True).to(tl.float32)
    step = tl.full(signed.shape, 2.0**-31, tl.float32)
    v = tl.fma(signed, step, step)
    square = v * v
    return series(square, COS, COS_TERMS), series(square, SIN, SIN_TERMS) * v


@triton.jit
def box_muller(first, second):
    """Two normals from two words."""
    # The upper bit adds half a turn.
    bits = radius(first).to(tl.uint32, bitcast=True) ^ (second & 0x80000000)
    r = bits.to(tl.float32, bitcast=True)
    cosine, sine = half_circle(second)
    return r * cosine, r * sine


@triton.jit
def woven(a, b, c, d, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Put the four values of each block next to each other: each thread keeps its own."""
    return tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), [ROWS, COLUMNS])


@triton.jit
def blocks(start, COLUMNS: tl.constexpr):
    """The numbers of the blocks of a tile that begins at column ``start`` (int64, a multiple of four)."""
    return (start >> 2).to(tl.uint32) + tl.arange(0, COLUMNS // 4).to(tl.uint32)


@triton.jit
def normals_of(row, block, draw, seed):
    """The four normals of blocks."""
    w0, w1, w2, w3 = words(row, block, draw, seed)
    a, b = box_muller(w0, w1)
    c, d = box_muller(w2, w3)
    return a, b, c, d


@triton.jit
def normal_tile(row, start, draw, seed, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BITS: tl.constexpr = 32):
    """Standard normals, float32: a tile of rows ``row`` that begins at column ``start``.

    A thread has as many neighbours as it writes together of elements with so many ``BITS``.
    """
    if BITS == 16 and COLUMNS >= 8:
        even = (start >> 2).to(tl.uint32) + 2 * tl.arange(0, COLUMNS // 8).to(tl.uint32)
        a, b, c, d = normals_of(row, even, draw, seed)
        e, f, g, h = normals_of(row, even + 1, draw, seed)
        evens = tl.join(tl.join(a, e), tl.join(c, g))
        odds = tl.join(tl.join(b, f), tl.join(d, h))
        return tl.reshape(tl.join(evens, odds), [ROWS, COLUMNS])
    else:
        a, b, c, d = normals_of(row, blocks(start, COLUMNS), draw, seed)
        return woven(a, b, c, d, ROWS, COLUMNS)


@triton.jit
def upper24_tile(row, start, draw, seed, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The upper 24 bits of the words, int32: uniforms on [0, 1) times 2^24."""
    w0, w1, w2, w3 = words(row, blocks(start, COLUMNS), draw, seed)
    return woven(w0 >> 8, w1 >> 8, w2 >> 8, w3 >> 8, ROWS, COLUMNS).to(tl.int32, bitcast=True)


@triton.jit
def uniform_tile(row, start, draw, seed, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Uniforms on [0, 1), float32, likewise."""
    return upper24_tile(row, start, draw, seed, ROWS, COLUMNS).to(tl.float32) * 2.0**-24
