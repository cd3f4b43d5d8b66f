"""The Gaussian KL in plain torch operations: it defines what is correct.

KL(N(m, e^l) || N(p, e^k)) = 1/2 (e^(l - k) - 1 - (l - k) + (m - p)^2 e^-k) in nats (Kingma and Welling 2014,
appendix B, for p = k = 0). The bracket is ``exp_excess`` plus a square: two terms that are never negative,
where 1 + l - e^l loses all its digits near l = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.gaussian_kl import schema
from fastvae.ops.layout import OPMATH
from fastvae.ops.library import kernel

SERIES = tuple(
    1.0 / torch.exp(torch.lgamma(torch.tensor(k + 3.0, dtype=torch.float64))).item() for k in range(14)
)


def exp_excess(x: Tensor) -> Tensor:
    """e^x - 1 - x, to the precision of the dtype for every x."""
    near = x.abs() < 0.5
    # The unused branch must stay finite: a NaN there would reach the gradient through `where`.
    y = torch.where(near, x, 0.0)
    series = torch.full_like(y, SERIES[-1])
    for coefficient in reversed(SERIES[:-1]):
        series = series * y + coefficient
    return torch.where(near, y * y * series, torch.expm1(x) - x)


def reduce(kl: Tensor, event_dims: int, reduction: str) -> Tensor:
    """Sum an element-wise KL as an operator-level reduction says."""
    if reduction == "none":
        return kl
    if reduction == "sample":
        return kl.sum(dim=tuple(range(kl.dim() - event_dims, kl.dim()))) if event_dims else kl
    return kl.sum()


def spread(grad_kl: Tensor, like: Tensor, event_dims: int, reduction: str) -> Tensor:
    """Give every element the gradient of the sum it went into."""
    if reduction == "sample":
        grad_kl = grad_kl.reshape((*grad_kl.shape, *(1,) * event_dims))
    return grad_kl.expand(like.shape)


@kernel(schema.gaussian_kl, "CompositeExplicitAutograd")
def gaussian_kl(mu: Tensor, logvar: Tensor, event_dims: int, reduction: str) -> Tensor:
    """KL from the standard normal, in nats."""
    opmath = OPMATH[mu.dtype]
    m, x = mu.to(opmath), logvar.to(opmath)
    return reduce(0.5 * (m * m + exp_excess(x)), event_dims, reduction)


@kernel(schema.gaussian_kl_backward, "CompositeExplicitAutograd")
def gaussian_kl_backward(
    grad_kl: Tensor, mu: Tensor, logvar: Tensor, event_dims: int, reduction: str
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mu and logvar: g mu and g (e^logvar - 1) / 2."""
    opmath = OPMATH[mu.dtype]
    g = spread(grad_kl, mu, event_dims, reduction)
    grad_mu = g * mu.to(opmath)
    grad_logvar = g * torch.expm1(logvar.to(opmath)) * 0.5
    return grad_mu.to(mu.dtype), grad_logvar.to(logvar.dtype)


@kernel(schema.gaussian_kl_prior, "CompositeExplicitAutograd")
def gaussian_kl_prior(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, event_dims: int, reduction: str
) -> Tensor:
    """KL from a Gaussian prior, in nats."""
    opmath = OPMATH[mu.dtype]
    difference = mu.to(opmath) - prior_mu.to(opmath)
    k = prior_logvar.to(opmath)
    # exp(-k / 2) first: its square would overflow half an exponent range earlier.
    scaled = difference * (k * -0.5).exp()
    return reduce(0.5 * (scaled * scaled + exp_excess(logvar.to(opmath) - k)), event_dims, reduction)


@kernel(schema.gaussian_kl_prior_backward, "CompositeExplicitAutograd")
def gaussian_kl_prior_backward(
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    event_dims: int,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to mu, logvar, prior_mu and prior_logvar."""
    opmath = OPMATH[mu.dtype]
    g = spread(grad_kl, mu, event_dims, reduction)
    k = prior_logvar.to(opmath)
    inverse = (k * -0.5).exp()
    scaled = (mu.to(opmath) - prior_mu.to(opmath)) * inverse
    growth = torch.expm1(logvar.to(opmath) - k)
    grad_mu = g * scaled * inverse
    grad_prior_logvar = g * (growth + scaled * scaled) * -0.5
    return (
        grad_mu.to(mu.dtype),
        (g * growth * 0.5).to(logvar.dtype),
        (-grad_mu).to(prior_mu.dtype),
        grad_prior_logvar.to(prior_logvar.dtype),
    )
