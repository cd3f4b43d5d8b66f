"""One item of a torch Dataset, or one batch of a DataLoader, as numbers."""

from __future__ import annotations

import numbers
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastvae.data.arrays import as_values
from fastvae.data.base import Data
from fastvae.data.pictures import is_picture, picture_values


class Sample(NamedTuple):
    """The values of an item, uint8, bool or float32, and its class where it has one."""

    values: Tensor
    label: int | None


def read_item(item: Any, what: str) -> Sample:
    """Find the sample in a data set's item.

    Parameters
    ----------
    item
        A tensor, an array or a Pillow image, or a tuple or list that begins with one; a whole number in
        second place is the class.
    what : str
        For the error text: ``"data: item 3"``.

    Raises
    ------
    TypeError
        For anything else.
    """
    label = None
    if isinstance(item, tuple | list) and item:
        label = _whole_number(item[1]) if len(item) > 1 else None
        item = item[0]
    if is_picture(item):
        return Sample(picture_values(item, what), label)
    if isinstance(item, Tensor | np.ndarray):
        return Sample(as_values(item, what), label)
    keys = f" with the keys {', '.join(map(repr, item))}" if isinstance(item, dict) else ""
    raise TypeError(
        f"{what} must be a tensor, an array, a Pillow image, or a tuple that begins with one, got "
        f"{type(item).__name__}{keys}; wrap the data set so that it gives the sample first"
    )


def as_float(values: Tensor) -> Tensor:
    """Give values as a model sees them: 8-bit pixels on [0, 1], everything else as it is, float32."""
    return values.to(torch.float32).div_(255) if values.dtype == torch.uint8 else values.to(torch.float32)


def check_scale(data: Data, value_range: tuple[float, float]) -> tuple[float, float]:
    """Pass on the range of a streamed source, unless its 8-bit "pixels" hold only 0 and 1.

    Raises
    ------
    ValueError
        If they do: a stream cannot be looked through before its scale is chosen.
    """
    if data.pixels and value_range[1] < 2 / 255:
        raise ValueError(
            f"{data.name}: 8-bit values are taken for pixels from 0 to 255, but there is none above 1; give "
            "binary data as bool or float"
        )
    return value_range


def _whole_number(value: Any) -> int | None:
    if isinstance(value, Tensor | np.ndarray) and value.ndim == 0:
        value = value.item()
    return int(value) if isinstance(value, numbers.Integral) else None
