"""Gathering in plain torch operations: it defines what is correct."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.gather_batch import schema
from fastvae.ops.layout import rows_columns
from fastvae.ops.library import kernel
from fastvae.ops.noise import schema as noise_schema

THRESHOLD = 0.5
"""Above this a value is 1 where a threshold makes it binary."""


@kernel(schema.gather_batch, "CompositeExplicitAutograd")
def gather_batch(
    data: Tensor,
    index: Tensor,
    rows: Tensor | None,
    seed: Tensor | None,
    draw: int,
    data_max: float | None,
    binarize: str,
    dtype: torch.dtype,
) -> Tensor:
    """``data[index] / data_max``, rounded to float32, as it is or as zeros and ones."""
    values = data.index_select(0, index).to(torch.float32)
    if data_max is not None:
        # By a number on the device: a GPU multiplies by the reciprocal of any other, and is off by an ulp.
        values = values / torch.full((), data_max, dtype=torch.float32, device=values.device)
    if binarize == "dynamic":
        if seed is None:
            raise ValueError("gather_batch: binarize='dynamic' needs a seed")
        numbers = index if rows is None else rows
        uniform = noise_schema.uniform(*rows_columns(values.shape, values.dim() - 1), seed, draw, 0, numbers)
        values = uniform.reshape(values.shape) < values
    elif binarize == "threshold":
        values = values > THRESHOLD
    return values.to(dtype).contiguous()


@kernel(schema.gather_batch_into, "CompositeExplicitAutograd")
def gather_batch_into(
    data: Tensor,
    index: Tensor,
    rows: Tensor | None,
    seed: Tensor | None,
    draw: int,
    data_max: float | None,
    binarize: str,
    out: Tensor,
) -> None:
    """The same, written over ``out``."""
    out.copy_(gather_batch(data, index, rows, seed, draw, data_max, binarize, out.dtype))
