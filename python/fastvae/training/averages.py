"""What Adam keeps of a parameter from one step to the next."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Averages", "flat_averages"]


class Averages(NamedTuple):
    """What Adam keeps of a parameter, on the CPU, whichever kernels keep it.

    Attributes
    ----------
    mean, square : Tensor
        Of its gradient and of the square of its gradient: of its shape and dtype.
    powers : Tensor
        beta1^t and beta2^t after its t steps, float64, ``(2,)``.
    """

    mean: Tensor
    square: Tensor
    powers: Tensor


def flat_averages(size: int) -> Averages:
    """Those of a parameter of so many float32 numbers before its first step."""
    mean, square = (torch.zeros(size, dtype=torch.float32, device="cpu") for _ in range(2))
    return Averages(mean, square, torch.ones(2, dtype=torch.float64, device="cpu"))
