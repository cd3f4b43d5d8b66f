"""A step of Adam in Triton, in two launches: is every number finite, and if so, move the parameters.

A launch takes some tensors, cut into chunks. A table says of each chunk whose it is, which of its tensor's
chunks, and how many elements it has: three rows of int32. So a program finds its work whatever the tensors'
sizes are, and a large tensor is not the work of a few.
"""

from __future__ import annotations

import triton
import triton.language as tl

from fastvae.ops.triton.math import LARGEST_32, SMALLEST_NORMAL_32, divide, loaded

__all__ = ["check", "update"]


@triton.jit
def of_chunk(chunk_table, chunks, chunk):
    """Whose the chunk is, which of its tensor's, and how many elements it has."""
    place = chunk_table + chunk
    return tl.load(place), tl.load(place + chunks), tl.load(place + 2 * chunks)


@triton.jit
def tensor_of(tensors, owner):
    """The tensor with this number: what all of them promise of their alignment holds for it."""
    tensor = tensors[0]
    for i in tl.static_range(1, len(tensors)):
        tensor = tl.where(owner == i, tensors[i], tensor)
    return tensor


@triton.jit
def has(present, owner):
    """Whether the tensor with this number is there: its bit says so."""
    return (present.to(tl.int64) >> owner.to(tl.int64)) & 1 != 0


@triton.jit
def not_finite(x):
    """1 for an infinity and for NaN, else 0."""
    return tl.where(tl.abs(x) <= LARGEST_32, 0, 1)


@triton.jit
def not_finite_in(x, size, CHUNK: tl.constexpr):
    """Where there is one in a flat tensor, taken chunk by chunk."""
    found = tl.zeros([CHUNK], tl.int32)
    for start in range(0, size, CHUNK):
        at = start + tl.arange(0, CHUNK)
        found |= not_finite(tl.load(x + at, mask=at < size, other=0.0))
    return found


@triton.jit
def not_finite_among(tensors, chunk_table, chunks, present, steps, CHUNK: tl.constexpr):
    """Where there is one in the chunks of this program, which has every so manieth."""
    inner = tl.arange(0, CHUNK)
    found = tl.zeros([CHUNK], tl.int32)
    for step in range(steps):
        chunk = tl.program_id(0) - 2 + step * (tl.num_programs(0) - 2)
        if chunk < chunks:
            owner, number, count = of_chunk(chunk_table, chunks, chunk)
            if has(present, owner):
                pointers = tensor_of(tensors, owner) + number.to(tl.int64) * CHUNK + inner
                if count == CHUNK:
                    found |= not_finite(loaded(pointers, inner < count, True))
                else:
                    found |= not_finite(loaded(pointers, inner < count, False))
    return found


@triton.jit
def correct(
    counts, factors, BETA1: tl.constexpr, BETA2: tl.constexpr, EPS: tl.constexpr, SLOTS: tl.constexpr
):
    """What a step would count, and what it would do, for each tensor.

    ``counts``, float64: beta1^t, beta2^t (rows 0 and 1), those after this step (2 and 3), the learning rate,
    and that times the weight decay. ``factors``, float32: with m / (sqrt(v) + floor) a parameter moves by
    step times that, after it lost decay times itself.
    """
    slot = tl.arange(0, SLOTS)
    one = tl.full([SLOTS], 1.0, tl.float64)
    power1 = tl.load(counts + slot) * tl.full([SLOTS], BETA1, tl.float64)
    power2 = tl.load(counts + SLOTS + slot) * tl.full([SLOTS], BETA2, tl.float64)
    rate = tl.load(counts + 4 * SLOTS + slot)
    decay = tl.load(counts + 5 * SLOTS + slot)
    # step m / (sqrt(v / c2) + eps), with one division for each element.
    spread = tl.sqrt(one - power2)
    tl.store(counts + 2 * SLOTS + slot, power1)
    tl.store(counts + 3 * SLOTS + slot, power2)
    tl.store(factors + slot, (divide(rate, one - power1) * spread).to(tl.float32))
    tl.store(factors + SLOTS + slot, (tl.full([SLOTS], EPS, tl.float64) * spread).to(tl.float32))
    tl.store(factors + 2 * SLOTS + slot, decay.to(tl.float32))


@triton.jit(
    do_not_specialize=[
        "first", "second", "flags", "first_size", "second_size", "chunks", "present", "steps",
    ]
)  # fmt: skip
def check(
    gradients,
    first,
    second,
    chunk_table,
    counts,
    factors,
    flags,
    first_size,
    second_size,
    chunks,
    present: tl.int64,
    steps,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    EPS: tl.constexpr,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """What the step needs to know: ``flags`` gets 1 or 0 from each program but the first, which counts.

    The second program has the outputs, each of the others ``steps`` chunks. Bit i of ``present`` says whether
    tensor i has a gradient; what is passed for one that has none is not read.
    """
    program = tl.program_id(0)
    if program == 0:
        correct(counts, factors, BETA1, BETA2, EPS, SLOTS)
    else:
        if program == 1:
            found = not_finite_in(first, first_size, CHUNK) | not_finite_in(second, second_size, CHUNK)
        else:
            found = not_finite_among(gradients, chunk_table, chunks, present, steps, CHUNK)
        tl.store(flags + (program - 1), tl.max(found, 0).to(tl.int8))


@triton.jit
def root(x):
    """The square root, rounded once.

    A device takes several times as long for 0, which weights of a pixel that is never on have all the time.
    """
    return tl.where(x == 0.0, 0.0, tl.sqrt_rn(tl.where(x == 0.0, 1.0, x)))


@triton.jit
def quotient(a, b):
    """a / b, rounded once, likewise."""
    return tl.where(a == 0.0, 0.0, tl.div_rn(tl.where(a == 0.0, 1.0, a), b))


@triton.jit
def unless_faded(x):
    """An average, or 0 at the end of the normal numbers: those beyond move nothing, and are slow."""
    return tl.where(tl.abs(x) <= SMALLEST_NORMAL_32, 0.0, x)


@triton.jit
def move(
    parameters,
    gradients,
    means,
    squares,
    factors,
    flags,
    owner,
    count,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
    WHOLE: tl.constexpr,
):
    """Move the elements of a chunk unless there is a flag; 1 where there is, else 0."""
    inner = tl.arange(0, CHUNK)
    inside = inner < count
    # All is under way before the flags are looked at, which programs of the launch before left.
    gradient = loaded(gradients + inner, inside, WHOLE)
    value = loaded(parameters + inner, inside, WHOLE)
    mean, square = tl.load(means + inner), tl.load(squares + inner)
    step, floor, decay = (
        tl.load(factors + owner),
        tl.load(factors + SLOTS + owner),
        tl.load(factors + 2 * SLOTS + owner),
    )
    skipped = tl.max(flags, 0)
    if skipped == 0:
        # What is left of 1 is exact: the betas are float32 numbers above 1/2.
        mean = tl.fma(tl.full([CHUNK], BETA1, tl.float32), mean, (1.0 - BETA1) * gradient)
        square = tl.fma(tl.full([CHUNK], BETA2, tl.float32), square, (1.0 - BETA2) * (gradient * gradient))
        mean, square = unless_faded(mean), unless_faded(square)
        ratio = quotient(mean, root(square) + floor)
        value = tl.fma(tl.zeros([CHUNK], tl.float32) - decay, value, value)
        value = tl.fma(tl.zeros([CHUNK], tl.float32) - step, ratio, value)
        tl.store(means + inner, mean)
        tl.store(squares + inner, square)
        if WHOLE:
            tl.store(parameters + inner, value)
        else:
            tl.store(parameters + inner, value, mask=inside)
    return skipped


@triton.jit(do_not_specialize=["chunks", "present"])
def update(
    parameters,
    gradients,
    means,
    squares,
    chunk_table,
    counts,
    factors,
    flags,
    skipped,
    chunks,
    present: tl.int64,
    BETA1: tl.constexpr,
    BETA2: tl.constexpr,
    SLOTS: tl.constexpr,
    CHUNK: tl.constexpr,
    FLAGS: tl.constexpr,
):
    """AdamW for a chunk, where no flag is set; ``means`` and ``squares`` have a whole chunk for each.

    The program with the first chunk of a tensor counts its step: :func:`correct`, which reads the count, is
    in another launch. The one with the first chunk of all says whether the step was ``skipped``.
    """
    chunk = tl.program_id(0)
    owner, number, count = of_chunk(chunk_table, chunks, chunk)
    found = tl.load(flags + tl.arange(0, FLAGS)).to(tl.int32)
    if has(present, owner):
        within = number.to(tl.int64) * CHUNK
        own = chunk.to(tl.int64) * CHUNK
        parameter, gradient = tensor_of(parameters, owner) + within, tensor_of(gradients, owner) + within
        mean, square = means + own, squares + own
        if count == CHUNK:
            calls_off = move(
                parameter, gradient, mean, square, factors, found, owner, count,
                BETA1, BETA2, SLOTS, CHUNK, True,
            )  # fmt: skip
        else:
            calls_off = move(
                parameter, gradient, mean, square, factors, found, owner, count,
                BETA1, BETA2, SLOTS, CHUNK, False,
            )  # fmt: skip
        if (number == 0) & (calls_off == 0):
            tl.store(counts + owner, tl.load(counts + 2 * SLOTS + owner))
            tl.store(counts + SLOTS + owner, tl.load(counts + 3 * SLOTS + owner))
    else:
        calls_off = tl.max(found, 0)
    if chunk == 0:
        tl.store(skipped, calls_off.to(tl.float32))
