"""Signatures and fake kernels of the Gaussian KL operators.

``reduction`` is ``"none"`` (one value per element), ``"sample"`` (summed over the event), ``"dimension"``
(summed over the latents) or ``"sum"`` (summed over everything); means are these, scaled, in
:mod:`fastvae.functional`. Kernels get no trailing arguments that are at their defaults.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.layout import OPMATH, reduced_shape
from fastvae.ops.library import define, fake

FREE_BITS = "float free_bits=0.0, int group_size=1"
"""The floor of a group of neighbouring dimensions in nats; 0 is the plain KL."""

gaussian_kl = define(
    f"gaussian_kl(Tensor mu, Tensor logvar, int event_dims, str reduction, {FREE_BITS}) -> Tensor"
)
gaussian_kl_backward = define(
    "gaussian_kl_backward(Tensor grad_kl, Tensor mu, Tensor logvar, int event_dims, str reduction,"
    f" {FREE_BITS}) -> (Tensor, Tensor)"
)
gaussian_kl_prior = define(
    "gaussian_kl_prior(Tensor mu, Tensor logvar, Tensor prior_mu, Tensor prior_logvar,"
    " int event_dims, str reduction) -> Tensor"
)
gaussian_kl_prior_backward = define(
    "gaussian_kl_prior_backward(Tensor grad_kl, Tensor mu, Tensor logvar, Tensor prior_mu,"
    " Tensor prior_logvar, int event_dims, str reduction) -> (Tensor, Tensor, Tensor, Tensor)"
)


def empty_kl(mu: Tensor, event_dims: int, reduction: str) -> Tensor:
    """An uninitialised KL for a latent: float32, or float64 for float64."""
    return torch.empty(
        reduced_shape(mu.shape, event_dims, reduction), dtype=OPMATH[mu.dtype], device=mu.device
    )


def empty_latent(like: Tensor) -> Tensor:
    """An uninitialised contiguous tensor of the same shape, dtype and device."""
    return torch.empty_like(like, memory_format=torch.contiguous_format)


@fake(gaussian_kl)
def _(
    mu: Tensor,
    logvar: Tensor,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> Tensor:
    del logvar, free_bits, group_size
    return empty_kl(mu, event_dims, reduction)


@fake(gaussian_kl_backward)
def _(
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    del grad_kl, event_dims, reduction, free_bits, group_size
    return empty_latent(mu), empty_latent(logvar)


@fake(gaussian_kl_prior)
def _(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, event_dims: int, reduction: str
) -> Tensor:
    del logvar, prior_mu, prior_logvar
    return empty_kl(mu, event_dims, reduction)


@fake(gaussian_kl_prior_backward)
def _(
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    event_dims: int,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    del grad_kl, event_dims, reduction
    return empty_latent(mu), empty_latent(logvar), empty_latent(prior_mu), empty_latent(prior_logvar)
