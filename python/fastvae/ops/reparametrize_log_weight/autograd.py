"""Reverse mode for the samples with their log weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvae.ops.library import autograd_kernel, raw
from fastvae.ops.reparametrize_log_weight import reference, schema


class ReparametrizeLogWeight(torch.autograd.Function):
    """Saves mu, logvar and the seed; no sample, whatever their number."""

    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        logvar: Tensor,
        seed: Tensor,
        draw: int,
        row_offset: int,
        event_dims: int,
        num_samples: int,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(mu, logvar, seed)
        ctx.arguments = (draw, row_offset, event_dims, num_samples)
        return raw(schema.reparametrize_log_weight, mu, logvar, seed, *ctx.arguments)

    @staticmethod
    def backward(
        ctx: Any, grad_z: Tensor | None, grad_log_weight: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        # An output that was not used has no gradient: a zero instead would turn an infinite sigma into NaN.
        if grad_z is None and grad_log_weight is None:
            return (None,) * 7
        arguments = (grad_z, grad_log_weight, *ctx.saved_tensors, *ctx.arguments)
        if torch.is_grad_enabled():
            grad_mu, grad_logvar = reference.reparametrize_log_weight_backward(*arguments)
        else:
            grad_mu, grad_logvar = raw(schema.reparametrize_log_weight_backward, *arguments)
        return grad_mu, grad_logvar, None, None, None, None, None


autograd_kernel(schema.reparametrize_log_weight, ReparametrizeLogWeight, reference.reparametrize_log_weight)
