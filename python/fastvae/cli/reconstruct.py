"""``fastvae reconstruct``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from fastvae.cli.codes import OK
from fastvae.cli.npy import write_npy
from fastvae.cli.runs import batch_by_batch, load_run, open_run_data
from fastvae.plots.canvas import save
from fastvae.plots.reconstructions import draw_reconstructions


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
        write_npy(output, (len(data), *result.input_shape), batch_by_batch(data, result.reconstruct))
    return OK
