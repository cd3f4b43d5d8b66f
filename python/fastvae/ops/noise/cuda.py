"""The noise on CUDA: the Triton kernels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastvae.ops.cuda import (
    cdiv,
    check_apart,
    check_draw,
    cuda_kernel,
    kernels,
    launch,
    next_power_of_two,
    numbers_on,
    seed_pointer,
    tiles,
)
from fastvae.ops.layout import address
from fastvae.ops.noise import reference, schema
from fastvae.ops.noise.fallback import written_over

MOST_SEEDS = 256
"""Seeds that one program derives."""


def new_matrix(*, normal: bool) -> Callable[..., Tensor]:
    """The operator that makes a float32 matrix."""

    def run(
        rows: int, columns: int, seed: Tensor, draw: int, row_offset: int, row_ids: Tensor | None
    ) -> Tensor:
        out = torch.empty((rows, columns), dtype=torch.float32, device=seed.device)
        _fill(out, rows, columns, seed, draw, row_offset, row_ids, normal=normal)
        return out

    return run


def given_matrix(*, normal: bool) -> Callable[..., None]:
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
            or out.device != seed.device
        ):
            raise ValueError(
                f"out must be {rows * columns} contiguous float32 numbers on {seed.device}, got "
                f"{out.numel()} of {out.dtype} with strides {out.stride()} on {out.device}"
            )
        if out.is_neg():
            # Its memory holds the opposite sign.
            values = torch.empty_like(out, memory_format=torch.contiguous_format)
            _fill(values, rows, columns, seed, draw, row_offset, row_ids, normal=normal)
            out.copy_(values)
            return
        _fill(out, rows, columns, seed, draw, row_offset, row_ids, normal=normal)
        # The kernel writes behind autograd's back: a backward that kept the old values has to fail, as it
        # does for torch's own in-place operations.
        torch.autograd.graph.increment_version(out)

    return run


def _fill(
    out: Tensor,
    rows: int,
    columns: int,
    seed: Tensor,
    draw: int,
    row_offset: int,
    row_ids: Tensor | None,
    *,
    normal: bool,
) -> None:
    if not out.numel():
        return
    address(out)
    numbers = out if row_ids is None else numbers_on(out.device, "row_ids", row_ids.reshape(-1), rows)
    check_apart(out, seed, row_ids)
    check_draw(draw, row_offset if row_ids is None else 0, rows)
    cut = tiles(rows, columns)
    launch(
        kernels("noise").fill,
        cut.grid,
        out,
        seed_pointer(seed, out.device),
        draw,
        row_offset,
        numbers,
        rows,
        columns,
        cut.programs,
        NORMAL=normal,
        LISTED=row_ids is not None,
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )


cuda_kernel(schema.normal, reference.normal)(new_matrix(normal=True))
cuda_kernel(schema.uniform, reference.uniform)(new_matrix(normal=False))
cuda_kernel(schema.normal_into, written_over(reference.normal))(given_matrix(normal=True))
cuda_kernel(schema.uniform_into, written_over(reference.uniform))(given_matrix(normal=False))


@cuda_kernel(schema.permutation, reference.permutation)
def permutation(n: int, seed: Tensor, draw: int) -> Tensor:
    """The contract's permutation of 0..n-1: its keys, and torch's stable sort."""
    keys = torch.empty((n,), dtype=torch.int64, device=seed.device)
    if n:
        check_draw(draw, 0, n)
        rows = min(MOST_SEEDS, next_power_of_two(n))
        launch(
            kernels("noise").keys,
            (cdiv(n, rows),),
            keys,
            seed_pointer(seed, keys.device),
            draw,
            n,
            ROWS=rows,
        )
    return keys.sort(stable=True).indices


@cuda_kernel(schema.fold_in, reference.fold_in)
def fold_in(seed: Tensor, tag: Tensor) -> Tensor:
    """The contract's derived seeds, elementwise."""
    if seed.dtype is not torch.int64 or tag.dtype is not torch.int64 or seed.device != tag.device:
        raise ValueError(
            f"seed and tag must be int64 tensors on one device, got {seed.dtype} on {seed.device} and "
            f"{tag.dtype} on {tag.device}"
        )
    like, tag = torch.broadcast_tensors(seed, tag)
    seed, tag = like.contiguous(), tag.contiguous()
    out = torch.empty_like(seed)
    if out.numel():
        address(seed), address(tag)
        count = min(MOST_SEEDS, next_power_of_two(out.numel()))
        launch(
            kernels("noise").fold_in,
            (cdiv(out.numel(), count),),
            out,
            seed,
            tag,
            out.numel(),
            COUNT=count,
        )
    # The strides that the fake kernel promises to a compiler.
    return out if like.is_contiguous() else torch.empty_like(like).copy_(out)
