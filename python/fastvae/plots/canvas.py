"""Figures without global state, in one plain style, and how they reach the disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastvae.training.atomic import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 100
INK = "#374151"
DATA_COLOR = "#9aa3af"
MODEL_COLOR = "#2f6fde"
HELD_OUT_COLOR = "#e0733a"


def new_figure(width: float, height: float) -> Figure:
    """Make an empty figure.

    Parameters
    ----------
    width, height : float
        In inches of 100 pixels.

    Raises
    ------
    ImportError
        If Matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: PLC0415  an extra
        from matplotlib.figure import Figure  # noqa: PLC0415
    except ImportError:
        raise ImportError('pictures need Matplotlib: pip install "fastvae[plots]"') from None
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def panels(count: int, *, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """Make a figure of equal panels, row by row.

    Parameters
    ----------
    count : int
        How many.
    columns : int
        At most so many side by side.
    width, height : float
        Of one panel, in inches.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = new_figure(columns * width, rows * height)
    figure.set_layout_engine("constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in grid[count:]:
        unused.set_visible(False)
    for axes in grid[:count]:
        plain(axes)
    return figure, grid[:count]


def plain(axes: Axes) -> None:
    """Leave of the frame only what is read: two thin axes with small figures."""
    for side, spine in axes.spines.items():
        spine.set_visible(side in {"left", "bottom"})
        spine.set_color("#c5cad3")
    axes.tick_params(colors=INK, labelsize=8, length=3, color="#c5cad3")
    axes.xaxis.label.set(color=INK, size=9)
    axes.yaxis.label.set(color=INK, size=9)


def set_title(axes: Axes, text: str) -> None:
    """Write above a panel what it shows."""
    axes.set_title(text, color=INK, fontsize=10)


def set_legend(figure: Figure, axes: Axes) -> None:
    """Explain the colours of a panel above all panels, where no line runs through the words."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=8)


Words = Sequence[tuple[float, str]]
"""Words with their place in pixels."""


def show_pixels(pixels: np.ndarray, *, rows: Words = (), columns: Words = ()) -> Figure:
    """Make a figure of an image, pixel for pixel, with words beside its rows and above its columns.

    Parameters
    ----------
    pixels : numpy.ndarray
        ``(H, W, 3)``, on [0, 1].
    rows, columns : sequence of (float, str)
        The position of each word in pixels from the top or from the left, and the word.
    """
    margin = 10
    left = margin + (max(len(text) for _, text in rows) * 7 + 8 if rows else 0)
    top = margin + (18 if columns else 0)
    height, width = pixels.shape[:2]
    total_width, total_height = left + width + margin, top + height + margin
    figure = new_figure(total_width / DPI, total_height / DPI)
    figure.figimage(pixels, left, margin, resize=False, origin="upper")
    for position, text in rows:
        y = (total_height - top - position) / total_height
        figure.text((left - 8) / total_width, y, text, ha="right", va="center", size=8.5, color=INK)
    for position, text in columns:
        x, y = (left + position) / total_width, (total_height - top + 6) / total_height
        figure.text(x, y, text, ha="center", va="bottom", size=8.5, color=INK)
    return figure


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file that appears complete or not at all."""
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
    return path
