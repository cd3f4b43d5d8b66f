"""Reverse mode for the Gaussian KL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastvae.ops.gaussian_kl import reference, schema
from fastvae.ops.library import autograd_kernel, raw


class GaussianKL(torch.autograd.Function):
    """KL from the standard normal, with free bits or without; saves mu and logvar."""

    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        logvar: Tensor,
        event_dims: int,
        reduction: str,
        free_bits: float = 0.0,
        group_size: int = 1,
    ) -> Tensor:
        ctx.save_for_backward(mu, logvar)
        ctx.reduce = (event_dims, reduction, free_bits, group_size)
        return raw(schema.gaussian_kl, mu, logvar, *ctx.reduce)

    @staticmethod
    def backward(ctx: Any, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (grad_kl, *ctx.saved_tensors, *ctx.reduce)
        if torch.is_grad_enabled():
            grad_mu, grad_logvar = reference.gaussian_kl_backward(*arguments)
        else:
            grad_mu, grad_logvar = raw(schema.gaussian_kl_backward, *arguments)
        return grad_mu, grad_logvar, None, None, None, None


class GaussianKLPrior(torch.autograd.Function):
    """KL from a Gaussian prior; saves the four parameters."""

    @staticmethod
    def forward(
        ctx: Any,
        mu: Tensor,
        logvar: Tensor,
        prior_mu: Tensor,
        prior_logvar: Tensor,
        event_dims: int,
        reduction: str,
    ) -> Tensor:
        ctx.save_for_backward(mu, logvar, prior_mu, prior_logvar)
        ctx.reduce = (event_dims, reduction)
        return raw(schema.gaussian_kl_prior, mu, logvar, prior_mu, prior_logvar, event_dims, reduction)

    @staticmethod
    def backward(ctx: Any, grad_kl: Tensor) -> tuple[Tensor | None, ...]:
        arguments = (grad_kl, *ctx.saved_tensors, *ctx.reduce)
        if torch.is_grad_enabled():
            grads = reference.gaussian_kl_prior_backward(*arguments)
        else:
            grads = raw(schema.gaussian_kl_prior_backward, *arguments)
        return (*grads, None, None)


autograd_kernel(schema.gaussian_kl, GaussianKL, reference.gaussian_kl)
autograd_kernel(schema.gaussian_kl_prior, GaussianKLPrior, reference.gaussian_kl_prior)
