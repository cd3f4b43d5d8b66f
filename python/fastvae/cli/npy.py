"""An ``.npy`` file written piece by piece."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from fastvae.training.atomic import replacing


def write_npy(path: Path, shape: tuple[int, ...], chunks: Iterable[np.ndarray]) -> None:
    """Write a float32 array whose rows come in chunks, none of which is kept.

    Parameters
    ----------
    path : Path
        Appears when all is written.
    shape : tuple of int
        Of the whole array.
    chunks : iterable of numpy.ndarray
        Together as many rows as ``shape`` says.
    """
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in chunks:
            file.write(np.ascontiguousarray(chunk, "<f4").data)
