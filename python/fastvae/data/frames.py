"""Data frames of numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
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
        If there are no rows or no columns, or several of one name.
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
        raise TypeError(
            f"{name}: every column must hold numbers, these do not: {_few(other)}; drop them, or turn "
            "categories into numbers with pandas.get_dummies, and dates with .astype('int64'), standardised"
        )
    twice = [repr(column) for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise ValueError(
            f"{name}: columns are told apart by their names, and there are several called {_few(twice)}; "
            "rename them, or give frame.to_numpy()"
        )
    with np.errstate(over="ignore"):  # what overflows becomes infinite, and is reported with its row
        values = frame.to_numpy(dtype=np.float32, na_value=np.nan)
    return ResidentData(as_values(values, name), name="data frame", feature_names=columns)


def check_columns(trained: Sequence[str] | None, given: Sequence[str] | None, *, name: str = "data") -> None:
    """Refuse a data frame whose columns are not those of another: in another order they mean something else.

    Parameters
    ----------
    trained, given : sequence of str or None
        The columns that a model was trained on, and those of the data; None, without names, fits anything.
    name : str
        How error texts call the data.

    Raises
    ------
    ValueError
        If they differ; the text says how.
    """
    if trained is None or given is None or list(trained) == list(given):
        return
    missing = [column for column in trained if column not in given]
    unknown = [column for column in given if column not in trained]
    if missing or unknown:
        differences = "; ".join(
            f"{what} {_few(map(repr, columns))}"
            for what, columns in (("without", missing), ("with", unknown))
            if columns
        )
        raise ValueError(
            f"{name}: the columns of the data frame are not those of the training: {differences}; "
            "frame.to_numpy() has no names, and fits by the places of its columns"
        )
    raise ValueError(
        f"{name}: the columns of the data frame are in another order than in the training: take "
        f"frame[[{_few(map(repr, trained))}]]"
    )


def _few(texts: Iterable[str]) -> str:
    texts = list(texts)
    return ", ".join(texts[:5]) + (", ..." if len(texts) > 5 else "")
