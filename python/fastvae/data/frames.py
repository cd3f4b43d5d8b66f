"""Data frames of numbers."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastvae.data.arrays import as_values
from fastvae.data.resident import ResidentData


def is_frame(data: Any) -> bool:
    """Whether an object is a pandas data frame; pandas is not imported to find out."""
    return type(data).__module__.partition(".")[0] == "pandas" and hasattr(data, "columns")


def open_frame(frame: Any, *, name: str = "data") -> ResidentData:
    """Take the rows of a pandas data frame as samples of one axis.

    Parameters
    ----------
    frame : pandas.DataFrame
        Columns of numbers or booleans; a missing value becomes NaN, which the data range check reports.
    name : str
        How error texts call it.

    Raises
    ------
    TypeError
        If a column does not hold numbers; the text names the columns.
    ValueError
        If there are no rows or no columns.
    """
    columns = [str(column) for column in frame.columns]
    if not len(frame) or not columns:
        raise ValueError(f"{name}: the data frame is empty, {len(frame)} rows and {len(columns)} columns")
    other = [
        f"{column!r} ({dtype})"
        for column, dtype in zip(columns, frame.dtypes, strict=True)
        if getattr(dtype, "kind", "O") not in "buif"
    ]
    if other:
        shown = ", ".join(other[:5]) + (", ..." if len(other) > 5 else "")
        raise TypeError(
            f"{name}: every column must hold numbers, these do not: {shown}; drop them, or turn categories "
            "into numbers with pandas.get_dummies"
        )
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is reported with its row
        values = frame.to_numpy(dtype=np.float32, na_value=np.nan)
    return ResidentData(as_values(values, name), name="data frame", feature_names=columns)
