"""The course of the training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fastvae.plots.canvas import HELD_OUT_COLOR, MODEL_COLOR, panels, set_legend, set_title

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TITLES = {"elbo": "ELBO", "recon": "reconstruction", "kl": "KL"}

SETTLED = 0.05
"""The first of the epochs do not stretch the axes of the bound: they are far below all others."""


def draw_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the bound and its two terms over the epochs, in nats per sample, in training and held out.

    Parameters
    ----------
    history : sequence of mappings
        ``epoch``, ``elbo``, ``recon``, ``kl`` and ``val_elbo``, ``val_recon``, ``val_kl``, which may be None.
    """
    figure, grid = panels(len(_TITLES), columns=3, width=3.6, height=3)
    for axes, (term, title) in zip(grid, _TITLES.items(), strict=True):
        set_title(axes, title)
        axes.set_xlabel("epoch")
        axes.locator_params("x", integer=True)
        lines = [
            _draw_line(axes, history, term, MODEL_COLOR, "training"),
            _draw_line(axes, history, f"val_{term}", HELD_OUT_COLOR, "held out"),
        ]
        settled = [value for line in lines for value in line[int(SETTLED * len(line)) :]]
        if settled and term != "kl":
            low, high = min(settled), max(settled)
            margin = 0.06 * (high - low) or 1.0
            axes.set_ylim(low - margin, high + margin)
    grid[0].set_ylabel("nats per sample")
    set_legend(figure, grid[0])
    return figure


def _draw_line(
    axes: Axes, history: Sequence[Mapping[str, Any]], key: str, color: str, label: str
) -> list[float]:
    """Draw the finite values of one quantity, and give them."""
    points = [(r["epoch"], r[key]) for r in history if r.get(key) is not None and math.isfinite(r[key])]
    if points:
        marker = "o" if len(points) == 1 else ""
        axes.plot(*zip(*points, strict=True), color=color, linewidth=1.4, marker=marker, label=label)
    return [value for _, value in points]
