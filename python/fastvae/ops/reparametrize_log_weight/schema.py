"""Signatures and fake kernels of the samples with their log weights."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.gaussian_kl.schema import empty_latent
from fastvae.ops.layout import OPMATH, reduced_shape
from fastvae.ops.library import define, fake
from fastvae.ops.reparametrize.schema import NOISE

reparametrize_log_weight = define(
    f"reparametrize_log_weight(Tensor mu, Tensor logvar, {NOISE}, SymInt num_samples) -> (Tensor, Tensor)"
)
reparametrize_log_weight_backward = define(
    "reparametrize_log_weight_backward(Tensor? grad_z, Tensor? grad_log_weight, Tensor mu, Tensor logvar,"
    f" {NOISE}, SymInt num_samples) -> (Tensor, Tensor)"
)


def empty_samples(mu: Tensor, event_dims: int, num_samples: int) -> tuple[Tensor, Tensor]:
    """Uninitialised samples and log weights: (K, *mu.shape), and one float per latent of each sample."""
    lead = reduced_shape(mu.shape, event_dims, "sample")
    z = torch.empty((num_samples, *mu.shape), dtype=mu.dtype, device=mu.device)
    log_weight = torch.empty((num_samples, *lead), dtype=OPMATH[mu.dtype], device=mu.device)
    return z, log_weight


@fake(reparametrize_log_weight)
def _(
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    draw: int,
    row_offset: int,
    event_dims: int,
    num_samples: int,
) -> tuple[Tensor, Tensor]:
    del logvar, seed, draw, row_offset
    return empty_samples(mu, event_dims, num_samples)


@fake(reparametrize_log_weight_backward)
def _(
    grad_z: Tensor | None,
    grad_log_weight: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    draw: int,
    row_offset: int,
    event_dims: int,
    num_samples: int,
) -> tuple[Tensor, Tensor]:
    del grad_z, grad_log_weight, seed, draw, row_offset, event_dims, num_samples
    return empty_latent(mu), empty_latent(logvar)
