"""The Gaussian KL in plain torch operations: it defines what is correct.

KL(N(m, e^l) || N(p, e^k)) = 1/2 (e^(l - k) - 1 - (l - k) + (m - p)^2 e^-k) in nats (Kingma and Welling 2014,
appendix B, for p = k = 0). The bracket is ``exp_excess`` plus a square: two terms that are never negative,
where 1 + l - e^l loses all its digits near l = 0.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvae.ops.gaussian_kl import schema
from fastvae.ops.layout import OPMATH, dense
from fastvae.ops.library import kernel

FINITE = 80
"""A difference of log-variances whose exponential is a number in every dtype."""

SERIES = tuple(1.0 / math.factorial(k + 2) for k in range(14))
"""e^x - 1 - x = x^2 (1/2! + x/3! + x^2/4! + ...)."""


def expm1(x: Tensor) -> Tensor:
    """e^x - 1 with a derivative of e^x: that of ``torch.expm1`` is its result plus 1, 0 below -17."""
    low = x < -1.0
    # The unused branches must stay finite: a NaN there would reach the gradient through `where`.
    below = torch.where(low, x, -1.0).exp() - 1.0
    return torch.where(low, below, torch.where(low, 0.0, x).expm1())


def exp_excess(x: Tensor) -> Tensor:
    """e^x - 1 - x, to the precision of the dtype for every x."""
    near = x.abs() < 0.5
    # The unused branch must stay finite: a NaN there would reach the gradient through `where`.
    y = torch.where(near, x, 0.0)
    series = torch.full_like(y, SERIES[-1])
    for coefficient in reversed(SERIES[:-1]):
        series = series * y + coefficient
    return torch.where(near, y * y * series, expm1(x) - x)


def exact_difference(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``a - b`` rounded, and what the rounding left out (Knuth's two-sum), where the KL is finite.

    A difference of large logarithms that is off by half an ulp would cost the KL more than its 1e-6.
    """
    difference = a - b
    with torch.no_grad():
        back = difference - a
        error = (a - (difference - back)) - (b + back)
    return difference, torch.where(difference.abs() < FINITE, error, 0.0)


def correction_point(difference: Tensor) -> Tensor:
    """Where the derivative that an error of the difference is multiplied with is taken.

    An exponential of 88 and more overflows float32, and infinity times an error of 0 would be NaN.
    """
    return torch.where(difference.abs() < FINITE, difference, 0.0)


def reduce(kl: Tensor, event_dims: int, reduction: str) -> Tensor:
    """Sum an element-wise KL as an operator-level reduction says."""
    if reduction == "sample" and event_dims:
        kl = kl.sum(dim=tuple(range(kl.dim() - event_dims, kl.dim())))
    if reduction == "dimension" and kl.dim() > event_dims:
        kl = kl.sum(dim=tuple(range(kl.dim() - event_dims)))
    return kl.sum() if reduction == "sum" else kl.contiguous()


def spread(grad_kl: Tensor, like: Tensor, event_dims: int, reduction: str) -> Tensor:
    """Give every element the gradient of the sum it went into."""
    grad_kl = dense(grad_kl)
    if reduction == "sample":
        grad_kl = grad_kl.reshape((*grad_kl.shape, *(1,) * event_dims))
    return grad_kl.expand(like.shape)


def group_sums(kl: Tensor, event_dims: int, group_size: int) -> Tensor:
    """The KL of each group of neighbouring dimensions: ``(*lead, groups)``."""
    lead = kl.shape[: kl.dim() - event_dims]
    columns = math.prod(kl.shape[kl.dim() - event_dims :])
    return kl.reshape((*lead, columns // group_size, group_size)).sum(-1)


def standard_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """KL from the standard normal of each element, in the dtype of the arithmetic."""
    opmath = OPMATH[mu.dtype]
    m, x = mu.to(opmath), logvar.to(opmath)
    return 0.5 * (m * m + exp_excess(x))


@kernel(schema.gaussian_kl, "CompositeExplicitAutograd")
def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> Tensor:
    """KL from the standard normal, in nats; of each group at least its free bits."""
    kl = standard_kl(mu, logvar)
    if not free_bits:
        return reduce(kl, event_dims, reduction)
    groups = group_sums(kl, event_dims, group_size)
    # Not `clamp`, whose gradient is 1 at the floor itself; NaN stays.
    return reduce(torch.where(groups <= free_bits, free_bits, groups), 1, reduction)


def without_free(
    grad: Tensor, mu: Tensor, logvar: Tensor, event_dims: int, free_bits: float, group_size: int
) -> Tensor:
    """The gradient of each element's KL, and 0, whatever it was, where the group is free."""
    if not free_bits:
        return grad
    with torch.no_grad():
        groups = group_sums(standard_kl(mu, logvar), event_dims, group_size)
        free = (groups <= free_bits).unsqueeze(-1).expand(*groups.shape, group_size).reshape(mu.shape)
    return torch.where(free, 0.0, grad)


@kernel(schema.gaussian_kl_backward, "CompositeExplicitAutograd")
def gaussian_kl_backward(
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mu and logvar: g mu and g (e^logvar - 1) / 2."""
    opmath = OPMATH[mu.dtype]
    g = spread(grad_kl, mu, event_dims, reduction)
    g = without_free(g, mu, logvar, event_dims, free_bits, group_size)
    grad_mu = g * mu.to(opmath)
    grad_logvar = g * expm1(logvar.to(opmath)) * 0.5
    return grad_mu.to(mu.dtype).contiguous(), grad_logvar.to(logvar.dtype).contiguous()


@kernel(schema.gaussian_kl_prior, "CompositeExplicitAutograd")
def gaussian_kl_prior(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, event_dims: int, reduction: str
) -> Tensor:
    """KL from a Gaussian prior, in nats."""
    opmath = OPMATH[mu.dtype]
    k = prior_logvar.to(opmath)
    # exp(-k / 2) first: its square would overflow half an exponent range earlier.
    scaled = (mu.to(opmath) - prior_mu.to(opmath)) * (k * -0.5).exp()
    d, error = exact_difference(logvar.to(opmath), k)
    excess = exp_excess(d) + error * expm1(correction_point(d))
    return reduce(0.5 * (scaled * scaled + excess), event_dims, reduction)


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
    d, error = exact_difference(logvar.to(opmath), k)
    growth = expm1(d) + error * torch.exp(correction_point(d))
    grad_mu = g * scaled * inverse
    grad_prior_logvar = g * (growth + scaled * scaled) * -0.5
    return (
        grad_mu.to(mu.dtype).contiguous(),
        (g * growth * 0.5).to(logvar.dtype).contiguous(),
        (-grad_mu).to(prior_mu.dtype).contiguous(),
        grad_prior_logvar.to(prior_logvar.dtype).contiguous(),
    )
