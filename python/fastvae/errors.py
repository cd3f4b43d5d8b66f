"""The exceptions and warnings of the package that have no built-in equivalent.

Wrong arguments raise plain ``TypeError`` and ``ValueError``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastvae.training import TrainedVAE

__all__ = [
    "DrawnOnceWarning",
    "FileFormatError",
    "NonFiniteError",
    "NonFiniteWarning",
    "NotCapturedWarning",
    "OverfittingWarning",
    "PosteriorCollapseWarning",
    "RunNotWrittenError",
    "RunNotWrittenWarning",
]


class FileFormatError(ValueError):
    """A file is damaged, was not written by fastvae, or does not belong to the files beside it."""


class RunNotWrittenError(OSError):
    """The run folder could not be written at the end of a training; ``result`` is what was trained."""

    def __init__(self, message: str, result: TrainedVAE) -> None:
        super().__init__(message)
        self.result = result


class NonFiniteError(FloatingPointError):
    """A whole epoch gave only infinite or undefined numbers, so training cannot go on.

    ``result`` is what was trained in the epochs before; None, if it was the first.
    """

    result: TrainedVAE | None = None


class NonFiniteWarning(RuntimeWarning):
    """Some training steps gave infinite or undefined numbers and were skipped."""


class DrawnOnceWarning(UserWarning):
    """The random items of a torch Dataset are drawn once, since it is kept in memory."""


class NotCapturedWarning(RuntimeWarning):
    """The training step could not be captured as a CUDA graph; training goes on without."""


class RunNotWrittenWarning(RuntimeWarning):
    """A part of the run folder could not be written: pictures, or a run that is not finished."""


class OverfittingWarning(UserWarning):
    """The bound of the held-out data was better on the way than at the end."""


class PosteriorCollapseWarning(UserWarning):
    """The KL is near zero: the codes say nothing about the data."""
