"""The folder a run is written to while it goes on."""

from __future__ import annotations

import importlib.util
import time
import warnings
from pathlib import Path

from fastvae.data import Data
from fastvae.errors import RunNotWrittenError, RunNotWrittenWarning
from fastvae.training.interrupts import uninterrupted
from fastvae.training.persistence import check_output_dir, remove_pictures
from fastvae.training.progress import Progress
from fastvae.training.result import TrainedVAE

__all__ = ["RunFolder"]

FEWEST_SECONDS = 30.0
WRITING_SHARE = 0.05
"""No more of the time than this goes into writing a run that is not finished."""


class RunFolder:
    """Writes a run now and then while it trains, and at its end with pictures.

    Parameters
    ----------
    path : str or Path
        A new or empty folder, or one with an earlier run, which is replaced at the first write.

    Raises
    ------
    TypeError, ValueError, PermissionError
        See :func:`~fastvae.training.persistence.check_output_dir`.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = check_output_dir(path)
        self._next_write = 0.0

    def start(self) -> None:
        """Make the folder, now that nothing stands against the training."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._next_write = time.monotonic() + FEWEST_SECONDS

    def checkpoint(self, result: TrainedVAE) -> None:
        """Write the run as it stands, if it is time to."""
        started = time.monotonic()
        if started < self._next_write:
            return
        try:
            result.save(self.path)
        except Exception as error:  # whatever a module of the user's own may do when its state is asked for
            warnings.warn(
                f"the run so far could not be written to {self.path} ({error}); training goes on",
                RunNotWrittenWarning,
                stacklevel=2,
            )
        ended = time.monotonic()
        self._next_write = ended + max(FEWEST_SECONDS, (ended - started) / WRITING_SHARE)

    def finish(self, result: TrainedVAE, data: Data, progress: Progress) -> None:
        """Write the run and draw its pictures of ``data``, where Matplotlib is there.

        Whatever happens to the pictures, the run is written by then; Ctrl-C leaves them out.

        Raises
        ------
        RunNotWrittenError
            If the run cannot be written, or Ctrl-C twice cut that; it holds the result.
        """
        written = False
        stopped: BaseException | None = None
        try:
            with uninterrupted():
                try:
                    result.save(self.path)
                    written = True
                except Exception as error:
                    stopped = error
        except KeyboardInterrupt as error:
            stopped = stopped or error
        if not written:
            reason = str(stopped) or type(stopped).__name__
            lost = RunNotWrittenError(f"the run could not be written to {self.path} ({reason})", result)
            lost.add_note("the trained model is in this error: error.result.save(another_folder)")
            raise lost from stopped
        if stopped is not None:
            progress.say("interrupted while writing; the run is written, its pictures are missing")
            return
        progress.say(f"run folder: {self.path}")
        try:
            _draw(result, data, self.path, progress)
        except KeyboardInterrupt:
            progress.say("interrupted while drawing; the run is written, some pictures are missing")
        except Exception as error:  # a trained model is not lost for want of a picture
            warnings.warn(
                f"the pictures could not be drawn: {type(error).__name__}: {error}",
                RunNotWrittenWarning,
                stacklevel=3,
            )


def _draw(result: TrainedVAE, data: Data, folder: Path, progress: Progress) -> None:
    remove_pictures(folder)  # of an earlier run
    if importlib.util.find_spec("matplotlib") is None:
        progress.say('no pictures without Matplotlib: pip install "fastvae[plots]" draws them')
        return
    from fastvae.plots import write_pictures  # noqa: PLC0415  needs the extra, and is slow

    write_pictures(result, data, folder)
