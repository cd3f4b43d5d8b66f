"""The exceptions and warnings of the package that have no built-in equivalent.

Wrong arguments raise plain ``TypeError`` and ``ValueError``.
"""

from __future__ import annotations

__all__ = ["FileFormatError", "NonFiniteError", "NonFiniteWarning", "PosteriorCollapseWarning"]


class FileFormatError(ValueError):
    """A file is damaged, was not written by fastvae, or does not belong to the files beside it."""


class NonFiniteError(FloatingPointError):
    """A whole epoch gave only infinite or undefined numbers, so training cannot go on."""


class NonFiniteWarning(RuntimeWarning):
    """Some training steps gave infinite or undefined numbers and were skipped."""


class PosteriorCollapseWarning(UserWarning):
    """The KL is near zero: the codes say nothing about the data."""
