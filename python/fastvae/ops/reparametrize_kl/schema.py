"""Signatures and fake kernels of the fused sample and KL."""

from __future__ import annotations

from torch import Tensor

from fastvae.ops.gaussian_kl.schema import FREE_BITS, empty_kl, empty_latent
from fastvae.ops.library import define, fake
from fastvae.ops.reparametrize.schema import NOISE

reparametrize_kl = define(
    f"reparametrize_kl(Tensor mu, Tensor logvar, {NOISE}, str reduction, {FREE_BITS}) -> (Tensor, Tensor)"
)
reparametrize_kl_backward = define(
    "reparametrize_kl_backward(Tensor grad_z, Tensor grad_kl, Tensor mu, Tensor logvar,"
    f" {NOISE}, str reduction, {FREE_BITS}) -> (Tensor, Tensor)"
)


@fake(reparametrize_kl)
def _(
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
    del logvar, seed, draw, row_offset, free_bits, group_size
    return empty_latent(mu), empty_kl(mu, event_dims, reduction)


@fake(reparametrize_kl_backward)
def _(
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
    del grad_z, grad_kl, seed, draw, row_offset, event_dims, reduction, free_bits, group_size
    return empty_latent(mu), empty_latent(logvar)
