"""Reverse mode for the Bernoulli log-probability."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvae.ops.bernoulli_log_prob import reference, schema
from fastvae.ops.library import autograd_kernel, raw


class BernoulliLogProb(torch.autograd.Function):
    """Log-probability under Bernoulli variables; saves logits and target."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Tensor, target_max: int, event_dims: int) -> Tensor:
        ctx.save_for_backward(logits, target)
        ctx.reading = (target_max, event_dims)
        return raw(schema.bernoulli_log_prob, logits, target, target_max, event_dims)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, target = ctx.saved_tensors
        of_logits = of_target = None
        if ctx.needs_input_grad[0]:
            arguments = (grad, logits, target, *ctx.reading)
            if torch.is_grad_enabled():
                of_logits = reference.bernoulli_log_prob_backward(*arguments)
            else:
                of_logits = raw(schema.bernoulli_log_prob_backward, *arguments)
        if ctx.needs_input_grad[1]:
            of_target = reference.target_grad(grad, logits, target, ctx.reading[1])
        return of_logits, of_target, None, None


autograd_kernel(schema.bernoulli_log_prob, BernoulliLogProb, reference.bernoulli_log_prob)
