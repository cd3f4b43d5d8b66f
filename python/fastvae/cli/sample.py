"""``fastvae sample``."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from fastvae.cli.codes import OK
from fastvae.cli.npy import write_npy
from fastvae.cli.png import write_folder, write_grid
from fastvae.cli.runs import load_run
from fastvae.training import TrainedVAE

VALUES_AT_A_TIME = 2**22
"""16 MiB of float32: what is in memory of the samples, however many there are."""

MOST_IN_A_GRID = 10_000


def run(options: Namespace) -> int:
    """Write samples to a file or a folder."""
    output = Path(options.output)
    if output.suffix not in {".npy", ".png", ""} or options.output == "-":
        raise ValueError(f"cannot write {output}; OUT must end in .npy or .png, or be a new folder")
    if output.suffix == ".png" and options.number > MOST_IN_A_GRID:
        raise ValueError(
            f"one picture holds at most {MOST_IN_A_GRID} samples, got -n {options.number}; write them to an "
            ".npy file or to a folder"
        )
    result = load_run(options)
    chunks = _chunks(result, options)
    shape = (options.number, *result.input_shape)
    match output.suffix:
        case ".npy":
            write_npy(output, shape, chunks)
        case ".png":
            write_grid(output, shape, chunks, options.range)
        case _:
            write_folder(output, shape, chunks, options.range)
    return OK


def _chunks(result: TrainedVAE, options: Namespace) -> Iterator[np.ndarray]:
    """Yield the samples a few at a time."""
    at_a_time = max(1, VALUES_AT_A_TIME // int(np.prod(result.input_shape)))
    with tqdm(total=options.number, unit=" samples", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        for start in range(0, options.number, at_a_time):
            count = min(at_a_time, options.number - start)
            samples = result.sample(
                count, seed=options.seed, row_offset=options.start + start, sampled=options.sampled
            )
            yield samples.numpy()
            bar.update(count)
