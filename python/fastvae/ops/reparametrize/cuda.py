"""The reparametrization on CUDA: the Triton kernels."""

from __future__ import annotations

from torch import Tensor

from fastvae.ops.cuda import cuda_kernel
from fastvae.ops.gaussian_kl.cuda import Draw, backward, forward
from fastvae.ops.reparametrize import reference, schema


@cuda_kernel(schema.reparametrize, reference.reparametrize)
def reparametrize(
    mu: Tensor, logvar: Tensor, seed: Tensor, draw: int, row_offset: int, event_dims: int
) -> Tensor:
    """Z, in one pass."""
    return forward(mu, logvar, event_dims, noise=Draw(seed, draw, row_offset))[0]


@cuda_kernel(schema.reparametrize_backward, reference.reparametrize_backward)
def reparametrize_backward(
    grad_z: Tensor, logvar: Tensor, seed: Tensor, draw: int, row_offset: int, event_dims: int
) -> Tensor:
    """The gradient with respect to logvar, in one pass, with the noise drawn again."""
    return backward(logvar, event_dims, grad_z=grad_z, noise=Draw(seed, draw, row_offset))[1]
