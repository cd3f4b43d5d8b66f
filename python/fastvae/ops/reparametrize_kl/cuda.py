"""The fused sample and KL on CUDA: the Triton kernels."""

from __future__ import annotations

from torch import Tensor

from fastvae.ops.cuda import cuda_kernel
from fastvae.ops.gaussian_kl.cuda import Draw, backward, forward
from fastvae.ops.reparametrize_kl import reference, schema


@cuda_kernel(schema.reparametrize_kl, reference.reparametrize_kl)
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
    return forward(
        mu,
        logvar,
        event_dims,
        noise=Draw(seed, draw, row_offset),
        reduction=reduction,
        free_bits=free_bits,
        group_size=group_size,
    )


@cuda_kernel(schema.reparametrize_kl_backward, reference.reparametrize_kl_backward)
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
    return backward(
        logvar,
        event_dims,
        mu=mu,
        grad_z=grad_z,
        noise=Draw(seed, draw, row_offset),
        grad_kl=grad_kl,
        reduction=reduction,
        free_bits=free_bits,
        group_size=group_size,
    )
