"""The reparametrization on the CPU: the Rust kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.layout import ABSENT, LatentMatrix, seed_value
from fastvae.ops.library import kernel, plain_kernel
from fastvae.ops.reparametrize import schema

plain_kernel(schema.reparametrize, _core.plain_reparametrize)
plain_kernel(schema.reparametrize_backward, _core.plain_reparametrize_backward)


@kernel(schema.reparametrize, "CPU")
def reparametrize(
    mu: Tensor, logvar: Tensor, seed: Tensor, draw: int, row_offset: int, event_dims: int
) -> Tensor:
    """Z, in one pass."""
    z = torch.empty(mu.shape, dtype=mu.dtype, device=mu.device)
    if z.numel():
        matrix = LatentMatrix(mu, event_dims)
        # The tensors are bound to names so that their memory outlives the call.
        mu, mu_rows = matrix.strided("mu", mu)
        logvar, logvar_rows = matrix.strided("logvar", logvar)
        _core.latent_forward(
            matrix.code,
            matrix.rows,
            matrix.columns,
            mu_rows,
            logvar_rows,
            z.data_ptr(),
            (seed_value(seed), draw, row_offset),
            0,
            0,
            torch.get_num_threads(),
        )
    return z


@kernel(schema.reparametrize_backward, "CPU")
def reparametrize_backward(
    grad_z: Tensor, logvar: Tensor, seed: Tensor, draw: int, row_offset: int, event_dims: int
) -> Tensor:
    """The gradient with respect to logvar, in one pass, with the noise drawn again."""
    grad_logvar = torch.empty(logvar.shape, dtype=logvar.dtype, device=logvar.device)
    if grad_logvar.numel():
        matrix = LatentMatrix(logvar, event_dims)
        grad_z, grad_z_rows = matrix.strided("grad_z", grad_z)
        logvar, logvar_rows = matrix.strided("logvar", logvar)
        _core.latent_backward(
            matrix.code,
            matrix.rows,
            matrix.columns,
            ABSENT,
            logvar_rows,
            grad_z_rows,
            (seed_value(seed), draw, row_offset),
            0,
            ABSENT,
            0,
            grad_logvar.data_ptr(),
            torch.get_num_threads(),
        )
    return grad_logvar
