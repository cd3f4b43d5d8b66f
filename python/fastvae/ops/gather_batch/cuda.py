"""Gathering on CUDA: the Triton kernel, one pass over the rows that are asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvae.ops.cuda import check_apart, cuda_kernel, kernels, launch, numbers_on, seed_pointer, tiles
from fastvae.ops.gather_batch import reference, schema
from fastvae.ops.gather_batch.cpu import BATCH_CODES, DATA_CODES, row_step
from fastvae.ops.layout import address
from fastvae.ops.observed import LARGEST_BYTE


@cuda_kernel(schema.gather_batch, reference.gather_batch)
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
    """A new batch."""
    out = torch.empty((index.shape[0], *data.shape[1:]), dtype=dtype, device=data.device)
    _gather(data, index, rows, seed, draw, data_max, binarize, out)
    return out


@cuda_kernel(schema.gather_batch_into, reference.gather_batch_into)
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
    """A batch over what ``out`` held."""
    shape = (index.shape[0], *data.shape[1:])
    if out.shape != shape or not out.is_contiguous() or out.device != data.device:
        raise ValueError(
            f"out must be contiguous, of shape {shape} on {data.device}, got {tuple(out.shape)} with strides "
            f"{out.stride()} on {out.device}"
        )
    if out.is_neg():
        # Its memory holds the opposite sign.
        out.copy_(gather_batch(data, index, rows, seed, draw, data_max, binarize, out.dtype))
        return
    _gather(data, index, rows, seed, draw, data_max, binarize, out)
    # The kernel writes behind autograd's back: a backward that kept the old batch has to fail, as it does for
    # torch's own in-place operations.
    torch.autograd.graph.increment_version(out)


def _gather(
    data: Tensor,
    index: Tensor,
    rows: Tensor | None,
    seed: Tensor | None,
    draw: int,
    data_max: float | None,
    binarize: str,
    out: Tensor,
) -> None:
    """Fill a contiguous batch, after the checks that keep the kernel within the tensors."""
    samples, count, columns = data.shape[0], index.shape[0], math.prod(data.shape[1:])
    if data.dtype not in DATA_CODES or out.dtype not in BATCH_CODES:
        raise ValueError(f"the kernel takes no batch of {out.dtype} from data of {data.dtype}")
    if binarize not in {"none", "threshold", "dynamic"}:
        raise ValueError(f"binarize must be 'none', 'threshold' or 'dynamic', got {binarize!r}")
    index = numbers_on(data.device, "index", index, count)
    if binarize == "dynamic":
        if seed is None:
            raise ValueError("gather_batch: binarize='dynamic' needs a seed")
        if rows is not None:
            rows = numbers_on(data.device, "rows", rows, count)
    step = columns if data.is_contiguous() else row_step(data)
    if step is None or data.is_neg():
        out.copy_(reference.gather_batch(data, index, rows, seed, draw, data_max, binarize, out.dtype))
        return
    if not out.numel():
        return
    address(data), address(out)
    check_apart(out, data, index, rows, seed)
    if data.dtype is torch.bool:
        data = data.view(torch.uint8)
    module = kernels("gather")
    kind = {"none": module.AS_IT_IS, "threshold": module.THRESHOLD, "dynamic": module.DRAW}[binarize]
    if binarize == "dynamic" and data.dtype is torch.uint8 and data_max == LARGEST_BYTE:
        kind = module.DRAW_PIXELS
    cut = tiles(count, columns)
    launch(
        module.gather,
        cut.grid,
        data,
        index,
        index if rows is None else rows,
        index if seed is None else seed_pointer(seed, data.device),
        out,
        draw,
        1.0 if data_max is None else data_max,
        samples,
        count,
        columns,
        step,
        cut.programs,
        DIVIDE=data_max is not None,
        BINARIZE=kind.value,
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )
