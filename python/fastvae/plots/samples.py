"""What the model makes from noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from fastvae.data import Data
from fastvae.plots.canvas import DATA_COLOR, MODEL_COLOR, panels, set_legend, set_title, show_pixels
from fastvae.plots.choice import feature_name, is_signal, spread_rows
from fastvae.plots.mosaic import as_pictures, fitting_columns, is_image, mosaic
from fastvae.training import TrainedVAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw_samples(result: TrainedVAE, data: Data) -> Figure:
    """Draw samples decoded from unit noise.

    Images side by side; signals (many values in a row) as lines; tables as the distribution of each column,
    in the data and in samples.
    """
    if is_image(result.input_shape):
        pictures = as_pictures(result.sample(100), data.value_range())
        columns = fitting_columns(pictures, 10)
        return show_pixels(mosaic(pictures[: columns * columns], columns))
    if is_signal(result.input_shape):
        return _draw_signals(result.sample(12).flatten(1).numpy())
    real = data.take(spread_rows(data, 2000)).flatten(1)
    return _draw_columns(real, result.sample(2000, sampled=True).flatten(1), data)


def _draw_signals(signals: np.ndarray) -> Figure:
    figure, grid = panels(len(signals), columns=4, width=3, height=1.6)
    for axes, signal in zip(grid, signals, strict=True):
        axes.plot(signal, color=MODEL_COLOR, linewidth=1)
        axes.set_ylim(signals.min(), signals.max())
    return figure


def _draw_columns(real: torch.Tensor, made: torch.Tensor, data: Data) -> Figure:
    count = min(real.shape[1], 16)
    figure, grid = panels(count, columns=4, width=2.6, height=2)
    for index, axes in enumerate(grid):
        column, sampled = real[:, index].numpy(), made[:, index].numpy()
        bins = np.histogram_bin_edges(np.concatenate([column, sampled]), 40).tolist()
        axes.hist(column, bins, density=True, color=DATA_COLOR, alpha=0.55, label="data")
        axes.hist(sampled, bins, density=True, histtype="step", color=MODEL_COLOR, label="samples")
        set_title(axes, feature_name(data, index))
        axes.set_yticks([])
    set_legend(figure, grid[0])
    return figure
