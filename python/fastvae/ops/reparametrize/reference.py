"""The reparametrization in plain torch operations: it defines what is correct."""

from __future__ import annotations

from torch import Tensor

from fastvae.ops.layout import OPMATH, dense, rows_columns
from fastvae.ops.library import kernel
from fastvae.ops.noise import schema as noise_schema
from fastvae.ops.reparametrize import schema


def noise_like(tensor: Tensor, seed: Tensor, draw: int, row_offset: int, event_dims: int) -> Tensor:
    """The contract's normals for a latent of this shape, in the dtype of its arithmetic."""
    rows, columns = rows_columns(tensor.shape, event_dims)
    eps = noise_schema.normal(rows, columns, seed, draw, row_offset, None)
    return eps.reshape(tensor.shape).to(OPMATH[tensor.dtype])


@kernel(schema.reparametrize, "CompositeExplicitAutograd")
def reparametrize(
    mu: Tensor, logvar: Tensor, seed: Tensor, draw: int, row_offset: int, event_dims: int
) -> Tensor:
    """Z = mu + exp(logvar / 2) * eps (Kingma and Welling 2014, equation 10)."""
    opmath = OPMATH[mu.dtype]
    eps = noise_like(mu, seed, draw, row_offset, event_dims)
    z = mu.to(opmath) + (logvar.to(opmath) * 0.5).exp() * eps
    return z.to(mu.dtype).contiguous()


@kernel(schema.reparametrize_backward, "CompositeExplicitAutograd")
def reparametrize_backward(
    grad_z: Tensor, logvar: Tensor, seed: Tensor, draw: int, row_offset: int, event_dims: int
) -> Tensor:
    """The gradient that reaches logvar: grad_z * sigma * eps / 2."""
    opmath = OPMATH[logvar.dtype]
    eps = noise_like(logvar, seed, draw, row_offset, event_dims)
    gradient = dense(grad_z).to(opmath) * (logvar.to(opmath) * 0.5).exp() * eps * 0.5
    return gradient.to(logvar.dtype).contiguous()
