"""Samples and their log weights in plain torch operations: it defines what is correct.

With z = mu + sigma eps, the weight of a sample (Burda et al. 2016, equation 8) is
log p(z) - log q(z | x) = 1/2 sum(eps^2 + logvar - z^2). The difference of the squares is taken as the product
(eps - z)(eps + z), and eps - z as -(mu + (sigma - 1) eps) with sigma - 1 from ``expm1``, so nothing cancels
where the posterior is near the prior, and where it is the prior the logarithm is exactly 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.gaussian_kl.reference import expm1, reduce
from fastvae.ops.layout import OPMATH, dense
from fastvae.ops.library import kernel
from fastvae.ops.reparametrize.reference import noise_like
from fastvae.ops.reparametrize_log_weight import schema


@kernel(schema.reparametrize_log_weight, "CompositeExplicitAutograd")
def reparametrize_log_weight(
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    draw: int,
    row_offset: int,
    event_dims: int,
    num_samples: int,
) -> tuple[Tensor, Tensor]:
    """The samples, and log p(z) - log q(z | x) in nats of each."""
    opmath = OPMATH[mu.dtype]
    m, log_variance = mu.to(opmath), logvar.to(opmath)
    half = log_variance * 0.5
    sigma, growth = half.exp(), expm1(half)
    samples, log_weights = [], []
    for k in range(num_samples):
        eps = noise_like(mu, seed, draw + k, row_offset, event_dims)
        z = m + sigma * eps
        terms = 0.5 * (log_variance - (m + growth * eps) * (eps + z))
        samples.append(z.to(mu.dtype))
        log_weights.append(reduce(terms, event_dims, "sample"))
    return torch.stack(samples), torch.stack(log_weights)


@kernel(schema.reparametrize_log_weight_backward, "CompositeExplicitAutograd")
def reparametrize_log_weight_backward(
    grad_z: Tensor | None,
    grad_log_weight: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    draw: int,
    row_offset: int,
    event_dims: int,
    num_samples: int,
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mu and logvar, summed over the samples, each rounded once."""
    opmath = OPMATH[mu.dtype]
    m = mu.to(opmath)
    sigma = (logvar.to(opmath) * 0.5).exp()
    grad_mu, grad_logvar = torch.zeros_like(m), torch.zeros_like(m)
    grad_z = None if grad_z is None else dense(grad_z)
    grad_log_weight = None if grad_log_weight is None else dense(grad_log_weight)
    for k in range(num_samples):
        step = sigma * noise_like(mu, seed, draw + k, row_offset, event_dims)
        if grad_z is not None:
            g_z = grad_z[k].to(opmath)
            grad_mu = grad_mu + g_z
            grad_logvar = grad_logvar + 0.5 * g_z * step
        if grad_log_weight is not None:
            g = grad_log_weight[k]
            g = g.reshape((*g.shape, *(1,) * event_dims))
            z = m + step
            grad_mu = grad_mu - g * z
            grad_logvar = grad_logvar + 0.5 * g * (1.0 - z * step)
    return grad_mu.to(mu.dtype).contiguous(), grad_logvar.to(logvar.dtype).contiguous()
