"""The plane of two codes: where samples lie, how sure the encoder is, and what the decoder makes of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fastvae.data import Data
from fastvae.plots.canvas import INK, MODEL_COLOR, new_figure, plain, set_title
from fastvae.plots.choice import spread_rows
from fastvae.plots.mosaic import as_pictures, is_image, mosaic
from fastvae.training import TrainedVAE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Color = tuple[float, float, float]

SHOWN = 1000
GRID = 15
_NAMED_CLASSES = 20


def draw_latent(result: TrainedVAE, data: Data) -> Figure:
    """Draw the posterior of each sample as an ellipse, two standard deviations to either side of its mean.

    Colours are classes, where the data has some; the dashed circle is two standard deviations of the prior.
    For images, a second panel shows the same part of the plane decoded.
    """
    rows = spread_rows(data, SHOWN)
    mu, logvar = result.posterior(data.take(rows))
    labels = None if data.labels is None else data.labels[rows]
    reach = max(3.0, float(mu.abs().flatten().quantile(0.995)))
    images = is_image(result.input_shape)
    figure = new_figure(11.6 if images else 6.2, 6)
    figure.set_layout_engine("constrained")
    left, *right = figure.subplots(1, 2 if images else 1, squeeze=False)[0]
    _draw_ellipses(left, mu, (0.5 * logvar).exp(), labels, reach)
    if right:
        _draw_plane(right[0], result, data, reach)
    return figure


def _draw_ellipses(axes: Axes, mu: Tensor, sigma: Tensor, labels: Tensor | None, reach: float) -> None:
    from matplotlib import colormaps  # noqa: PLC0415  an extra
    from matplotlib.collections import EllipseCollection  # noqa: PLC0415
    from matplotlib.colors import to_rgb  # noqa: PLC0415
    from matplotlib.patches import Circle  # noqa: PLC0415

    plain(axes)
    groups: list[tuple[str | None, Tensor, Color]] = [
        (None, torch.arange(len(mu), device="cpu"), to_rgb(MODEL_COLOR))
    ]
    if labels is not None:
        classes = labels.unique().tolist()
        few = len(classes) <= 10
        palette = colormaps["tab10" if few else "turbo"]
        groups = [
            (str(name), (labels == name).nonzero()[:, 0], to_rgb(palette(i if few else i / len(classes))))
            for i, name in enumerate(classes)
        ]
    # The more there are, the fainter each: many stay apart, few stay visible.
    face, edge = min(0.15, 25 / len(mu)), min(0.5, 300 / len(mu))
    for label, members, color in groups:
        widths, heights = (4 * sigma[members]).numpy().T
        centers = mu[members].numpy()
        axes.add_collection(
            EllipseCollection(
                widths,
                heights,
                np.zeros(len(members)),
                units="xy",
                offsets=centers,
                transOffset=axes.transData,
                facecolors=[(*color, face)],
                edgecolors=[(*color, edge)],
                linewidths=0.5,
            )
        )
        axes.scatter(centers[:, 0], centers[:, 1], s=7, color=[color], linewidths=0, label=label, zorder=3)
    axes.add_patch(Circle((0, 0), 2, fill=False, linestyle=(0, (4, 4)), color=INK, linewidth=0.8))
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="code 0", ylabel="code 1")
    set_title(axes, "one ellipse per sample: mean and 2 standard deviations")
    if labels is not None and len(groups) <= _NAMED_CLASSES:
        axes.legend(frameon=False, fontsize=8, markerscale=2.5, loc="upper right", handletextpad=0.1)


def _draw_plane(axes: Axes, result: TrainedVAE, data: Data, reach: float) -> None:
    plain(axes)
    # The middle of each tile is decoded, so that a place in this panel is the same place in the other.
    ticks = (torch.arange(GRID, device="cpu") + 0.5) / GRID * 2 * reach - reach
    down, across = torch.meshgrid(ticks.flip(0), ticks, indexing="ij")
    decoded = result.decode(torch.stack([across, down], -1).reshape(-1, 2))
    picture = mosaic(as_pictures(decoded, data.value_range()), GRID, gap=0, scale=1)
    axes.imshow(picture, extent=(-reach, reach, -reach, reach), interpolation="nearest")
    axes.set(xlabel="code 0")
    set_title(axes, "the plane, decoded")
