"""All pictures of a run."""

from __future__ import annotations

from pathlib import Path

from fastvae.data import open_data
from fastvae.plots.canvas import save
from fastvae.plots.curves import draw_curves
from fastvae.plots.latent import draw_latent
from fastvae.plots.reconstructions import draw_reconstructions
from fastvae.plots.samples import draw_samples
from fastvae.plots.traversal import draw_traversal
from fastvae.training import TrainedVAE
from fastvae.training.persistence import PICTURES


def write_pictures(result: TrainedVAE, data: object, folder: str | Path) -> list[Path]:
    """Draw a run into a folder.

    Parameters
    ----------
    result : TrainedVAE
    data : Data, array, path, ...
        What to reconstruct: held-out samples, if there are any; anything that :func:`fastvae.train` takes.
    folder : str or Path
        An existing folder. Each file appears complete or not at all; those of an earlier run are replaced or
        removed.

    Returns
    -------
    list of Path
        ``samples.png``, ``reconstructions.png``, ``traversal.png``, ``curves.png`` if there was an epoch, and
        ``latent.png`` for two codes.

    Raises
    ------
    ImportError
        If Matplotlib is missing; the text says how to install it.
    """
    data = open_data(data, pixels=result.config.data.pixels or None)
    figures = {
        "samples": draw_samples(result, data),
        "reconstructions": draw_reconstructions(result, data),
        "traversal": draw_traversal(result, data),
    }
    if result.history:
        figures["curves"] = draw_curves(result.history)
    if result.latent_dim == 2:
        figures["latent"] = draw_latent(result, data)
    for name in set(PICTURES) - {f"{name}.png" for name in figures}:  # of an earlier run
        (Path(folder) / name).unlink(missing_ok=True)
    return [save(figure, Path(folder) / f"{name}.png") for name, figure in figures.items()]
