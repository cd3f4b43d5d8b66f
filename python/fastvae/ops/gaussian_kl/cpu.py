"""The Gaussian KL on the CPU: the Rust kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.gaussian_kl import schema
from fastvae.ops.gaussian_kl.schema import empty_kl, empty_latent
from fastvae.ops.layout import ABSENT, KL_CODES, LatentMatrix
from fastvae.ops.library import kernel, plain_kernel

plain_kernel(schema.gaussian_kl, _core.plain_gaussian_kl)
plain_kernel(schema.gaussian_kl_backward, _core.plain_gaussian_kl_backward)


@kernel(schema.gaussian_kl, "CPU")
def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> Tensor:
    """KL from the standard normal, in one pass."""
    if not mu.numel():
        return empty_kl(mu, event_dims, reduction).zero_()
    kl = empty_kl(mu, event_dims, reduction)
    matrix = LatentMatrix(mu, event_dims)
    mu, mu_rows = matrix.strided("mu", mu)
    logvar, logvar_rows = matrix.strided("logvar", logvar)
    if free_bits:
        _core.free_bits_forward(
            matrix.code,
            matrix.rows,
            matrix.columns,
            mu_rows,
            logvar_rows,
            0,
            None,
            (free_bits, group_size),
            KL_CODES[reduction],
            kl.data_ptr(),
            torch.get_num_threads(),
        )
        return kl
    _core.latent_forward(
        matrix.code,
        matrix.rows,
        matrix.columns,
        mu_rows,
        logvar_rows,
        0,
        None,
        KL_CODES[reduction],
        kl.data_ptr(),
        torch.get_num_threads(),
    )
    return kl


@kernel(schema.gaussian_kl_backward, "CPU")
def gaussian_kl_backward(
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mu and logvar, in one pass."""
    grad_mu, grad_logvar = empty_latent(mu), empty_latent(logvar)
    if grad_mu.numel():
        matrix = LatentMatrix(mu, event_dims)
        mu, mu_rows = matrix.strided("mu", mu)
        logvar, logvar_rows = matrix.strided("logvar", logvar)
        grad_kl, grad_kl_rows = matrix.strided_grad_kl(grad_kl, reduction)
        if free_bits:
            _core.free_bits_backward(
                matrix.code,
                matrix.rows,
                matrix.columns,
                mu_rows,
                logvar_rows,
                ABSENT,
                None,
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
            ABSENT,
            None,
            KL_CODES[reduction],
            grad_kl_rows,
            grad_mu.data_ptr(),
            grad_logvar.data_ptr(),
            torch.get_num_threads(),
        )
    return grad_mu, grad_logvar


@kernel(schema.gaussian_kl_prior, "CPU")
def gaussian_kl_prior(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, event_dims: int, reduction: str
) -> Tensor:
    """KL from a Gaussian prior, in one pass."""
    if not mu.numel():
        return empty_kl(mu, event_dims, reduction).zero_()
    kl = empty_kl(mu, event_dims, reduction)
    matrix = LatentMatrix(mu, event_dims)
    mu, mu_rows = matrix.strided("mu", mu)
    logvar, logvar_rows = matrix.strided("logvar", logvar)
    prior_mu, prior_mu_rows = matrix.strided("prior_mu", prior_mu)
    prior_logvar, prior_logvar_rows = matrix.strided("prior_logvar", prior_logvar)
    _core.prior_forward(
        matrix.code,
        matrix.rows,
        matrix.columns,
        (mu_rows, logvar_rows, prior_mu_rows, prior_logvar_rows),
        KL_CODES[reduction],
        kl.data_ptr(),
        torch.get_num_threads(),
    )
    return kl


@kernel(schema.gaussian_kl_prior_backward, "CPU")
def gaussian_kl_prior_backward(
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    event_dims: int,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to the four parameters, in one pass."""
    grads = (empty_latent(mu), empty_latent(logvar), empty_latent(prior_mu), empty_latent(prior_logvar))
    if mu.numel():
        matrix = LatentMatrix(mu, event_dims)
        mu, mu_rows = matrix.strided("mu", mu)
        logvar, logvar_rows = matrix.strided("logvar", logvar)
        prior_mu, prior_mu_rows = matrix.strided("prior_mu", prior_mu)
        prior_logvar, prior_logvar_rows = matrix.strided("prior_logvar", prior_logvar)
        grad_kl, grad_kl_rows = matrix.strided_grad_kl(grad_kl, reduction)
        _core.prior_backward(
            matrix.code,
            matrix.rows,
            matrix.columns,
            (mu_rows, logvar_rows, prior_mu_rows, prior_logvar_rows),
            KL_CODES[reduction],
            grad_kl_rows,
            (grads[0].data_ptr(), grads[1].data_ptr(), grads[2].data_ptr(), grads[3].data_ptr()),
            torch.get_num_threads(),
        )
    return grads
