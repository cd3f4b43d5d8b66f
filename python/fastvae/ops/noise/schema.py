"""Operators of the noise contract (docs/noise.md): signatures and fake kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.library import define, fake

MATRIX = "SymInt rows, SymInt columns, Tensor seed, SymInt draw, SymInt row_offset, Tensor? row_ids"

draw_seed = define("draw_seed(*, Device device) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
normal = define(f"normal({MATRIX}) -> Tensor")
uniform = define(f"uniform({MATRIX}) -> Tensor")
# These return nothing: a result that is an argument could not be traced as a pure function of the arguments.
normal_into = define(f"normal_into({MATRIX}, Tensor(a!) out) -> ()")
uniform_into = define(f"uniform_into({MATRIX}, Tensor(a!) out) -> ()")
permutation = define("permutation(SymInt n, Tensor seed, SymInt draw) -> Tensor")
fold_in = define("fold_in(Tensor seed, Tensor tag) -> Tensor")


@fake(draw_seed)
def _(*, device: torch.device) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=device)


@fake(normal)
@fake(uniform)
def _(rows: int, columns: int, seed: Tensor, draw: int, row_offset: int, row_ids: Tensor | None) -> Tensor:
    del draw, row_offset, row_ids
    return torch.empty((rows, columns), dtype=torch.float32, device=seed.device)


@fake(normal_into)
@fake(uniform_into)
def _(
    rows: int,
    columns: int,
    seed: Tensor,
    draw: int,
    row_offset: int,
    row_ids: Tensor | None,
    out: Tensor,
) -> None:
    del rows, columns, seed, draw, row_offset, row_ids, out


@fake(permutation)
def _(n: int, seed: Tensor, draw: int) -> Tensor:
    del draw
    return torch.empty((n,), dtype=torch.int64, device=seed.device)


@fake(fold_in)
def _(seed: Tensor, tag: Tensor) -> Tensor:
    del tag
    return torch.empty_like(seed)
