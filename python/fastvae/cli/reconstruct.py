"""``fastvae reconstruct``."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from fastvae.cli.codes import OK
from fastvae.cli.npy import write_npy
from fastvae.cli.runs import BATCH_SIZE, load_run, open_run_data
from fastvae.data import Data
from fastvae.plots.canvas import save
from fastvae.plots.reconstructions import draw_reconstructions
from fastvae.training import TrainedVAE


def run(options: Namespace) -> int:
    """Write reconstructions to a file."""
    output = Path(options.output)
    if output.suffix not in {".npy", ".png"}:
        raise ValueError(f"cannot write {output}; OUT must end in .npy or .png")
    result = load_run(options)
    data = open_run_data(options, result)
    data.value_range()
    if output.suffix == ".png":
        save(draw_reconstructions(result, data), output)
    else:
        write_npy(output, (len(data), *result.input_shape), _chunks(result, data))
    return OK


def _chunks(result: TrainedVAE, data: Data) -> Iterator[np.ndarray]:
    for x, _ in data.batches(BATCH_SIZE, order=None, device=torch.device("cpu")):
        yield result.reconstruct(x).numpy()
