"""What each code means: one of them varied, the others kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastvae.data import Data
from fastvae.plots.canvas import panels, set_legend, set_title, show_pixels
from fastvae.plots.choice import busiest_codes, spread_rows
from fastvae.plots.mosaic import as_pictures, centers, enlargement, fitting_columns, is_image, mosaic
from fastvae.training import TrainedVAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REACH = 3.0
"""Codes are varied over this many standard deviations of the prior to either side."""


def draw_traversal(result: TrainedVAE, data: Data) -> Figure:
    """Draw one sample of the data with one code after another varied, the busiest codes first."""
    x = data.take(spread_rows(data, 3)[-2:][:1])
    codes = busiest_codes(result, data)
    if not is_image(result.input_shape):
        return _draw_lines(result, x, codes)
    columns = fitting_columns(as_pictures(x, (0, 1)), 11)
    values = _symmetric(columns)
    rows = torch.cat([result.traverse(x, dim, values) for dim in codes])
    pictures = as_pictures(rows, data.value_range())
    height, width = (side * enlargement(pictures) for side in pictures.shape[1:3])
    return show_pixels(
        mosaic(pictures, columns),
        rows=[(y, f"code {dim}") for y, dim in zip(centers(len(codes), height), codes, strict=True)],
        columns=[
            (x, f"{value:.1f}") for x, value in zip(centers(columns, width), values.tolist(), strict=True)
        ],
    )


def _draw_lines(result: TrainedVAE, x: Tensor, codes: list[int]) -> Figure:
    from matplotlib import colormaps  # noqa: PLC0415  an extra

    values = _symmetric(7)
    figure, grid = panels(len(codes), columns=3, width=3.4, height=2)
    for axes, dim in zip(grid, codes, strict=True):
        for value, line in zip(values.tolist(), result.traverse(x, dim, values).flatten(1), strict=True):
            color = colormaps["coolwarm"]((value + REACH) / (2 * REACH))
            axes.plot(line, color=color, linewidth=1, label=f"{value:+.0f}")
        set_title(axes, f"code {dim}")
    set_legend(figure, grid[0])
    return figure


def _symmetric(count: int) -> Tensor:
    """Give ``count`` even steps over the reach; the middle one is 0, not almost 0."""
    return torch.arange(1 - count, count, 2, device="cpu") * (REACH / (count - 1))
