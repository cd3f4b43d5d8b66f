"""Reverse mode for the Gaussian log-density."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvae.ops.gaussian_log_prob import reference, schema
from fastvae.ops.library import autograd_kernel, raw


class GaussianLogProb(torch.autograd.Function):
    """Log-density under Gaussian variables; saves mean, logvar and target."""

    @staticmethod
    def forward(
        ctx: Any, mean: Tensor, logvar: Tensor, target: Tensor, target_max: int, event_dims: int
    ) -> Tensor:
        ctx.save_for_backward(mean, logvar, target)
        ctx.reading = (target_max, event_dims)
        return raw(schema.gaussian_log_prob, mean, logvar, target, target_max, event_dims)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        mean, logvar, target = ctx.saved_tensors
        of_mean = of_logvar = of_target = None
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[1]:
            arguments = (grad, mean, logvar, target, *ctx.reading)
            if torch.is_grad_enabled():
                of_mean, of_logvar = reference.gaussian_log_prob_backward(*arguments)
            else:
                of_mean, of_logvar = raw(schema.gaussian_log_prob_backward, *arguments)
        if ctx.needs_input_grad[2]:
            of_target = reference.target_grad(grad, mean, logvar, target, ctx.reading[1])
        return of_mean, of_logvar, of_target, None, None


autograd_kernel(schema.gaussian_log_prob, GaussianLogProb, reference.gaussian_log_prob)
