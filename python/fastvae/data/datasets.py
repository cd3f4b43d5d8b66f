"""Map-style torch Datasets."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from fastvae import noise
from fastvae.data.arrays import open_array
from fastvae.data.base import Data
from fastvae.data.limits import RESIDENT_BYTES
from fastvae.data.stream import StreamData, read_samples
from fastvae.errors import DrawnOnceWarning

LOOKED_AT = 16
"""Items that are read twice to see whether something is random in them."""


def open_dataset(
    items: Dataset[Any],
    *,
    name: str = "data",
    source: str | None = None,
    labels: Tensor | None = None,
    pixels: bool | None = None,
    workers: int = 0,
) -> Data:
    """Open a data set with a length: read once and kept where they fit, else streamed.

    What fits is read a single time, so that random transforms are drawn once, and a warning says so; to have
    them drawn anew in every epoch, give a DataLoader.

    Parameters
    ----------
    items : Dataset
        Items are tensors, arrays or Pillow images of one shape, or tuples that begin with one; a whole number
        in second place is kept as the class.
    name : str
        How error texts call it.
    source : str, optional
        What the data set shall be called; by default the name of its class.
    labels : Tensor, optional
        The classes, where they are known without reading.
    pixels : bool, optional
        See :func:`~fastvae.data.arrays.open_array`.
    workers : int
        Processes that read items; 0 reads in this one. The result does not depend on it.

    Raises
    ------
    TypeError
        If there is no length, or items are no samples.
    ValueError
        If there are no items, or their shapes differ.
    """
    source = source or type(items).__name__
    try:
        count = len(items)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        raise TypeError(
            f"{name}: the {source} has no length; implement __len__, or make it an IterableDataset"
        ) from None
    if not count:
        raise ValueError(f"{name}: the {source} is empty")
    first = next(read_samples(items, [0], name=name)).values[0]
    if not first.ndim or not first.numel():
        raise ValueError(f"{name}: item 0 of the {source} has no values, shape {tuple(first.shape)}")
    if count * first.nbytes > RESIDENT_BYTES:
        return StreamData(items, first, name=source, labels=labels, workers=workers)
    if _is_random(items, count, name=name, like=first):
        warnings.warn(
            f"{name}: the {source} gives other items each time, as random transforms make them, and is read "
            "once and kept, so they are drawn once. A DataLoader of it draws them anew in every epoch",
            DrawnOnceWarning,
            stacklevel=4,
        )
    values = torch.empty((count, *first.shape), dtype=first.dtype, device="cpu")
    classes: list[int | None] = []
    for batch in read_samples(items, range(count), name=name, like=first, workers=workers):
        values[len(classes) : len(classes) + len(batch.labels)] = batch.values
        classes += batch.labels
    if labels is None and None not in classes:
        labels = torch.tensor(classes, device="cpu")
    return open_array(values, name=name, source=source, labels=labels, pixels=pixels)


def _is_random(items: Dataset[Any], count: int, *, name: str, like: Tensor) -> bool:
    """Whether one of a few items is another one with another seed."""
    rows = noise.permutation(count, 0)[:LOOKED_AT].tolist()
    one, other = (
        [batch.values.numpy().tobytes() for batch in batches]
        for batches in (read_samples(items, rows, name=name, like=like, seed=seed) for seed in (0, 1))
    )
    return one != other
