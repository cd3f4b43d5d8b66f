"""Samples of the data beside what the model makes of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from fastvae.data import Data
from fastvae.plots.canvas import DATA_COLOR, INK, MODEL_COLOR, panels, set_legend, set_title, show_pixels
from fastvae.plots.choice import feature_name, is_signal, spread_rows
from fastvae.plots.mosaic import as_pictures, enlargement, fitting_columns, is_image, mosaic
from fastvae.training import TrainedVAE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLOCKS = 3
_BLOCK_GAP = 12


def draw_reconstructions(result: TrainedVAE, data: Data) -> Figure:
    """Draw reconstructions: images below their originals, signals over them, tables column by column."""
    if is_image(result.input_shape):
        return _draw_images(result, data)
    if is_signal(result.input_shape):
        x = data.take(spread_rows(data, 12))
        return _draw_signals(x.flatten(1), result.reconstruct(x).flatten(1))
    x = data.take(spread_rows(data, 500))
    return _draw_columns(x.flatten(1), result.reconstruct(x).flatten(1), data)


def _draw_images(result: TrainedVAE, data: Data) -> Figure:
    x = data.take(spread_rows(data, 12 * BLOCKS))
    originals = as_pictures(x, data.value_range())
    made = as_pictures(result.reconstruct(x), data.value_range())
    columns = fitting_columns(originals, 12)
    side = originals.shape[1] * enlargement(originals)
    blocks: list[np.ndarray] = []
    words: list[tuple[float, str]] = []
    top = 0
    for start in range(0, min(len(x), BLOCKS * columns), columns):
        chosen = slice(start, start + columns)
        missing = columns - len(originals[chosen])
        pair = np.concatenate([_padded(originals[chosen], missing), _padded(made[chosen], missing)])
        block = mosaic(pair, columns)
        words += [(top + side / 2, "data"), (top + len(block) - side / 2, "model")]
        blocks += [block, np.ones((_BLOCK_GAP, block.shape[1], 3), np.float32)]
        top += len(block) + _BLOCK_GAP
    return show_pixels(np.concatenate(blocks[:-1]), rows=words)


def _padded(pictures: np.ndarray, missing: int) -> np.ndarray:
    """Fill up a row with white."""
    return np.pad(pictures, [(0, missing), (0, 0), (0, 0), (0, 0)], constant_values=1)


def _draw_signals(x: Tensor, made: Tensor) -> Figure:
    figure, grid = panels(len(x), columns=4, width=3, height=1.6)
    for axes, original, reconstruction in zip(grid, x, made, strict=True):
        axes.plot(original, color=DATA_COLOR, linewidth=1.5, label="data")
        axes.plot(reconstruction, color=MODEL_COLOR, linewidth=1, label="model")
    set_legend(figure, grid[0])
    return figure


def _draw_columns(x: Tensor, made: Tensor, data: Data) -> Figure:
    figure, grid = panels(min(x.shape[1], 16), columns=4, width=2.4, height=2.4)
    for index, axes in enumerate(grid):
        column, reconstruction = x[:, index], made[:, index]
        ends = [float(column.min()), float(column.max())]
        axes.plot(ends, ends, color=INK, linewidth=0.7)
        axes.scatter(column, reconstruction, s=6, color=MODEL_COLOR, alpha=0.4, linewidths=0)
        set_title(axes, feature_name(data, index))
    grid[0].set_xlabel("data")
    grid[0].set_ylabel("model")
    return figure
