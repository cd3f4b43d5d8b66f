"""Pillow images as pixels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

_GRAY_MODES = {"1", "L", "LA"}
_WIDE_MODES = {"F", "I"}


def is_picture(item: Any) -> bool:
    """Whether an object is a Pillow image; Pillow is not imported to find out."""
    pillow = sys.modules.get("PIL.Image")
    return pillow is not None and isinstance(item, pillow.Image)


def is_gray(image: Image) -> bool:
    """Whether an image has no colours: one channel, with or without transparency."""
    return image.mode in _GRAY_MODES


def picture_values(image: Image, what: str, *, gray: bool | None = None) -> Tensor:
    """Give the pixels of an image.

    Transparent parts are shown on white, and a camera's orientation mark is obeyed.

    Parameters
    ----------
    image : PIL.Image.Image
    what : str
        For the error text.
    gray : bool, optional
        One channel or three; by default as the image is.

    Returns
    -------
    Tensor
        uint8, shape ``(1, H, W)`` or ``(3, H, W)``.

    Raises
    ------
    ValueError
        For more than 8 bits per channel.
    """
    from PIL import Image, ImageOps  # noqa: PLC0415  an extra

    if image.mode in _WIDE_MODES or ";" in image.mode:
        raise ValueError(
            f"{what}: the image has more than 8 bits per pixel (mode {image.mode}); give such images as a "
            "float array scaled to [0, 1]"
        )
    target = "L" if (is_gray(image) if gray is None else gray) else "RGB"
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image.convert(target))
    return torch.from_numpy(pixels.reshape(*pixels.shape[:2], -1)).permute(2, 0, 1).contiguous()


def open_picture(path: Path) -> Image:
    """Open an image file without decoding it.

    Raises
    ------
    ImportError
        If Pillow is missing.
    ValueError
        For a file that is no image or is damaged; the text names it.
    """
    try:
        from PIL import Image  # noqa: PLC0415  an extra
    except ImportError:
        raise ImportError('reading images needs Pillow: pip install "fastvae[data]"') from None
    try:
        return Image.open(path)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: not an image, or a damaged one ({error})") from error


def read_picture(path: Path, *, gray: bool) -> Tensor:
    """Decode an image file.

    Returns
    -------
    Tensor
        uint8, shape ``(1, H, W)`` if ``gray``, else ``(3, H, W)``.

    Raises
    ------
    ImportError, ValueError
        As :func:`open_picture` and :func:`picture_values`.
    """
    with open_picture(path) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path}: the image is damaged ({error})") from error
        return picture_values(image, str(path), gray=gray)
