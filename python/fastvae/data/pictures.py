"""Pillow images as pixels."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

_GRAY_MODES = {"1", "L", "LA"}
_WIDE_MODES = {"F", "I"}
_ORIENTATION = 0x0112  # EXIF tag; from 5 on the picture lies on its side


def is_picture(item: Any) -> bool:
    """Whether an object is a Pillow image; Pillow is not imported to find out."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(item, pillow.Image)


def is_gray(mode: str) -> bool:
    """Whether images of a Pillow mode have no colours: one channel, with or without transparency."""
    return mode in _GRAY_MODES


def picture_values(image: Image, what: str) -> Tensor:
    """Give the pixels of an image.

    Transparent parts are shown on white, and a camera's orientation mark is obeyed.

    Parameters
    ----------
    image : PIL.Image.Image
    what : str
        For the error text.

    Returns
    -------
    Tensor
        uint8, shape ``(1, H, W)`` without colours, else ``(3, H, W)``.

    Raises
    ------
    ValueError
        For more than 8 bits per channel.
    """
    _check_depth(image.mode, what)
    return _pixels(image, gray=is_gray(image.mode))


def inspect_picture(path: Path) -> tuple[tuple[int, int], bool]:
    """Read the header of an image file.

    Returns
    -------
    size : tuple of int
        Width and height, turned as a camera's orientation mark says.
    gray : bool
        Whether there is one channel.

    Raises
    ------
    ImportError
        If Pillow is missing.
    ValueError
        For a file that is no image, is damaged, or has more than 8 bits per channel; the text names it.
    """
    with _open(path) as image:
        # Asking a PNG without such a mark would decode all of it.
        lies = "exif" in image.info and image.getexif().get(_ORIENTATION, 1) >= 5
        size = image.size[::-1] if lies else image.size
        mode = image.mode
    _check_depth(mode, str(path))
    return size, is_gray(mode)


def read_picture(path: Path, *, gray: bool) -> Tensor:
    """Decode an image file that has been inspected.

    Returns
    -------
    Tensor
        uint8, shape ``(1, H, W)`` if ``gray``, else ``(3, H, W)``.

    Raises
    ------
    ImportError, ValueError
        As :func:`inspect_picture`.
    """
    with _open(path) as image:
        return _pixels(image, gray=gray)


def _check_depth(mode: str, what: str) -> None:
    if mode in _WIDE_MODES or ";" in mode:
        raise ValueError(
            f"{what}: the image has more than 8 bits per pixel (mode {mode}); give such images as a float "
            "array scaled to [0, 1]"
        )


def _pixels(image: Image, *, gray: bool) -> Tensor:
    from PIL import Image, ImageOps  # noqa: PLC0415  an extra

    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert("L" if gray else "RGB"))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


@contextmanager
def _open(path: Path) -> Iterator[Image]:
    try:
        from PIL import Image  # noqa: PLC0415  an extra
    except ImportError:
        raise ImportError('reading images needs Pillow: pip install "fastvae[data]"') from None
    try:
        with Image.open(path) as image:
            yield image
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them stumble over
        raise ValueError(f"{path}: not an image, or a damaged one ({error})") from error
