"""Gathering on the CPU: the Rust kernel, one pass over the rows that are asked for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.gather_batch import reference, schema
from fastvae.ops.layout import address, seed_value, uniform_stride
from fastvae.ops.library import kernel, plain_kernel

DATA_CODES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3, torch.uint8: 4, torch.bool: 4}
"""The dtypes of data as ``fastvae._core`` numbers them; a bool is a byte that is 0 or 1."""

BATCH_CODES = {torch.float32: 0, torch.bfloat16: 2}
"""The dtypes of batches, likewise."""

BINARIZE_CODES = {"none": 0, "threshold": 1, "dynamic": 2}
"""The ways to zeros and ones, likewise."""


plain_kernel(schema.gather_batch, _core.plain_gather_batch)


@kernel(schema.gather_batch, "CPU")
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


@kernel(schema.gather_batch_into, "CPU")
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
    if out.shape != (index.shape[0], *data.shape[1:]) or not out.is_contiguous() or not out.is_cpu:
        raise ValueError(
            f"out must be contiguous, of shape {(index.shape[0], *data.shape[1:])} on the CPU, got "
            f"{tuple(out.shape)} with strides {out.stride()} on {out.device}"
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
    samples, count, shape = data.shape[0], index.shape[0], data.shape[1:]
    if data.dtype not in DATA_CODES or out.dtype not in BATCH_CODES or not data.is_cpu:
        raise ValueError(
            f"the kernel takes no batch of {out.dtype} from data of {data.dtype} on {data.device}"
        )
    # The tensors are bound to names so that their memory outlives the call.
    index = _numbers("index", index, count)
    columns = math.prod(shape)
    step = columns if data.is_contiguous() else row_step(data)
    if step is None or data.is_neg():
        _check_range(index, samples)
        out.copy_(reference.gather_batch(data, index, rows, seed, draw, data_max, binarize, out.dtype))
        return
    noise = (0, 0, 0)
    if binarize == "dynamic":
        if seed is None:
            raise ValueError("gather_batch: binarize='dynamic' needs a seed")
        if rows is not None:
            rows = _numbers("rows", rows, count)
        noise = (seed_value(seed), draw, 0 if rows is None else address(rows))
    _core.gather_batch(
        (DATA_CODES[data.dtype], BATCH_CODES[out.dtype]),
        (address(data), samples, step),
        columns,
        (address(index), count),
        data_max,
        BINARIZE_CODES[binarize],
        noise,
        address(out),
        torch.get_num_threads(),
    )


def row_step(data: Tensor) -> int | None:
    """The distance of rows that have unit stride within, in elements; None if they have not.

    What has not is gathered by the reference: a copy of a whole data set for every batch is not to be had.
    """
    strides = data.stride()
    step = uniform_stride(data.shape[1:], strides[1:])
    # Rows of one value have any stride within, which is given as 0.
    return strides[0] if step == 1 or math.prod(data.shape[1:]) <= 1 else None


def _numbers(name: str, numbers: Tensor, count: int) -> Tensor:
    """One int64 per sample of the batch, contiguous."""
    if numbers.dtype is not torch.int64 or numbers.shape != (count,) or not numbers.is_cpu:
        raise ValueError(
            f"{name} must be {count} int64 numbers on the CPU, got {numbers.dtype} of shape "
            f"{tuple(numbers.shape)} on {numbers.device}"
        )
    return numbers.resolve_neg().contiguous()


def _check_range(index: Tensor, samples: int) -> None:
    """Raise as the kernel does for an index that is not a row of the data."""
    outside = ((index < 0) | (index >= samples)).nonzero()
    if len(outside):
        position = int(outside[0])
        raise IndexError(
            f"gather_batch: index must lie in [0, {samples}), the rows of data, got {int(index[position])} "
            f"at position {position}"
        )
