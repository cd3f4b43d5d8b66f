"""Signatures and fake kernels of the gathering operators.

``binarize`` is ``"none"``, ``"dynamic"`` or ``"threshold"``; ``seed`` and ``rows`` are read for
``"dynamic"``, where no ``rows`` are the index itself. There is nothing to differentiate: data sets are
constants.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.library import define, fake

ARGUMENTS = (
    "Tensor data, Tensor index, Tensor? rows, Tensor? seed, SymInt draw, float? data_max, str binarize"
)

gather_batch = define(f"gather_batch({ARGUMENTS}, ScalarType dtype) -> Tensor")
# It returns nothing: a result that is an argument could not be traced as a pure function of the arguments.
gather_batch_into = define(f"gather_batch_into({ARGUMENTS}, Tensor(a!) out) -> ()")


@fake(gather_batch)
def _(
    data: Tensor,
    index: Tensor,
    rows: Tensor | None,
    seed: Tensor | None,
    draw: int,
    data_max: float | None,
    binarize: str,
    dtype: torch.dtype,
) -> Tensor:
    del rows, seed, draw, data_max, binarize
    return torch.empty((index.shape[0], *data.shape[1:]), dtype=dtype, device=data.device)


@fake(gather_batch_into)
def _(
    data: Tensor,
    index: Tensor,
    rows: Tensor | None,
    seed: Tensor | None,
    draw: int,
    data_max: float | None,
    binarize: str,
    out: Tensor,
) -> None:
    del data, index, rows, seed, draw, data_max, binarize, out
