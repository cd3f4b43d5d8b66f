"""The reparametrization on the CPU: the Rust kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.layout import DTYPE_CODES, rows_columns, strided
from fastvae.ops.library import kernel
from fastvae.ops.reparametrize import schema

ABSENT = (0, 0)


@kernel(schema.reparametrize, "CPU")
def reparametrize(
    mu: Tensor, logvar: Tensor, seed: Tensor, draw: int, row_offset: int, event_dims: int
) -> Tensor:
    """Z, in one pass."""
    z = torch.empty(mu.shape, dtype=mu.dtype)
    if z.numel():
        # The tensors are bound to names so that their memory outlives the call.
        mu, mu_rows = strided(mu, event_dims)
        logvar, logvar_rows = strided(logvar, event_dims)
        _core.latent_forward(
            DTYPE_CODES[z.dtype],
            *rows_columns(z.shape, event_dims),
            mu_rows,
            logvar_rows,
            z.data_ptr(),
            (int(seed.item()), draw, row_offset),
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
    grad_logvar = torch.empty(logvar.shape, dtype=logvar.dtype)
    if grad_logvar.numel():
        grad_z, grad_z_rows = strided(grad_z, event_dims)
        logvar, logvar_rows = strided(logvar, event_dims)
        _core.latent_backward(
            DTYPE_CODES[logvar.dtype],
            *rows_columns(logvar.shape, event_dims),
            ABSENT,
            logvar_rows,
            grad_z_rows,
            (int(seed.item()), draw, row_offset),
            0,
            ABSENT,
            0,
            grad_logvar.data_ptr(),
            torch.get_num_threads(),
        )
    return grad_logvar
