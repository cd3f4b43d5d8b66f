"""``fastvae encode``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from fastvae.cli.codes import OK
from fastvae.cli.npy import write_npy
from fastvae.cli.runs import batch_by_batch, load_run, open_run_data


def run(options: Namespace) -> int:
    """Write the mean code of each sample to a file."""
    output = Path(options.output)
    if output.suffix != ".npy":
        raise ValueError(f"cannot write {output}; OUT must end in .npy")
    result = load_run(options)
    data = open_run_data(options, result)
    data.value_range()
    write_npy(output, (len(data), result.latent_dim), batch_by_batch(data, result.encode))
    return OK
