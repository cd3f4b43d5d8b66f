"""Signatures and fake kernels of the reparametrization operators."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.library import define, fake

NOISE = "Tensor seed, SymInt draw, SymInt row_offset, int event_dims"

reparametrize = define(f"reparametrize(Tensor mu, Tensor logvar, {NOISE}) -> Tensor")
reparametrize_backward = define(f"reparametrize_backward(Tensor grad_z, Tensor logvar, {NOISE}) -> Tensor")


@fake(reparametrize)
@fake(reparametrize_backward)
def _(first: Tensor, logvar: Tensor, seed: Tensor, draw: int, row_offset: int, event_dims: int) -> Tensor:
    del logvar, seed, draw, row_offset, event_dims
    return torch.empty_like(first, memory_format=torch.contiguous_format)
