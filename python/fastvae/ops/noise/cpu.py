"""The noise on the CPU: the Rust kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.layout import address, seed_value
from fastvae.ops.library import kernel
from fastvae.ops.noise import reference, schema

Fill: TypeAlias = Callable[[int, int, int, int, int, int, int, int], None]
"""A function of ``fastvae._core`` that fills a float32 matrix."""


def new_matrix(fill: Fill) -> Callable[..., Tensor]:
    """The operator that makes a float32 matrix."""

    def run(
        rows: int, columns: int, seed: Tensor, draw: int, row_offset: int, row_ids: Tensor | None
    ) -> Tensor:
        out = torch.empty((rows, columns), dtype=torch.float32, device=seed.device)
        _fill(fill, out, rows, columns, seed, draw, row_offset, row_ids)
        return out

    return run


def given_matrix(fill: Fill) -> Callable[..., None]:
    """The operator that fills the memory of a float32 tensor, whatever its shape."""

    def run(
        rows: int,
        columns: int,
        seed: Tensor,
        draw: int,
        row_offset: int,
        row_ids: Tensor | None,
        out: Tensor,
    ) -> None:
        if (
            out.dtype is not torch.float32
            or out.numel() != rows * columns
            or not out.is_contiguous()
            or not out.is_cpu
        ):
            raise ValueError(
                f"out must be {rows * columns} contiguous float32 numbers on the CPU, got {out.numel()} of "
                f"{out.dtype} with strides {out.stride()} on {out.device}"
            )
        if out.is_neg():
            # Its memory holds the opposite sign.
            values = torch.empty_like(out, memory_format=torch.contiguous_format)
            _fill(fill, values, rows, columns, seed, draw, row_offset, row_ids)
            out.copy_(values)
            return
        _fill(fill, out, rows, columns, seed, draw, row_offset, row_ids)
        # The kernel writes behind autograd's back: a backward that kept the old values has to fail, as it
        # does for torch's own in-place operations.
        torch.autograd.graph.increment_version(out)

    return run


def _fill(
    fill: Fill,
    out: Tensor,
    rows: int,
    columns: int,
    seed: Tensor,
    draw: int,
    row_offset: int,
    row_ids: Tensor | None,
) -> None:
    if not out.numel():
        return
    # A reference that lives as long as its address is in use.
    ids = None if row_ids is None else _checked(row_ids, rows)
    ids_address = 0 if ids is None else address(ids)
    fill(
        address(out),
        rows,
        columns,
        seed_value(seed),
        draw,
        row_offset,
        ids_address,
        torch.get_num_threads(),
    )


def _checked(row_ids: Tensor, rows: int) -> Tensor:
    """One int64 row number per row, contiguous."""
    if row_ids.dtype is not torch.int64 or row_ids.numel() != rows or not row_ids.is_cpu:
        raise ValueError(
            f"row_ids must be {rows} int64 numbers on the CPU, got {row_ids.numel()} of {row_ids.dtype} on "
            f"{row_ids.device}"
        )
    return row_ids.resolve_neg().contiguous()


kernel(schema.normal, "CPU")(new_matrix(_core.normal))
kernel(schema.uniform, "CPU")(new_matrix(_core.uniform))
kernel(schema.normal_into, "CPU")(given_matrix(_core.normal))
kernel(schema.uniform_into, "CPU")(given_matrix(_core.uniform))


@kernel(schema.permutation, "CPU")
def permutation(n: int, seed: Tensor, draw: int) -> Tensor:
    """The contract's permutation of 0..n-1."""
    out = torch.empty((n,), dtype=torch.int64, device=seed.device)
    _core.permutation(out.data_ptr(), n, seed_value(seed), draw)
    return out


@kernel(schema.fold_in, "CPU")
def fold_in(seed: Tensor, tag: Tensor) -> Tensor:
    """The contract's derived seed; a few words, so tensors of many take the reference."""
    if seed.numel() != 1:
        return reference.fold_in(seed, tag)
    return torch.full_like(seed, _core.fold_in(seed_value(seed), int(tag.item())))
