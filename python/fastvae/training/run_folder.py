"""The folder a run is written to while it goes on."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fastvae.data import Data
from fastvae.errors import FileFormatError, RunNotWrittenError, RunNotWrittenWarning
from fastvae.training.interrupts import uninterrupted
from fastvae.training.persistence import (
    METRICS,
    check_output_dir,
    is_run,
    read_metrics,
    remove_pictures,
    temporaries,
)
from fastvae.training.progress import Progress
from fastvae.training.result import TrainedVAE
from fastvae.training.resumption import STATE, TrainingState, read_state, remove_state

__all__ = ["RunFolder"]

FEWEST_SECONDS = 30.0
FEWEST_SECONDS_KEPT = 1.0
WRITING_SHARE = 0.05
"""No more of the time than this goes into writing a run that is not finished, and into copying its state."""


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
        self._next_copy = 0.0
        self._take: Callable[[], TrainingState] | None = None
        """Copies the state after the last whole epoch, while nothing is trained."""
        self._copy: TrainingState | None = None
        """One that was not written yet."""
        self._reached: int | None = None
        """The epoch of the state in the folder, if that is one of this run."""
        self._held: int | None = None

    def state(self) -> TrainingState | None:
        """Read the state of an earlier run; None if there is no run, or not an epoch of one.

        Raises
        ------
        FileFormatError
            If a run is there without one, or it is damaged.
        """
        if not is_run(self.path):
            return None
        if not (self.path / STATE).exists() and not read_metrics(self.path / METRICS):
            return None
        state = read_state(self.path)
        self._reached = len(state.history)
        return state

    def holds(self) -> str | None:
        """Say what run there is, if a new one replaces it."""
        try:
            history = read_metrics(self.path / METRICS) if is_run(self.path) else []
        except (OSError, FileFormatError):  # it is replaced, whatever it is
            history = []
        if not history:
            return None
        return f"replaces the run of {len(history)} epochs in {self.path}; resume goes on with it"

    def start(self) -> None:
        """Make the folder, now that nothing stands against the training.

        Raises
        ------
        ValueError
            If another training writes to it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._held = _held(self.path)
        for left in temporaries(self.path):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                with suppress(OSError):
                    left.unlink()
        self._next_write = time.monotonic() + FEWEST_SECONDS

    def close(self) -> None:
        """Let others write to the folder."""
        if self._held is not None:
            _let_go(self._held)
            self._held = None

    def checkpoint(self, result: TrainedVAE, take: Callable[[], TrainingState]) -> None:
        """Write the run as it stands, or keep a copy of its state, if it is time to.

        Parameters
        ----------
        result : TrainedVAE
            The run so far; without an epoch it is not written.
        take : callable
            Copies the state of the training.
        """
        self._take = take
        started = time.monotonic()
        writes = bool(result.history) and started >= self._next_write
        if not writes and started < self._next_copy:
            return
        try:
            with uninterrupted():
                problem = self._copied(take)
                if writes:
                    problem = problem or self._write_state()
                    self._save(result)
                if problem is not None:
                    raise problem
        except Exception as error:  # whatever a module of the user's own may do when its state is asked for
            warnings.warn(
                f"the run so far could not be written to {self.path} ({error}); training goes on",
                RunNotWrittenWarning,
                stacklevel=2,
            )
        if writes:
            self._next_write = _next(started, FEWEST_SECONDS)
        self._next_copy = _next(started, FEWEST_SECONDS_KEPT)

    def rescue(self) -> int | None:
        """Write a copy that was not written yet, as far as that goes, when an error ends a training.

        Returns
        -------
        int or None
            After which epoch the run in the folder can be gone on with, if it can.
        """
        if self._copy is not None and self._copy.history:
            self._write_state()
        return self._reached

    def _copied(self, take: Callable[[], TrainingState]) -> Exception | None:
        """Copy the state, or say why not."""
        self._copy = None  # a large model has no room for two
        try:
            self._copy = take()
        except Exception as error:
            return error
        return None

    def _write_state(self) -> Exception | None:
        """Write the copy, or say why not: no model is lost for want of it."""
        if self._copy is None:
            return None
        try:
            self._copy.write(self.path)
        except Exception as error:
            return error
        self._reached = len(self._copy.history)
        self._copy = None
        return None

    def _save(self, result: TrainedVAE) -> None:
        """Write the run, after its state: whatever ends the process in between, there is none without."""
        result.save(self.path)
        if self._reached is None:
            remove_state(self.path)  # of an earlier run

    def _write_last_state(self, *, interrupted: bool) -> Exception | None:
        # After Ctrl-C the model may be anywhere in an epoch, or in a step.
        problem = None if interrupted or self._take is None else self._copied(self._take)
        return problem or self._write_state()

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
        without_state: Exception | None = None
        try:
            with uninterrupted():
                try:
                    without_state = self._write_last_state(interrupted=result.interrupted)
                    self._save(result)
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
        if without_state is not None:
            warnings.warn(
                f"the run was written to {self.path}, but not what it takes to resume it ({without_state})",
                RunNotWrittenWarning,
                stacklevel=3,
            )
        if stopped is not None:
            progress.say("interrupted while writing; the run is written, its pictures are missing")
            return
        progress.say(f"run folder: {self.path}")
        if result.interrupted and self._reached is not None:
            progress.say(f"resume goes on with it after epoch {self._reached}")
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


def _held(folder: Path) -> int | None:
    """Hold a folder until what is given is closed, or the process ends; None where that cannot be done."""
    if sys.platform == "win32":
        return None
    import fcntl  # noqa: PLC0415  not there

    try:
        held = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        raise ValueError(
            f"another training writes to {folder} just now: end it, or choose another output_dir"
        ) from None
    except OSError:  # a file system without locks
        os.close(held)
        return None
    return held


def _let_go(held: int) -> None:
    if sys.platform != "win32":
        import fcntl  # noqa: PLC0415  not there

        with suppress(OSError):
            fcntl.flock(held, fcntl.LOCK_UN)  # a process that was forked meanwhile has it too
    os.close(held)


def _next(started: float, fewest_seconds: float) -> float:
    """When to do again what began then and has ended now."""
    ended = time.monotonic()
    return ended + max(fewest_seconds, (ended - started) / WRITING_SHARE)


def _draw(result: TrainedVAE, data: Data, folder: Path, progress: Progress) -> None:
    remove_pictures(folder)  # of an earlier run
    if importlib.util.find_spec("matplotlib") is None:
        progress.say('no pictures without Matplotlib: pip install "fastvae[plots]" draws them')
        return
    from fastvae.plots import write_pictures  # noqa: PLC0415  needs the extra, and is slow

    write_pictures(result, data, folder)
