"""Sums over an epoch in Triton: what a batch adds to them, by one program."""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["add"]


@triton.jit
def total(x, size, step, BLOCK: tl.constexpr):
    """The sum of a vector in float64, in an order that depends on its size alone."""
    sums = tl.zeros([BLOCK], tl.float64)
    for start in range(0, size, BLOCK):
        at = start + tl.arange(0, BLOCK)
        sums += tl.load(x + at.to(tl.int64) * step, mask=at < size, other=0.0).to(tl.float64)
    return tl.sum(sums, 0)


@triton.jit(do_not_specialize=["recon", "kl", "samples", "recon_step", "kl_step"])
def add(recon, kl, skipped, sums, samples, recon_step, kl_step, BLOCK: tl.constexpr):
    """Add the recon, the KL, the number of samples and that of steps, unless the step was skipped."""
    of_recon = total(recon, samples, recon_step, BLOCK)
    of_kl = total(kl, samples, kl_step, BLOCK)
    # Not a product with the flag, as a sum of what was skipped may be infinite.
    if tl.load(skipped) == 0:
        tl.store(sums, tl.load(sums) + of_recon)
        tl.store(sums + 1, tl.load(sums + 1) + of_kl)
        tl.store(sums + 2, tl.load(sums + 2) + samples.to(tl.float64))
        tl.store(sums + 3, tl.load(sums + 3) + tl.full([], 1.0, tl.float64))
