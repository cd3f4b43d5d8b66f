"""NumPy arrays and torch tensors."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from fastvae.data.base import Data
from fastvae.data.resident import ResidentData


def open_array(
    array: np.ndarray | Tensor,
    *,
    name: str = "data",
    source: str = "array",
    labels: Tensor | None = None,
    pixels: bool | None = None,
    test: Data | None = None,
) -> ResidentData:
    """Take samples along the first axis of an array or a tensor.

    uint8 values are pixels, divided by 255, unless there is nothing above 1; bool is 0 and 1; everything else
    is taken as float32. float32 and 8-bit values are not copied.

    Parameters
    ----------
    array : numpy.ndarray or Tensor
        Numbers, shape ``(N, *shape)``, at least two axes.
    name : str
        How error texts call it.
    source : str
        What the data set shall be called.
    labels : Tensor, optional
        One class per sample.
    pixels : bool, optional
        Whether uint8 values are divided by 255; by default decided by whether a value is above 1.
    test : Data, optional
        The held-out set that came with it.

    Raises
    ------
    TypeError
        If it does not hold real numbers.
    ValueError
        If it is empty, or has no axis of values.
    """
    values = as_values(array, name)
    shape = tuple(values.shape)
    if not shape:
        raise ValueError(f"{name}: expected samples along the first axis, got a single number")
    if len(shape) == 1:
        raise ValueError(
            f"{name}: expected samples along the first axis and their values along the others, got shape "
            f"{shape}; use x[:, None] for samples of one number each, x[None] for one sample"
        )
    if not shape[0]:
        raise ValueError(f"{name}: there are no samples, shape {shape}")
    if 0 in shape:
        raise ValueError(f"{name}: the samples are empty, shape {shape}")
    if values.dtype != torch.uint8:
        pixels = False
    elif pixels is None:
        pixels = bool(values.max() > 1)
    return ResidentData(values, name=source, pixels=pixels, labels=labels, test=test)


def as_values(array: np.ndarray | Tensor, name: str) -> Tensor:
    """Give an array or a tensor as a contiguous uint8, bool or float32 tensor, to be read only.

    Parameters
    ----------
    array : numpy.ndarray or Tensor
        Real numbers, any strides.
    name : str
        For the error text.

    Raises
    ------
    TypeError
        For objects, text, dates, complex numbers, sparse or masked data.
    """
    values = array.detach() if isinstance(array, Tensor) else _from_numpy(array, name)
    if values.layout != torch.strided or values.is_nested or values.is_quantized or values.is_meta:
        kind = "a nested tensor" if values.is_nested else f"{values.dtype}, layout {values.layout}"
        raise TypeError(
            f"{name}: expected a dense tensor with values, got {kind}, on {values.device}; "
            ".to_dense(), .to_padded_tensor() or .dequantize() makes one"
        )
    if values.is_complex():
        raise TypeError(
            f"{name}: expected real numbers, got {values.dtype}; torch.view_as_real makes two numbers of each"
        )
    if values.dtype not in {torch.uint8, torch.bool}:
        values = values.to(torch.float32)
    return values.contiguous()


def _from_numpy(array: np.ndarray, name: str) -> Tensor:
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(f"{name}: got a masked array; fill in the missing values first, x.filled(...)")
    if array.dtype.kind == "c":
        raise TypeError(
            f"{name}: expected real numbers, got {array.dtype}; x.real or numpy.abs(x) gives them"
        )
    if array.dtype.kind not in "buif":
        hint = (
            "; x.astype('float32') converts numbers stored as objects or text"
            if array.dtype.kind in "OUS"
            else ""
        )
        raise TypeError(f"{name}: expected an array of numbers, got dtype {array.dtype}{hint}")
    if array.dtype not in {np.dtype(np.uint8), np.dtype(np.bool_)}:
        with np.errstate(over="ignore"):  # what overflows becomes infinite, and is reported with its row
            array = array.astype(np.float32, copy=False)
    array = np.asarray(array, order="C")
    with warnings.catch_warnings():
        # Read-only memory (a memory-mapped file) is fine: nothing writes to it.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
