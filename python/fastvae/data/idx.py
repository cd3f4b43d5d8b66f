"""IDX files, the format of MNIST and its relatives."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections import defaultdict
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from fastvae.data.arrays import open_array
from fastvae.data.base import Data
from fastvae.data.resident import ResidentData

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<part>train|t10k|test)-(?P<kind>images|labels)[-.]idx\d+-u?byte(?:\.gz)?",
    re.IGNORECASE,
)
_CHUNK = 2**24


def is_idx_name(path: Path) -> bool:
    """Whether a file is called as the files of MNIST are: ``train-images-idx3-ubyte.gz``."""
    return _NAME.fullmatch(path.name) is not None


def open_idx_folder(folder: Path, *, name: str = "data") -> Data:
    """Open the training images of a folder of IDX files, with the test images as its held-out set.

    Parameters
    ----------
    folder : Path
        Files called as those of MNIST, gzipped or not: ``train-images-idx3-ubyte``, and, where there are
        some, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and ``t10k-labels-idx1-ubyte``.
    name : str
        How error texts call the data.

    Returns
    -------
    Data
        Images of shape ``(1, H, W)``; ``test`` holds the test files.

    Raises
    ------
    ValueError
        For a folder without training images or with several sets of files, and for a damaged file; the text
        names it.
    """
    sets: dict[str, dict[tuple[str, str], Path]] = defaultdict(dict)
    for path in sorted(folder.iterdir(), reverse=True):  # reversed: a plain file wins over its gzipped twin
        if match := _NAME.fullmatch(path.name):
            part = "train" if match["part"].lower() == "train" else "test"
            sets[match["prefix"]][part, match["kind"].lower()] = path
    if len(sets) > 1:
        raise ValueError(
            f"{name}: {folder} holds several sets of IDX files ({', '.join(map(repr, sorted(sets)))}); put "
            "the one to use in a folder of its own, or name its image file"
        )
    files = next(iter(sets.values()), {})
    if ("train", "images") not in files:
        raise ValueError(
            f"{name}: no training images in {folder}; expected a file like train-images-idx3-ubyte.gz"
        )
    train = open_idx_file(files["train", "images"], name=name, labels=files.get(("train", "labels")))
    if ("test", "images") in files:
        train.test = open_idx_file(
            files["test", "images"], name=name, labels=files.get(("test", "labels")), pixels=train.pixels
        )
        if train.test.shape != train.shape:
            raise ValueError(
                f"{name}: the training images of {folder} have shape {train.shape}, the test images "
                f"{train.test.shape}"
            )
    train.name = str(folder)
    return train


def open_idx_file(
    path: Path, *, name: str = "data", labels: Path | None = None, pixels: bool | None = None
) -> ResidentData:
    """Open the samples of one IDX file; images of shape ``(H, W)`` become ``(1, H, W)``.

    Parameters
    ----------
    path : Path
        A file of samples, gzipped or not.
    name : str
        How error texts call the data.
    labels : Path, optional
        The file of their classes.
    pixels : bool, optional
        See :func:`~fastvae.data.arrays.open_array`.

    Raises
    ------
    ValueError
        For a damaged file, and for classes that are not one whole number per sample.
    """
    array = read_idx(path)
    if array.ndim == 1:
        raise ValueError(
            f"{name}: {path} has one number for each sample, as a file of labels has; give the file of the "
            "images, or the folder of both"
        )
    if array.ndim == 3:
        array = array[:, None]
    classes = None if labels is None else _read_labels(labels, len(array), path)
    return open_array(array, name=f"{name}: {path}", source=str(path), labels=classes, pixels=pixels)


def read_idx(path: Path) -> np.ndarray:
    """Read one IDX file as an array, in the byte order of the machine.

    The format: two zero bytes, a code for the type of number, the number of axes, each extent as a big-endian
    32-bit integer, then the values, the last axis fastest.

    Raises
    ------
    ValueError
        If the file is not of this format, cut short, or longer than it says; the text names it.
    """
    with path.open("rb") as raw:
        zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        try:
            with gzip.GzipFile(fileobj=raw) if zipped else raw as file:
                return _parse(file, path)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}: the gzip file is damaged or cut short ({error})") from error


def _parse(file: IO[bytes] | gzip.GzipFile, path: Path) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in _DTYPES or not 1 <= magic[3] <= 8:
        raise ValueError(
            f"{path}: not an IDX file; it begins with {magic.hex(' ') or 'nothing'}, and the images of "
            "MNIST with 00 00 08 03"
        )
    dtype = np.dtype(_DTYPES[magic[2]])
    header = file.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise ValueError(f"{path}: the file ends within its header")
    shape = tuple(int(extent) for extent in np.frombuffer(header, ">u4"))
    expected = math.prod(shape) * dtype.itemsize
    # In chunks, one byte more than expected: a header that lies must not reserve memory.
    content = bytearray()
    while chunk := file.read(min(_CHUNK, expected + 1 - len(content))):
        content += chunk
    if len(content) != expected:
        found = f"only {len(content)}" if len(content) < expected else "more"
        raise ValueError(
            f"{path}: the header promises {expected} bytes of values, shape {shape}, there are {found}"
        )
    array = np.frombuffer(content, dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_labels(path: Path, count: int, images: Path) -> Tensor:
    labels = read_idx(path)
    if labels.shape != (count,) or labels.dtype.kind not in "ui":
        raise ValueError(
            f"{path}: expected one whole number for each of the {count} samples of {images.name}, got "
            f"{labels.dtype} of shape {labels.shape}"
        )
    return torch.from_numpy(labels.astype(np.int64))
