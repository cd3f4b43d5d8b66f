"""What becomes of memory between the steps of a training on the CPU."""

from __future__ import annotations

import sys

import torch

__all__ = ["keep_freed_memory"]

MOST_BYTES = (32 << 20) - (8 << 10)
"""The largest block that the C library learns from is one of 32 MiB, with what it and torch add."""


def keep_freed_memory() -> None:
    """Have glibc keep what a step frees, for the next step, which takes as much again.

    By default it gives memory back to the system as soon as two of the largest blocks that were freed so far
    are free, which on a small network is two gradients: each step then waits for the system to clear their
    pages again. glibc raises that limit when a larger block is freed (``mallopt(3)``, ``M_MMAP_THRESHOLD``),
    here one that nothing was written to. Up to 64 MiB stay with the process. Where the limit was set by hand,
    and with another C library, this does nothing.
    """
    if sys.platform == "linux":
        torch.empty(MOST_BYTES, dtype=torch.uint8, device="cpu")
