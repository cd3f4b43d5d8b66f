"""From a data set in memory to batches."""

from __future__ import annotations

from typing import Any, Literal, NoReturn

import torch
from torch import Tensor

from fastvae.ops.gather_batch import reference, schema
from fastvae.ops.gather_batch.cpu import BATCH_CODES, DATA_CODES
from fastvae.ops.library import raw, transforms_active
from fastvae.ops.noise.seed import Seed, seed_tensor
from fastvae.ops.validation import check_index, describe

__all__ = ["gather_batch"]

_NAME = "gather_batch"

SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max
"""Between which a divisor may lie: the normal numbers of float32."""


def gather_batch(
    data: Tensor,
    index: Tensor,
    *,
    data_max: float | None = None,
    binarize: Literal["dynamic", "threshold"] | None = None,
    seed: Seed = None,
    draw: int = 0,
    rows: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
) -> Tensor:
    r"""Gather samples of a data set as a batch: ``data[index] / data_max``, binary if wanted, in one pass.

    Drawn pixels are a pure function of ``(seed, draw, row, column)`` (docs/noise.md), so a sample looks the
    same in whatever batch it comes: bit for bit ``noise.uniform((B, *shape), seed, draw=draw, rows=index,
    event_dims=len(shape)) < data[index] / data_max``. Give each epoch a seed or a draw of its own.

    Parameters
    ----------
    data : Tensor
        The data set, ``(N, *shape)``; uint8, bool, float32, bfloat16 or float16. On the CPU rows may lie at
        any distance; data whose rows are not contiguous in themselves works too, at the speed of torch's
        operations. It is never copied whole.
    index : Tensor
        int64, ``(B,)``, on the device of the data: which samples, in any order, also repeatedly.
    data_max : float, optional
        What values are divided by: 255 for pixels. The quotient is the float32 nearest to the exact one.
        uint8 that is to be binarized needs one: 1 where it is 0 or 1.
    binarize : {"dynamic", "threshold"}, optional
        1 with the probability of the value and else 0, or 1 for a value above 0.5 and else 0.
    seed : int, int64 tensor, torch.Generator or None
        The 64-bit key of drawn pixels; by default from torch's generator of the device.
    draw : int
        Number of the draw in [0, 2^32).
    rows : Tensor, optional
        int64, ``(B,)``: the row number of each sample in the noise, in [0, 2^63), where it is not ``index``:
        for a data set that is a part of another.
    dtype : torch.dtype
        float32 or bfloat16, to which the float32 result is rounded.
    out : Tensor, optional
        Written over, and returned, instead of a new tensor: contiguous, of the shape and dtype of the result.

    Returns
    -------
    Tensor
        The batch, ``(B, *shape)``, contiguous. No gradient flows through it.

    Raises
    ------
    IndexError
        On the CPU, for an index that is no row of the data, before anything is written. Other devices raise
        as torch's ``index_select`` does.
    TypeError
        For arguments of another kind or dtype than those above.
    ValueError
        For shapes, devices and numbers that do not fit, and for tensors that require grad.

    References
    ----------
    Salakhutdinov and Murray, "On the Quantitative Analysis of Deep Belief Networks", ICML 2008, section 5,
    for drawn pixels.
    """
    if not (
        isinstance(data, Tensor)
        and isinstance(index, Tensor)
        and data.dtype in DATA_CODES
        and index.dtype is torch.int64
        and data.layout is torch.strided
        and data.dim() > 0
        and index.dim() == 1
        and index.device == data.device
        and not data.requires_grad
    ):
        _explain_inputs(data, index)
    if dtype not in BATCH_CODES:
        raise TypeError(f"{_NAME}: dtype must be float32 or bfloat16, got {dtype}")
    if data_max is not None:
        data_max = _check_data_max(data_max)
    if binarize is None:
        kind, key, rows = "none", None, None
    elif binarize == "dynamic":
        kind, key, draw = binarize, _key(seed, data.device), _check_draw(draw)
        if rows is not None:
            _check_rows(rows, index)
    elif binarize == "threshold":
        kind, key, rows = binarize, None, None
    else:
        raise ValueError(f"{_NAME}: binarize must be 'dynamic', 'threshold' or None, got {binarize!r}")
    if kind != "none" and data_max is None and data.dtype is torch.uint8:
        raise ValueError(
            f"{_NAME}: uint8 data that is binarized needs data_max, the value that is 1: data_max=255 for "
            "pixels, data_max=1 where data is 0 or 1"
        )
    if transforms_active():
        batch = reference.gather_batch(data, index, rows, key, draw, data_max, kind, dtype)
        return batch if out is None else _check_out(out, data, index, dtype).copy_(batch)
    if out is None:
        result: Tensor = raw(schema.gather_batch, data, index, rows, key, draw, data_max, kind, dtype)
        return result
    _check_out(out, data, index, dtype)
    raw(schema.gather_batch_into, data, index, rows, key, draw, data_max, kind, out)
    return out


def _key(seed: Seed, device: torch.device) -> Tensor:
    """The seed as a tensor; a given one is not copied, as no backward comes for it later."""
    if isinstance(seed, Tensor) and seed.dtype is torch.int64 and seed.dim() == 0 and seed.device == device:
        return seed
    return seed_tensor(seed, device)


def _check_draw(draw: int) -> int:
    if type(draw) is int and 0 <= draw < 2**32:
        return draw
    return check_index(_NAME, "draw", draw, 2**32)


def _check_data_max(data_max: Any) -> float:
    """A positive number that float32 can hold."""
    if isinstance(data_max, bool) or not hasattr(data_max, "__float__"):
        raise TypeError(f"{_NAME}: data_max must be a number, got {describe(data_max)}")
    value = float(data_max)
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(
            f"{_NAME}: data_max must be a positive number, such as 255 for pixels, got {data_max!r}"
        )
    return value


def _check_rows(rows: Any, index: Tensor) -> None:
    if not isinstance(rows, Tensor) or rows.dtype is not torch.int64:
        raise TypeError(f"{_NAME}: rows must be an int64 tensor, got {describe(rows)}")
    if rows.shape != index.shape or rows.device != index.device:
        raise ValueError(
            f"{_NAME}: rows must have one number per sample, shape {tuple(index.shape)} on {index.device}, "
            f"got {describe(rows)}"
        )


def _check_out(out: Any, data: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor that the batch can be written to as it is."""
    if not isinstance(out, Tensor) or out.dtype is not dtype:
        raise TypeError(f"{_NAME}: out must be a {dtype} tensor, as dtype says, got {describe(out)}")
    shape = (index.shape[0], *data.shape[1:])
    if out.shape != shape or out.device != data.device or not out.is_contiguous():
        raise ValueError(
            f"{_NAME}: out must be contiguous, of shape {shape} on {data.device}, got {describe(out)} with "
            f"strides {out.stride()}"
        )
    if out.requires_grad:
        raise ValueError(f"{_NAME}: out is written over, so it must not require grad; out.detach() does not")
    return out


def _explain_inputs(data: Any, index: Any) -> NoReturn:
    """Say which of the two does not fit, and how to go on."""
    kinds = "uint8, bool, float32, bfloat16 or float16"
    if not isinstance(data, Tensor):
        raise TypeError(f"{_NAME}: data must be a torch tensor ({kinds}), got {describe(data)}")
    if data.layout is not torch.strided:
        raise TypeError(f"{_NAME}: data must be a dense tensor, got {describe(data)}")
    if data.dtype not in DATA_CODES:
        raise TypeError(f"{_NAME}: data must be {kinds}, got {describe(data)}; data.float() converts it")
    if not data.dim():
        raise ValueError(f"{_NAME}: data must have an axis of samples, shape (N, ...), got {describe(data)}")
    if data.requires_grad:
        raise ValueError(f"{_NAME}: no gradient flows to data; give data.detach()")
    if not isinstance(index, Tensor) or index.dtype is not torch.int64:
        raise TypeError(
            f"{_NAME}: index must be an int64 tensor, got {describe(index)}; "
            "torch.as_tensor(index, dtype=torch.int64) makes one"
        )
    if index.device != data.device:
        raise ValueError(
            f"{_NAME}: data is on {data.device} and index on {index.device}; move one with .to(device)"
        )
    raise ValueError(f"{_NAME}: index must be a dense tensor of shape (B,), got {describe(index)}")
