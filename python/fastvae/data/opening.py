"""The one door to all kinds of data."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from fastvae.data.arrays import open_array
from fastvae.data.base import Data
from fastvae.data.datasets import open_dataset
from fastvae.data.digits import open_digits
from fastvae.data.files import open_npy, open_npz
from fastvae.data.frames import is_frame, open_frame
from fastvae.data.idx import is_idx_name, open_idx_file, open_idx_folder
from fastvae.data.images import image_paths, open_images
from fastvae.data.loader import LoaderData

BUNDLED: dict[str, Callable[[], Data]] = {"digits": open_digits}
"""Data sets that have a name."""

_KINDS = (
    "a NumPy array, a torch tensor, Dataset or DataLoader, a pandas DataFrame, the name of a bundled data "
    f"set ({', '.join(map(repr, BUNDLED))}), or the path of an .npy or .npz file, a folder of IDX files or "
    "a folder of images"
)


def open_data(data: Any, *, workers: int = 0, name: str = "data", pixels: bool | None = None) -> Data:
    """Open any source of samples.

    Parameters
    ----------
    data
        A NumPy array or a tensor with samples along the first axis; a torch ``Dataset``, whose items may be
        tensors, arrays, Pillow images or ``(x, y)`` tuples (read once where it fits in 2 GiB: random
        transforms are drawn once then, those of a DataLoader in every epoch); a torch ``DataLoader``; a
        pandas ``DataFrame`` of numbers; the name ``"digits"``; or the path of an ``.npy`` or ``.npz`` file,
        of an IDX file, of a folder of IDX files named as those of MNIST, or of a folder of images, whose
        subfolders are classes (what is transparent in them is white). Of an ``.npz`` file the array called
        data, x, images or x_train is taken, with x_test as its test set. A :class:`Data` is given back as it
        is.
    workers : int
        Processes that read a Dataset or images; 0 reads in this one. The samples do not depend on it.
    name : str
        How error texts call the data: the name of the caller's argument.
    pixels : bool, optional
        Whether the uint8 values of an array are pixels, to be divided by 255; by default they are if one of
        them is above 1. Give the ``pixels`` of another data set to have the same scale.

    Returns
    -------
    Data
        Arrays and data frames keep the shape of their samples; images have a channel axis in front.

    Raises
    ------
    TypeError
        For a kind of object that is not listed above, or values that are no real numbers.
    ValueError
        For data that is empty, damaged, or made of samples of several shapes.
    FileNotFoundError
        For a path that does not exist.
    ImportError
        If a library that the source needs is missing; the text says how to install it.
    """
    if isinstance(workers, bool) or not isinstance(workers, int):
        raise TypeError(f"workers must be an int, got {workers!r}")
    if workers < 0:
        raise ValueError(f"workers must not be negative, got {workers}")
    if isinstance(data, Data):
        return data
    if isinstance(data, np.ndarray | Tensor):
        return open_array(data, name=name, pixels=pixels)
    if isinstance(data, DataLoader | IterableDataset):
        return LoaderData(data, name=name)
    if isinstance(data, Dataset):
        return open_dataset(data, name=name, workers=workers, pixels=pixels)
    if is_frame(data):
        return open_frame(data, name=name)
    if isinstance(data, str) and data in BUNDLED:
        return BUNDLED[data]()
    if isinstance(data, str | os.PathLike):
        return _open_path(data, name, workers)
    raise TypeError(f"{name}: expected {_KINDS}, got {type(data).__name__}{_hint(data)}")


def _open_path(given: str | os.PathLike[str], name: str, workers: int) -> Data:
    path = Path(given).expanduser()
    if path.is_dir():
        if any(is_idx_name(entry) for entry in path.iterdir()):
            return open_idx_folder(path, name=name)
        if image_paths(path):
            return open_images(path, name=name, workers=workers)
        raise ValueError(
            f"{name}: the folder {path} holds neither images nor IDX files (train-images-idx3-ubyte.gz)"
        )
    if not path.exists():
        close = difflib.get_close_matches(str(given).lower(), BUNDLED, n=1)
        hint = f'; did you mean "{close[0]}"?' if close else ""
        if not hint and str(given).isidentifier():
            hint = f"; bundled: {', '.join(BUNDLED)}"
        raise FileNotFoundError(f"{name}: there is no file, folder or bundled data set {str(given)!r}{hint}")
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return open_npy(path, name=name)
    if suffix == ".npz":
        return open_npz(path, name=name)
    if is_idx_name(path):
        return open_idx_file(path, name=name)
    hint = (
        '; read the table first: pandas.read_csv(path), or save its numbers: numpy.save("table.npy", '
        'pandas.read_csv(path).to_numpy("float32"))'
        if suffix in {".csv", ".tsv"}
        else ""
    )
    raise ValueError(
        f"{name}: cannot read {path}; expected an .npy or .npz file, an IDX file called as those of MNIST, "
        f"or a folder of images or IDX files{hint}"
    )


def _hint(data: Any) -> str:
    if isinstance(data, list | tuple) and data and isinstance(data[0], np.ndarray | Tensor):
        return "; of (samples, labels) give the samples, data[0]; numpy.stack(data) makes one array of many"
    if isinstance(data, list | tuple):
        return "; numpy.asarray(data, dtype='float32') makes an array of it"
    if hasattr(data, "toarray"):
        return "; data.toarray() makes an array of it"
    if hasattr(data, "to_numpy"):
        return "; data.to_numpy() makes an array of it"
    return ""
