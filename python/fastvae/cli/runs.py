"""The run and the data that a command names."""

from __future__ import annotations

from argparse import Namespace

from fastvae.data import Data, open_data
from fastvae.training import TrainedVAE, load

BATCH_SIZE = 512
"""Samples that pass through a model together, of which none is kept."""


def load_run(options: Namespace) -> TrainedVAE:
    """Load the run folder onto the device asked for."""
    device = {"device": options.device} if "device" in options else {}
    return load(options.run, **device)


def open_run_data(options: Namespace, result: TrainedVAE) -> Data:
    """Open the data with the scale of the training data."""
    return open_data(options.data, workers=options.workers, pixels=result.config.data.pixels or None)
