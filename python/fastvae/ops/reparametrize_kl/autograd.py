"""Reverse mode for the fused sample and KL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvae.ops.library import autograd_kernel
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
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mu, logvar, seed)
        ctx.arguments = (draw, row_offset, event_dims, reduction)
        return schema.reparametrize_kl(mu, logvar, seed, draw, row_offset, event_dims, reduction)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        backward = (
            reference.reparametrize_kl_backward
            if torch.is_grad_enabled()
            else schema.reparametrize_kl_backward
        )
        grads = backward(grad_z, grad_kl, *ctx.saved_tensors, *ctx.arguments)
        return (*grads, None, None, None, None, None)


autograd_kernel(schema.reparametrize_kl, ReparametrizeKL)
