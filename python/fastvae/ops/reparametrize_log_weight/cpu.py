"""The samples with their log weights on the CPU: the Rust kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.gaussian_kl.schema import empty_latent
from fastvae.ops.layout import LatentMatrix, seed_value
from fastvae.ops.library import kernel, plain_kernel
from fastvae.ops.reparametrize_log_weight import schema
from fastvae.ops.reparametrize_log_weight.schema import empty_samples

plain_kernel(schema.reparametrize_log_weight, _core.plain_reparametrize_log_weight)
plain_kernel(schema.reparametrize_log_weight_backward, _core.plain_reparametrize_log_weight_backward)


@kernel(schema.reparametrize_log_weight, "CPU")
def reparametrize_log_weight(
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    draw: int,
    row_offset: int,
    event_dims: int,
    num_samples: int,
) -> tuple[Tensor, Tensor]:
    """The samples and their log weights, in one pass."""
    z, log_weight = empty_samples(mu, event_dims, num_samples)
    if not z.numel():
        return z, log_weight.zero_()
    matrix = LatentMatrix(mu, event_dims)
    mu, mu_rows = matrix.strided("mu", mu)
    logvar, logvar_rows = matrix.strided("logvar", logvar)
    _core.log_weight_forward(
        matrix.code,
        num_samples,
        matrix.rows,
        matrix.columns,
        mu_rows,
        logvar_rows,
        (seed_value(seed), draw, row_offset),
        z.data_ptr(),
        log_weight.data_ptr(),
        torch.get_num_threads(),
    )
    return z, log_weight


@kernel(schema.reparametrize_log_weight_backward, "CPU")
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
    """The gradients with respect to mu and logvar, in one pass, with the noise drawn again."""
    grad_mu, grad_logvar = empty_latent(mu), empty_latent(logvar)
    if grad_mu.numel():
        matrix = LatentMatrix(mu, event_dims)
        # The samples of z are rows too, all of one below those of the other.
        samples = LatentMatrix(mu.new_empty(()).expand(num_samples, *mu.shape), event_dims)
        mu, mu_rows = matrix.strided("mu", mu)
        logvar, logvar_rows = matrix.strided("logvar", logvar)
        grad_z_rows = grad_log_weight_rows = None
        if grad_z is not None:
            grad_z, grad_z_rows = samples.strided("grad_z", grad_z)
        if grad_log_weight is not None:
            grad_log_weight, grad_log_weight_rows = samples.strided_of_rows(
                "grad_log_weight", grad_log_weight
            )
        _core.log_weight_backward(
            matrix.code,
            num_samples,
            matrix.rows,
            matrix.columns,
            mu_rows,
            logvar_rows,
            (seed_value(seed), draw, row_offset),
            grad_z_rows,
            grad_log_weight_rows,
            grad_mu.data_ptr(),
            grad_logvar.data_ptr(),
            torch.get_num_threads(),
        )
    return grad_mu, grad_logvar
