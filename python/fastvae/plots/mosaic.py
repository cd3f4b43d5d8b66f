"""Samples as pictures, and many pictures as one."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

TILE = 56
"""Small pictures are enlarged by a whole number to about this many pixels."""

_GAP = 3


def is_image(shape: tuple[int, ...]) -> bool:
    """Whether samples of a shape can be shown: ``(H, W)``, ``(C, H, W)`` or ``(H, W, 3)``, no side of one."""
    sides = {2: shape, 3: shape[:2] if _channels_last(shape) else shape[1:]}.get(len(shape), (1,))
    return min(sides) > 1


def as_pictures(x: Tensor, value_range: tuple[float, float]) -> np.ndarray:
    """Turn samples into colour pictures.

    Parameters
    ----------
    x : Tensor
        ``(N, *shape)``, the shape being that of an image; channels other than one or three are averaged.
    value_range : tuple of float
        The values of black and white.

    Returns
    -------
    numpy.ndarray
        float32, ``(N, H, W, 3)`` on [0, 1].
    """
    low, high = value_range
    values = x.detach().cpu().numpy().astype(np.float32)
    values = np.clip((values - low) / max(high - low, 1e-12), 0, 1)
    shape = values.shape[1:]
    if len(shape) == 2:
        values = values[..., None]
    elif not _channels_last(shape):
        values = np.moveaxis(values, 1, -1)
    if values.shape[-1] != 3:
        values = values.mean(-1, keepdims=True)
    return np.broadcast_to(values, (*values.shape[:-1], 3))


def enlargement(pictures: np.ndarray, tile: int = TILE) -> int:
    """Give the whole number that brings pictures to about ``tile`` pixels."""
    return max(1, round(tile / max(pictures.shape[1:3])))


def mosaic(pictures: np.ndarray, columns: int, *, gap: int = _GAP, scale: int | None = None) -> np.ndarray:
    """Lay pictures side by side on white, row by row.

    Parameters
    ----------
    pictures : numpy.ndarray
        ``(N, H, W, 3)`` on [0, 1].
    columns : int
    gap : int
        White pixels between two pictures.
    scale : int, optional
        How often each pixel is repeated; by default until a picture has about 56.

    Returns
    -------
    numpy.ndarray
        float32, ``(height, width, 3)``.
    """
    scale = enlargement(pictures) if scale is None else scale
    large = pictures.repeat(scale, 1).repeat(scale, 2)
    height, width = large.shape[1:3]
    rows = math.ceil(len(large) / columns)
    canvas = np.ones((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), np.float32)
    for index, picture in enumerate(large):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        canvas[top : top + height, left : left + width] = picture
    return canvas


def fitting_columns(pictures: np.ndarray, most: int, *, width: int = 1600) -> int:
    """Give how many pictures fit side by side: at least two, at most ``most``."""
    return max(2, min(most, width // (pictures.shape[2] * enlargement(pictures) + _GAP)))


def centers(count: int, side: int, *, gap: int = _GAP) -> list[float]:
    """Give the middle of each of ``count`` tiles of ``side`` pixels, in pixels from the first one's edge."""
    return [index * (side + gap) + side / 2 for index in range(count)]


def _channels_last(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[2] == 3 and shape[0] not in {1, 3}
