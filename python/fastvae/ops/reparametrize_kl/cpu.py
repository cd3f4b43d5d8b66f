"""The fused sample and KL on the CPU: the Rust kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.gaussian_kl.schema import empty_kl, empty_latent
from fastvae.ops.layout import DTYPE_CODES, KL_CODES, rows_columns, strided, strided_grad_kl
from fastvae.ops.library import kernel
from fastvae.ops.reparametrize_kl import schema


@kernel(schema.reparametrize_kl, "CPU")
def reparametrize_kl(
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    draw: int,
    row_offset: int,
    event_dims: int,
    reduction: str,
) -> tuple[Tensor, Tensor]:
    """Z and its KL from the standard normal, in one pass."""
    z, kl = empty_latent(mu), empty_kl(mu, event_dims, reduction)
    if not z.numel():
        return z, kl.zero_()
    rows, columns = rows_columns(z.shape, event_dims)
    mu, mu_rows = strided(mu, event_dims)
    logvar, logvar_rows = strided(logvar, event_dims)
    _core.latent_forward(
        DTYPE_CODES[z.dtype],
        rows,
        columns,
        mu_rows,
        logvar_rows,
        z.data_ptr(),
        (int(seed.item()), draw, row_offset),
        KL_CODES[reduction],
        kl.data_ptr(),
        torch.get_num_threads(),
    )
    return z, kl


@kernel(schema.reparametrize_kl_backward, "CPU")
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
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mu and logvar, in one pass, with the noise drawn again."""
    grad_mu, grad_logvar = empty_latent(mu), empty_latent(logvar)
    if grad_mu.numel():
        rows, columns = rows_columns(mu.shape, event_dims)
        mu, mu_rows = strided(mu, event_dims)
        logvar, logvar_rows = strided(logvar, event_dims)
        grad_z, grad_z_rows = strided(grad_z, event_dims)
        grad_kl, grad_kl_rows = strided_grad_kl(grad_kl, event_dims, reduction)
        _core.latent_backward(
            DTYPE_CODES[mu.dtype],
            rows,
            columns,
            mu_rows,
            logvar_rows,
            grad_z_rows,
            (int(seed.item()), draw, row_offset),
            KL_CODES[reduction],
            grad_kl_rows,
            grad_mu.data_ptr(),
            grad_logvar.data_ptr(),
            torch.get_num_threads(),
        )
    return grad_mu, grad_logvar
