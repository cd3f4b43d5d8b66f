"""Sample and KL together: by definition, the two references."""

from __future__ import annotations

from torch import Tensor

from fastvae.ops.gaussian_kl.reference import expm1, gaussian_kl, spread, without_free
from fastvae.ops.layout import OPMATH, dense
from fastvae.ops.library import kernel
from fastvae.ops.reparametrize.reference import noise_like, reparametrize
from fastvae.ops.reparametrize_kl import schema


@kernel(schema.reparametrize_kl, "CompositeExplicitAutograd")
def reparametrize_kl(
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    draw: int,
    row_offset: int,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """The sample z and its KL from the standard normal in nats."""
    z = reparametrize(mu, logvar, seed, draw, row_offset, event_dims)
    return z, gaussian_kl(mu, logvar, event_dims, reduction, free_bits, group_size)


@kernel(schema.reparametrize_kl_backward, "CompositeExplicitAutograd")
def reparametrize_kl_backward(
    grad_z: Tensor,
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    draw: int,
    row_offset: int,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mu and logvar, each rounded once."""
    opmath = OPMATH[mu.dtype]
    g_z, g_kl = dense(grad_z).to(opmath), spread(grad_kl, mu, event_dims, reduction)
    g_kl = without_free(g_kl, mu, logvar, event_dims, free_bits, group_size)
    eps = noise_like(mu, seed, draw, row_offset, event_dims)
    half = logvar.to(opmath) * 0.5
    grad_mu = g_z + g_kl * mu.to(opmath)
    grad_logvar = 0.5 * (g_z * half.exp() * eps + g_kl * expm1(half * 2.0))
    return grad_mu.to(mu.dtype).contiguous(), grad_logvar.to(logvar.dtype).contiguous()
