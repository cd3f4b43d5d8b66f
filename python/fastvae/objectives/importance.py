"""The importance-weighted bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["iwae_bound"]


def iwae_bound(recon: Tensor, log_weight: Tensor) -> Tensor:
    r"""The importance-weighted bound of a batch: ``mean(log(1/K sum_k exp(log w_k)))``, in nats per sample.

    ``log w_k = log p(x | z_k) + log p(z_k) - log q(z_k | x)`` is ``recon + log_weight``. For one sample it is
    an estimate of the evidence lower bound, and it grows with their number towards ``log p(x)``. Its gradient
    gives each ``log w_k`` the normalised weight ``w_k / sum(w)``: the best samples count most.

    Parameters
    ----------
    recon : Tensor
        log p(x | z) of each sample in nats, ``(K, B)``.
    log_weight : Tensor
        log p(z) - log q(z | x) in nats, ``(K, B)``; see
        :func:`fastvae.functional.reparametrize_log_weight`.

    Returns
    -------
    Tensor
        A scalar, to be maximised.

    Raises
    ------
    ValueError
        Unless both have one shape (K, B) with K at least 1.

    References
    ----------
    Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, equations 8 and 14.
    """
    if recon.shape != log_weight.shape or recon.dim() != 2 or len(recon) == 0:
        raise ValueError(
            "iwae_bound: recon and log_weight must both be (K, B) with K at least 1, got "
            f"{tuple(recon.shape)} and {tuple(log_weight.shape)}; for one sample each, unsqueeze(0) makes "
            "(1, B)"
        )
    return (torch.logsumexp(recon + log_weight, 0) - math.log(len(recon))).mean()
