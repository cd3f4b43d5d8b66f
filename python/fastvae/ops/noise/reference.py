"""The noise contract in torch integer and float64 operations: any device, the same bits as the kernels.

``docs/noise.md`` has the contract in words and the same algorithm in NumPy. The kernels use fused
multiply-adds; torch has none, so :func:`fma` rounds ``a * b + c`` to float32 once, by way of float64
with rounding to odd (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums", 2008).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

IntLike = TypeVar("IntLike", int, Tensor)

MASK = 0xFFFFFFFF

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)
PHILOX_ROUNDS = 10

FOLD_IN_DOMAIN = (0x464F4C44, 0xFFFFFFFF)
"""Counter words 2 and 3 of :func:`fold_in`; the second is beyond every row number."""

LOG = (
    -0.10822345316410065,
    0.24153436720371246,
    -0.2998899519443512,
    0.33648642897605896,
    -0.39951813220977783,
    0.49986448884010315,
    -0.6666718125343323,
    1.000001311302185,
    -2.0,
)
"""-2 ln(1 + f) / f on [-1/4, 1/2], highest power first."""
LOG_2 = -1.3862943649291992
"""-2 ln 2."""
SIN = (
    0.00015148513193707913,
    -0.004673766437917948,
    0.07968967407941818,
    -0.6459637880325317,
    1.5707963705062866,
)
"""sin(pi/2 v) / v in powers of v^2 on [0, 1], highest first."""
COS = (
    -2.3848338969401084e-05,
    0.0009177876054309309,
    -0.020862752571702003,
    0.2536693215370178,
    -1.2337005138397217,
    1.0,
)
"""cos(pi/2 v), likewise."""


def philox(counter: Sequence[Any], key: Sequence[Any]) -> list[Any]:
    """Philox4x32-10 (Salmon et al., SC'11) on int64 tensors or ints that hold 32-bit words.

    Parameters
    ----------
    counter : four int64 tensors or ints, broadcastable
    key : two int64 tensors or ints, broadcastable

    Returns
    -------
    list of four with values in [0, 2^32)
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    m0, m1 = PHILOX_MULTIPLIERS
    for _ in range(PHILOX_ROUNDS):
        # A 64-bit product wraps in int64; its halves are right all the same.
        p0, p1 = c0 * m0, c2 * m1
        c0, c1, c2, c3 = (
            (p1 >> 32) & MASK ^ c1 ^ k0,
            p1 & MASK,
            (p0 >> 32) & MASK ^ c3 ^ k1,
            p0 & MASK,
        )
        k0, k1 = (k0 + PHILOX_WEYL[0]) & MASK, (k1 + PHILOX_WEYL[1]) & MASK
    return [c0, c1, c2, c3]


def split_key(seed: IntLike) -> tuple[IntLike, IntLike]:
    """The two 32-bit key words of an int64 seed, low word first."""
    return seed & MASK, (seed >> 32) & MASK


def words(rows: Tensor, columns: int, seed: Tensor, draw: int) -> list[Tensor]:
    """The four words of every block for ``columns`` columns of ``rows``: (R, ceil(columns / 4)) each."""
    blocks = torch.arange((columns + 3) // 4, dtype=torch.int64, device=rows.device)
    shape = (rows.shape[0], blocks.shape[0])
    counter = [
        blocks.expand(shape),
        torch.full(shape, draw, dtype=torch.int64, device=rows.device),
        (rows & MASK)[:, None].expand(shape),
        ((rows >> 32) & MASK)[:, None].expand(shape),
    ]
    return philox(counter, split_key(seed))


def interleave(parts: Sequence[Tensor], columns: int) -> Tensor:
    """Put the four values of each block next to each other and drop the padding: (R, columns)."""
    return torch.stack(list(parts), dim=-1).flatten(1)[:, :columns].contiguous()


def float32(value: float) -> float:
    """``value`` rounded to float32, as a Python float."""
    return float(np.float32(value))


def fma(a: Tensor, b: Tensor | float, c: Tensor | float) -> Tensor:
    """``a * b + c`` on float32 values, rounded once.

    The product of two float32 is exact in float64. The sum is rounded to odd there: when it is inexact and
    its last bit is 0, it moves one step towards the exact value, so the final rounding to float32 is right.
    """
    a64 = a.to(torch.float64)
    # Not tensors on the host, which would have to be waited for.
    b64 = b.to(torch.float64) if isinstance(b, Tensor) else float32(b)
    c64 = c.to(torch.float64) if isinstance(c, Tensor) else float32(c)
    product = a64 * b64
    total = product + c64
    back = total - product
    error = (product - (total - back)) + (c64 - back)
    bits = total.view(torch.int64)
    step = torch.where((error > 0) == (total > 0), 1, -1)
    odd = torch.where((error != 0) & (bits & 1 == 0), bits + step, bits)
    return odd.view(torch.float64).to(torch.float32)


def polynomial(x: Tensor, coefficients: Sequence[float]) -> Tensor:
    """Horner's rule with fused multiply-adds, highest power first."""
    result = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        result = fma(result, x, coefficient)
    return result


def radius(word: Tensor) -> Tensor:
    """sqrt(-2 ln u) with u = (word + 1/2) / 2^32, the word rounded to float32 and u again."""
    bits = (word.to(torch.float32) + 0.5).view(torch.int32)
    exponent = (bits - 0x3F400000) >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    e = (exponent - 32).to(torch.float32)
    square = fma(e, LOG_2, polynomial(f, LOG) * f)
    # torch takes float32 roots from a library that is off by an ulp on some processors; float64 is enough.
    return square.to(torch.float64).sqrt().to(torch.float32)


def half_circle(word: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of pi/2 (k + 1/2) / 2^30, with k the lower 31 bits of the word as a signed number."""
    doubled = (word << 1) & MASK
    signed = doubled - ((doubled & 0x80000000) << 1)
    v = fma(signed.to(torch.float32), 2.0**-31, 2.0**-31)
    square = v * v
    return polynomial(square, COS), polynomial(square, SIN) * v


def row_numbers(rows: int, row_offset: int, row_ids: Tensor | None, device: torch.device) -> Tensor:
    """The row number of each row: the given ones, or consecutive ones."""
    if row_ids is not None:
        return row_ids
    return torch.arange(rows, dtype=torch.int64, device=device) + row_offset


def normal(
    rows: int, columns: int, seed: Tensor, draw: int, row_offset: int, row_ids: Tensor | None
) -> Tensor:
    """Standard normals of the contract, float32, (rows, columns), by Box-Muller on word pairs."""
    numbers = row_numbers(rows, row_offset, row_ids, seed.device)
    w0, w1, w2, w3 = words(numbers, columns, seed, draw)
    parts = []
    for first, second in ((w0, w1), (w2, w3)):
        r = radius(first)
        # The upper bit adds half a turn.
        r = torch.where(second >> 31 == 1, -r, r)
        x, y = half_circle(second)
        parts += [r * x, r * y]
    return interleave(parts, columns)


def uniform(
    rows: int, columns: int, seed: Tensor, draw: int, row_offset: int, row_ids: Tensor | None
) -> Tensor:
    """Uniforms of the contract on [0, 1), float32, (rows, columns): the upper 24 bits of each word."""
    numbers = row_numbers(rows, row_offset, row_ids, seed.device)
    parts = [(word >> 8).to(torch.float32) * 2.0**-24 for word in words(numbers, columns, seed, draw)]
    return interleave(parts, columns)


def permutation(n: int, seed: Tensor, draw: int) -> Tensor:
    """The order that sorts the 63-bit keys of rows 0..n-1, ties by row: int64, (n,)."""
    numbers = torch.arange(n, dtype=torch.int64, device=seed.device)
    w0, w1, _, _ = words(numbers, 1, seed, draw)
    keys = ((w1 << 31) | (w0 >> 1)).flatten()
    return keys.sort(stable=True).indices


def fold_in(seed: IntLike, tag: IntLike) -> IntLike:
    """A new int64 seed from a seed and a tag: both tensors, elementwise, or both ints."""
    w0, w1, _, _ = philox([*split_key(tag), *FOLD_IN_DOMAIN], split_key(seed))
    if isinstance(w1, int):
        w1 -= (w1 & 0x80000000) << 1  # the sign that an int64 would have
    return (w1 << 32) | w0
