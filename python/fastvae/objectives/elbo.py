"""The evidence lower bound."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["elbo"]


def elbo(recon: Tensor, kl: Tensor, beta: float | Tensor = 1.0) -> Tensor:
    r"""The evidence lower bound of a batch: ``mean(recon - beta * kl)``, in nats per sample.

    Both terms are sums over the axes of a sample and over its codes, so ``beta = 1`` is the bound on
    ``log p(x)`` itself and there is no other weight between them.

    Parameters
    ----------
    recon : Tensor
        log p(x | z) of each sample in nats, ``(B,)``.
    kl : Tensor
        KL(q(z | x) || p(z)) of each sample in nats, ``(B,)``.
    beta : float or Tensor
        Weight of the KL: a number, or a scalar on the device of the terms.

    Returns
    -------
    Tensor
        A scalar, to be maximised.

    Raises
    ------
    TypeError
        For a ``beta`` that is no number.
    ValueError
        For terms of two shapes: broadcast against each other, they would give another number than the bound.
        For a ``beta`` with more than one element, which weighs the samples.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, equation 3;
    Higgins et al., "beta-VAE", ICLR 2017, equation 4, for ``beta``.
    """
    if recon.shape != kl.shape:
        raise ValueError(
            f"elbo: recon and kl must have one shape, a number for each sample, got {tuple(recon.shape)} and "
            f"{tuple(kl.shape)}; sum each over the axes of a sample (event_dims says how many those are)"
        )
    if isinstance(beta, Tensor):
        if beta.numel() != 1:
            raise ValueError(
                f"elbo: beta must be one weight for all, got a tensor of shape {tuple(beta.shape)}"
            )
        return torch.addcmul(recon, kl, beta, value=-1).mean()
    if isinstance(beta, bool):
        raise TypeError("elbo: beta must be a number or a scalar tensor, got bool")
    return torch.sub(recon, kl, alpha=beta).mean()
