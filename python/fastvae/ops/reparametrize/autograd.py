"""Reverse mode for the reparametrization: the noise is drawn again in backward, never stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvae.ops.library import autograd_kernel, raw
from fastvae.ops.reparametrize import reference, schema


class Reparametrize(torch.autograd.Function):
    """Saves logvar and the seed."""

    @staticmethod
    def forward(
        ctx: Any, mu: Tensor, logvar: Tensor, seed: Tensor, draw: int, row_offset: int, event_dims: int
    ) -> Tensor:
        ctx.save_for_backward(logvar, seed)
        ctx.noise = (draw, row_offset, event_dims)
        return raw(schema.reparametrize, mu, logvar, seed, draw, row_offset, event_dims)

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor) -> tuple[Tensor | None, ...]:
        logvar, seed = ctx.saved_tensors
        grad_logvar = None
        if ctx.needs_input_grad[1]:
            arguments = (grad_z, logvar, seed, *ctx.noise)
            if torch.is_grad_enabled():
                grad_logvar = reference.reparametrize_backward(*arguments)
            else:
                grad_logvar = raw(schema.reparametrize_backward, *arguments)
        return grad_z, grad_logvar, None, None, None, None


autograd_kernel(schema.reparametrize, Reparametrize, reference.reparametrize)
