"""Samples as PNG files."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from fastvae.plots.mosaic import as_pictures, is_image, mosaic
from fastvae.training.atomic import new_folder, replacing

if TYPE_CHECKING:
    from PIL.Image import Image

Range = tuple[float, float]


def write_grid(path: Path, shape: tuple[int, ...], chunks: Iterable[np.ndarray], value_range: Range) -> None:
    """Write all samples as one picture, about as wide as high.

    Parameters
    ----------
    path : Path
        Appears when all is written.
    shape : tuple of int
        Of all samples together, ``(N, *shape)``.
    chunks : iterable of numpy.ndarray
    value_range : tuple of float
        The values of black and white.

    Raises
    ------
    ImportError
        If Pillow is missing.
    ValueError
        If the samples are no images, or the range is empty.
    """
    _check(shape, value_range)
    with replacing(path) as temporary:
        pictures = np.concatenate([_pictures(chunk, value_range) for chunk in chunks])
        image = _to_pillow(mosaic(pictures, math.ceil(math.sqrt(len(pictures)))))
        image.save(temporary, format="PNG")


def write_folder(
    folder: Path, shape: tuple[int, ...], chunks: Iterable[np.ndarray], value_range: Range
) -> None:
    """Write each sample to a file of its own, ``000000.png`` and so on, in its own size.

    Parameters
    ----------
    folder : Path
        A new one; it appears when all is written.
    shape, chunks, value_range
        As for :func:`write_grid`.

    Raises
    ------
    ImportError, ValueError
        As :func:`write_grid`, and if the folder exists.
    """
    _check(shape, value_range)
    digits = max(6, len(str(shape[0] - 1)))
    with new_folder(folder) as temporary:
        pictures = (picture for chunk in chunks for picture in _pictures(chunk, value_range))
        for number, picture in enumerate(pictures):
            _to_pillow(picture).save(temporary / f"{number:0{digits}}.png")


def _check(shape: tuple[int, ...], value_range: Range) -> None:
    if not is_image(shape[1:]):
        raise ValueError(f"samples of shape {shape[1:]} are no images; write them to an .npy file")
    if not value_range[0] < value_range[1]:
        raise ValueError(f"the range must go from low to high, got {value_range[0]:g} {value_range[1]:g}")


def _pictures(chunk: np.ndarray, value_range: Range) -> np.ndarray:
    return as_pictures(torch.from_numpy(chunk), value_range)


def _to_pillow(picture: np.ndarray) -> Image:
    try:
        from PIL import Image  # noqa: PLC0415  an extra
    except ImportError:
        raise ImportError('writing PNG files needs Pillow: pip install "fastvae[data]"') from None
    pixels = np.rint(picture * 255).astype(np.uint8)
    gray = bool((pixels == pixels[..., :1]).all())
    return Image.fromarray(pixels[..., 0] if gray else pixels)
