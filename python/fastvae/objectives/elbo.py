"""The evidence lower bound."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor

__all__ = ["elbo"]


def elbo(recon: Tensor, kl: Tensor, beta: float | Tensor = 1.0, capacity: float | Tensor = 0.0) -> Tensor:
    r"""The evidence lower bound of a batch: ``mean(recon - beta * kl)``, in nats per sample.

    Both terms are sums over the axes of a sample and over its codes, so ``beta = 1`` is the bound on
    ``log p(x)`` itself and there is no other weight between them. With a ``capacity`` it is
    ``mean(recon) - beta * |mean(kl) - capacity|``, which is a bound no more: the mean KL of the batch is
    drawn to it, and samples may differ.

    Parameters
    ----------
    recon : Tensor
        log p(x | z) of each sample in nats, ``(B,)``.
    kl : Tensor
        KL(q(z | x) || p(z)) of each sample in nats, ``(B,)``.
    beta : float or Tensor
        Weight of the KL: a number, or a scalar on the device of the terms.
    capacity : float or Tensor
        KL that is aimed at, in nats per sample: a number, or a scalar on the device of the terms. The number
        0 is the plain bound.

    Returns
    -------
    Tensor
        A scalar, to be maximised.

    Raises
    ------
    TypeError
        For a ``beta`` or ``capacity`` that is no number.
    ValueError
        For terms of two shapes: broadcast against each other, they would give another number than the bound.
        For a ``beta`` or ``capacity`` with more than one element, one for each sample. For a
        ``capacity`` that is a negative number or not finite.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, equation 3;
    Higgins et al., "beta-VAE", ICLR 2017, equation 4, for ``beta``;
    Burgess et al., "Understanding disentangling in beta-VAE", 2018 (arXiv 1804.03599), equation 8, for
    ``capacity`` (their C; their gamma is ``beta``).
    """
    if recon.shape != kl.shape:
        raise ValueError(
            f"elbo: recon and kl must have one shape, a number for each sample, got {tuple(recon.shape)} and "
            f"{tuple(kl.shape)}; sum each over the axes of a sample (event_dims says how many those are)"
        )
    _check_one("beta", beta)
    _check_one("capacity", capacity)
    if isinstance(capacity, Tensor):
        capacity = capacity.reshape(())
    elif not 0 <= capacity < math.inf:
        raise ValueError(f"elbo: capacity must be a finite number of at least 0, got {capacity}")
    if isinstance(capacity, Tensor) or capacity:
        recon, kl = recon.mean(), (kl.mean() - capacity).abs()
    if isinstance(beta, Tensor):
        return torch.addcmul(recon, kl, beta, value=-1).mean()
    return torch.sub(recon, kl, alpha=beta).mean()


def _check_one(name: str, value: object) -> None:
    """Refuse what is not one number for all samples."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"elbo: {name} must be one number for all, got a tensor of shape {tuple(value.shape)}"
            )
    elif isinstance(value, bool) or not isinstance(value, numbers.Real | torch.SymInt | torch.SymFloat):
        raise TypeError(f"elbo: {name} must be a number or a scalar tensor, got {type(value).__name__}")
