"""Free bits on the average KL of each dimension."""

from __future__ import annotations

from typing import SupportsIndex

import torch
from torch import Tensor

from fastvae.ops.validation import as_integer

__all__ = ["free_bits"]


def free_bits(kl_per_dimension: Tensor, floor: float, group_size: SupportsIndex = 1) -> Tensor:
    r"""The KL with a floor under what each group of dimensions carries on average, in nats per sample.

    ``sum over groups of max(floor, KL of the group)``: a group at or below the floor has no gradient, so the
    model may use its nats for nothing. The average is over the batch, as in the paper;
    ``functional.reparametrize_kl(..., free_bits=...)`` has the floor for each sample.

    Parameters
    ----------
    kl_per_dimension : Tensor
        KL of each dimension averaged over the batch, in nats, any shape:
        ``functional.gaussian_kl(mu, logvar, reduction="dimension")``.
    floor : float
        In nats, at least 0.
    group_size : int
        Neighbouring dimensions that form a group; it divides their number.

    Returns
    -------
    Tensor
        A scalar.

    Raises
    ------
    TypeError
        For a ``group_size`` that is no integer.
    ValueError
        For a negative floor, or groups that do not divide the dimensions.

    References
    ----------
    Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", NeurIPS 2016, equation
    15.
    """
    if not floor >= 0:
        raise ValueError(f"free_bits: floor must be at least 0 nats, got {floor}")
    group_size = as_integer("free_bits", "group_size", group_size)
    dimensions = kl_per_dimension.numel()
    if group_size < 1 or dimensions % group_size:
        raise ValueError(f"free_bits: group_size must divide the {dimensions} dimensions, got {group_size}")
    groups = kl_per_dimension.reshape(-1, group_size).sum(-1)
    # Not `clamp`, whose gradient is 1 at the floor itself; NaN stays.
    return torch.where(groups <= floor, floor, groups).sum()
