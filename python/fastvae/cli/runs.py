"""The run and the data that a command names."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fastvae.data import Data, open_data
from fastvae.training import TrainedVAE, load

BATCH_SIZE = 512
"""Samples that pass through a model together, of which none is kept."""


def batch_by_batch(data: Data, apply: Callable[[Tensor], Tensor]) -> Iterator[np.ndarray]:
    """Yield what a function makes of the samples, in order."""
    for x, _ in data.batches(BATCH_SIZE, order=None, device=torch.device("cpu")):
        yield apply(x).numpy()


def load_run(options: Namespace) -> TrainedVAE:
    """Load the run folder onto the device asked for."""
    device = {"device": options.device} if "device" in options else {}
    return load(options.run, **device)


def open_run_data(options: Namespace, result: TrainedVAE) -> Data:
    """Open the data with the scale of the training data."""
    return open_data(options.data, workers=options.workers, pixels=result.config.data.pixels or None)
