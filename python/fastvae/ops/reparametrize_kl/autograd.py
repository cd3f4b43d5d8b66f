"""Reverse mode for the fused sample and KL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvae.ops.gaussian_kl import reference as gaussian_kl_reference
from fastvae.ops.gaussian_kl import schema as gaussian_kl_schema
from fastvae.ops.library import autograd_kernel, raw
from fastvae.ops.reparametrize import reference as reparametrize_reference
from fastvae.ops.reparametrize import schema as reparametrize_schema
from fastvae.ops.reparametrize_kl import reference, schema


class ReparametrizeKL(torch.autograd.Function):
    """Saves mu, logvar and the seed."""

    @staticmethod
    def forward(
        ctx: Any,
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
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mu, logvar, seed)
        ctx.arguments = (draw, row_offset, event_dims, reduction, free_bits, group_size)
        return raw(schema.reparametrize_kl, mu, logvar, seed, *ctx.arguments)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor | None, grad_kl: Tensor | None) -> tuple[Tensor | None, ...]:
        mu, logvar, seed = ctx.saved_tensors
        draw, row_offset, event_dims, *reduce = ctx.arguments
        recorded = torch.is_grad_enabled()
        # An output that was not used has no gradient: a zero instead would turn an infinite sigma into NaN.
        if grad_kl is None:
            if grad_z is None:
                return (None,) * 9
            only_z = (grad_z, logvar, seed, draw, row_offset, event_dims)
            grad_mu = grad_z
            if recorded:
                grad_logvar = reparametrize_reference.reparametrize_backward(*only_z)
            else:
                grad_logvar = raw(reparametrize_schema.reparametrize_backward, *only_z)
        elif grad_z is None:
            only_kl = (grad_kl, mu, logvar, event_dims, *reduce)
            if recorded:
                grad_mu, grad_logvar = gaussian_kl_reference.gaussian_kl_backward(*only_kl)
            else:
                grad_mu, grad_logvar = raw(gaussian_kl_schema.gaussian_kl_backward, *only_kl)
        else:
            both = (grad_z, grad_kl, mu, logvar, seed, *ctx.arguments)
            if recorded:
                grad_mu, grad_logvar = reference.reparametrize_kl_backward(*both)
            else:
                grad_mu, grad_logvar = raw(schema.reparametrize_kl_backward, *both)
        return grad_mu, grad_logvar, *(None,) * 7


autograd_kernel(schema.reparametrize_kl, ReparametrizeKL, reference.reparametrize_kl)
