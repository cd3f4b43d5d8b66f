"""Signatures and fake kernels of the Gaussian log-density.

``logvar`` has the shape and dtype of ``mean``, or it is one element of the arithmetic's dtype for all values.
``target`` is uint8 (its values are over ``target_max``), bool, or of the arithmetic's dtype; it lacks the
leading axes over which it is shared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.layout import OPMATH
from fastvae.ops.library import define, fake

gaussian_log_prob = define(
    "gaussian_log_prob(Tensor mean, Tensor logvar, Tensor target, int target_max, int event_dims) -> Tensor"
)
gaussian_log_prob_backward = define(
    "gaussian_log_prob_backward(Tensor grad, Tensor mean, Tensor logvar, Tensor target, int target_max,"
    " int event_dims) -> (Tensor, Tensor)"
)


def empty_log_prob(parameters: Tensor, event_dims: int) -> Tensor:
    """An uninitialised log-probability: float32, or float64 for float64."""
    shape = parameters.shape[: parameters.dim() - event_dims]
    return torch.empty(shape, dtype=OPMATH[parameters.dtype], device=parameters.device)


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
