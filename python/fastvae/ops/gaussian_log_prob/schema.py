"""Signatures and fake kernels of the Gaussian log-density.

``logvar`` has the shape and dtype of ``mean``, or it is one element of the arithmetic's dtype for all values.
``target`` is uint8 (its values are over ``target_max``), bool, or of the arithmetic's dtype; it lacks the
leading axes over which it is shared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.library import define, fake
from fastvae.ops.observed import empty_log_prob

gaussian_log_prob = define(
    "gaussian_log_prob(Tensor mean, Tensor logvar, Tensor target, int target_max, int event_dims) -> Tensor"
)
gaussian_log_prob_backward = define(
    "gaussian_log_prob_backward(Tensor grad, Tensor mean, Tensor logvar, Tensor target, int target_max,"
    " int event_dims) -> (Tensor, Tensor)"
)


def empty_grads(mean: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialised gradients of the two parameters, contiguous."""
    return (
        torch.empty_like(mean, memory_format=torch.contiguous_format),
        torch.empty_like(logvar, memory_format=torch.contiguous_format),
    )


@fake(gaussian_log_prob)
def _(mean: Tensor, logvar: Tensor, target: Tensor, target_max: int, event_dims: int) -> Tensor:
    del logvar, target, target_max
    return empty_log_prob(mean, event_dims)


@fake(gaussian_log_prob_backward)
def _(
    grad: Tensor, mean: Tensor, logvar: Tensor, target: Tensor, target_max: int, event_dims: int
) -> tuple[Tensor, Tensor]:
    del grad, target, target_max, event_dims
    return empty_grads(mean, logvar)
