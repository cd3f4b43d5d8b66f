"""What is shown of data too large to show whole."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastvae.data import Data
from fastvae.training import TrainedVAE

MOST_COLUMNS = 32
"""Samples of more values are shown as signals, others as the columns of a table."""

SHOWN_CODES = 10


def is_signal(shape: tuple[int, ...]) -> bool:
    """Whether samples that are no images are shown as lines."""
    return math.prod(shape) > MOST_COLUMNS


def feature_name(data: Data, index: int) -> str:
    """Give the name of a column, or its number."""
    return data.feature_names[index] if data.feature_names else f"value {index}"


def spread_rows(data: Data, count: int) -> Tensor:
    """Choose rows evenly over a data set, which may be sorted by class: int64, at most ``count``."""
    count = min(count, len(data))
    return torch.linspace(0, len(data) - 1, count, dtype=torch.float64, device="cpu").long()


def busiest_codes(result: TrainedVAE, data: Data) -> list[int]:
    """Give the codes whose means vary most over the data, the busiest first, at most ten."""
    means = result.encode(data.take(spread_rows(data, 1000)))
    order = means.var(0, unbiased=False).argsort(descending=True, stable=True)
    return order[:SHOWN_CODES].tolist()
