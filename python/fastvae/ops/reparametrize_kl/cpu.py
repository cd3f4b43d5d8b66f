"""The fused sample and KL on the CPU: the Rust kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.gaussian_kl.schema import empty_kl, empty_latent
from fastvae.ops.layout import KL_CODES, LatentMatrix, seed_value
from fastvae.ops.library import kernel, plain_kernel
from fastvae.ops.reparametrize_kl import schema

plain_kernel(schema.reparametrize_kl, _core.plain_reparametrize_kl)
plain_kernel(schema.reparametrize_kl_backward, _core.plain_reparametrize_kl_backward)


@kernel(schema.reparametrize_kl, "CPU")
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
    """Z and its KL from the standard normal, in one pass."""
    z, kl = empty_latent(mu), empty_kl(mu, event_dims, reduction)
    if not z.numel():
        return z, kl.zero_()
    matrix = LatentMatrix(z, event_dims)
    mu, mu_rows = matrix.strided("mu", mu)
    logvar, logvar_rows = matrix.strided("logvar", logvar)
    if free_bits:
        _core.free_bits_forward(
            matrix.code,
            matrix.rows,
            matrix.columns,
            mu_rows,
            logvar_rows,
            z.data_ptr(),
            (seed_value(seed), draw, row_offset),
            (free_bits, group_size),
            KL_CODES[reduction],
            kl.data_ptr(),
            torch.get_num_threads(),
        )
        return z, kl
    _core.latent_forward(
        matrix.code,
        matrix.rows,
        matrix.columns,
        mu_rows,
        logvar_rows,
        z.data_ptr(),
        (seed_value(seed), draw, row_offset),
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
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mu and logvar, in one pass, with the noise drawn again."""
    grad_mu, grad_logvar = empty_latent(mu), empty_latent(logvar)
    if grad_mu.numel():
        matrix = LatentMatrix(mu, event_dims)
        mu, mu_rows = matrix.strided("mu", mu)
        logvar, logvar_rows = matrix.strided("logvar", logvar)
        grad_z, grad_z_rows = matrix.strided("grad_z", grad_z)
        grad_kl, grad_kl_rows = matrix.strided_grad_kl(grad_kl, reduction)
        if free_bits:
            _core.free_bits_backward(
                matrix.code,
                matrix.rows,
                matrix.columns,
                mu_rows,
                logvar_rows,
                grad_z_rows,
                (seed_value(seed), draw, row_offset),
                (free_bits, group_size),
                KL_CODES[reduction],
                grad_kl_rows,
                grad_mu.data_ptr(),
                grad_logvar.data_ptr(),
                torch.get_num_threads(),
            )
            return grad_mu, grad_logvar
        _core.latent_backward(
            matrix.code,
            matrix.rows,
            matrix.columns,
            mu_rows,
            logvar_rows,
            grad_z_rows,
            (seed_value(seed), draw, row_offset),
            KL_CODES[reduction],
            grad_kl_rows,
            grad_mu.data_ptr(),
            grad_logvar.data_ptr(),
            torch.get_num_threads(),
        )
    return grad_mu, grad_logvar
