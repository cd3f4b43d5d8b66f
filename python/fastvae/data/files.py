"""NumPy's ``.npy`` and ``.npz`` files, never unpickled."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastvae.data.arrays import open_array
from fastvae.data.limits import RESIDENT_BYTES
from fastvae.data.resident import ResidentData

TRAIN_NAME, TEST_NAME, TEST_LABELS = "x_train", "x_test", "y_test"
SAMPLE_NAMES = ("data", "x", "X", "images", TRAIN_NAME, "arr_0")
LABEL_NAMES = ("labels", "y", "Y", "label", "y_train", "target")


def open_npy(path: Path, *, name: str = "data") -> ResidentData:
    """Open the array of an ``.npy`` file; a large one is mapped into memory, not read.

    Raises
    ------
    TypeError, ValueError
        For a file that is damaged or holds Python objects, and as
        :func:`~fastvae.data.arrays.open_array`; the text names it.
    """
    if path.stat().st_size > RESIDENT_BYTES:
        with _naming(path):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    else:
        with _naming(path), path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: this is an .npz archive; give it that suffix")
    return open_array(array, name=f"{name}: {path}", source=str(path))


def open_npz(path: Path, *, name: str = "data") -> ResidentData:
    """Open the samples of an ``.npz`` file: its only array, or the one called data, x, images or x_train.

    An array of whole numbers called labels, y or y_train gives the classes. Beside x_train, x_test (and
    y_test) is the held-out set.

    Raises
    ------
    TypeError, ValueError
        As :func:`open_npy`, and if none of several arrays has such a name, or more than one; the text lists
        them.
    """
    with path.open("rb") as file:  # opened here, because NumPy leaves a damaged file open
        with _naming(path):
            archive = np.load(file, allow_pickle=False)
        if isinstance(archive, np.ndarray):
            raise ValueError(f"{path}: this is an .npy file; give it that suffix")
        names = list(archive.files)
        known = names if len(names) == 1 else [candidate for candidate in SAMPLE_NAMES if candidate in names]
        if len(known) != 1:
            found = ", ".join(map(repr, names)) or "nothing"
            raise ValueError(
                f"{path}: cannot tell which array holds the samples; expected one array, or one of those "
                f"called {', '.join(SAMPLE_NAMES)}, found {found}; or give numpy.load(path)[...] itself"
            )
        chosen = known[0]
        label_name = next((n for n in LABEL_NAMES if n in names and n != chosen), None)
        with_test = chosen == TRAIN_NAME and TEST_NAME in names
        with _naming(path):
            samples = np.asarray(archive[chosen])
            labels = None if label_name is None else _classes(np.asarray(archive[label_name]), samples)
            held_out = np.asarray(archive[TEST_NAME]) if with_test else None
            of_held_out = np.asarray(archive[TEST_LABELS]) if with_test and TEST_LABELS in names else None
    data = open_array(samples, name=f"{name}: {path} {chosen!r}", source=str(path), labels=labels)
    if held_out is not None:
        if (held_out.dtype == np.uint8) != (samples.dtype == np.uint8):
            raise ValueError(
                f"{name}: {path}: {TRAIN_NAME!r} is {samples.dtype} and {TEST_NAME!r} {held_out.dtype}; "
                "8-bit values are scaled and others are not, so both must be or neither"
            )
        data.test = open_array(
            held_out,
            name=f"{name}: {path} {TEST_NAME!r}",
            source=f"{path} {TEST_NAME!r}",
            labels=None if of_held_out is None else _classes(of_held_out, held_out),
            pixels=data.pixels,
        )
        if data.test.shape != data.shape:
            raise ValueError(
                f"{name}: {path}: {TRAIN_NAME!r} has samples of shape {data.shape}, {TEST_NAME!r} of shape "
                f"{data.test.shape}"
            )
    return data


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever NumPy and zipfile stumble over in a bad file into one error that names it."""
    try:
        yield
    except Exception as error:
        if "pickle" in str(error) or "Object arrays" in str(error):
            raise ValueError(
                f"{path}: not a NumPy file of numbers; it holds pickled Python objects or something else, "
                "which is never loaded because it can run code; save a plain array of numbers with numpy.save"
            ) from error
        raise ValueError(f"{path}: the file is damaged or cut short ({error})") from error


def _classes(labels: np.ndarray, samples: np.ndarray) -> Tensor | None:
    if labels.shape != samples.shape[:1] or labels.dtype.kind not in "bui":
        return None
    return torch.from_numpy(labels.astype(np.int64))
