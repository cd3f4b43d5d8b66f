"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

import numpy as np
import torch

from fastvae.data.arrays import open_array
from fastvae.data.resident import ResidentData


def open_digits() -> ResidentData:
    """Load 1,797 scans of handwritten digits, shape ``(1, 8, 8)``, with their classes.

    Values are 17 levels of gray on [0, 1].

    Raises
    ------
    ImportError
        If scikit-learn is missing.

    References
    ----------
    Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository, 1998.
    """
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415  an extra
    except ImportError:
        raise ImportError('the "digits" come with scikit-learn: pip install "fastvae[data]"') from None
    bunch = load_digits()
    images = (bunch.images[:, None] / 16).astype(np.float32)
    return open_array(images, source="digits", labels=torch.from_numpy(bunch.target.astype(np.int64)))
