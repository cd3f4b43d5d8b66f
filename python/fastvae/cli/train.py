"""``fastvae train``."""

from __future__ import annotations

import itertools
import signal
import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastvae.cli.codes import INTERRUPTED, OK
from fastvae.training import train
from fastvae.training.interrupts import AsCtrlC
from fastvae.training.ranks import is_first

_NOT_FOR_TRAIN = {"command", "traceback", "known_options", "data", "output_dir"}


def run(options: Namespace) -> int:
    """Train, and leave a run folder."""
    if "resume" in options and not options.output_dir:
        raise ValueError("--resume goes on with the run in a folder: name it with -o FOLDER")
    folder = Path(options.output_dir) if options.output_dir else _new_folder(options.data)
    arguments = {name: value for name, value in vars(options).items() if name not in _NOT_FOR_TRAIN}
    with _as_ctrl_c(signal.SIGTERM):
        result = train(options.data, output_dir=folder, **arguments)
    if not arguments.get("progress", True) and is_first():
        print(folder)
    return INTERRUPTED if result.interrupted else OK


@contextmanager
def _as_ctrl_c(number: signal.Signals) -> Iterator[None]:
    """Let a signal, as a scheduler or a container sends it, end the training with what there is."""
    before = signal.getsignal(number)
    if threading.current_thread() is not threading.main_thread() or before is not signal.SIG_DFL:
        yield
        return
    signal.signal(number, AsCtrlC())
    try:
        yield
    finally:
        signal.signal(number, before)


def _new_folder(data: str) -> Path:
    """Name ``runs/NAME`` after the data, or the first free one of ``runs/NAME-2``, ``runs/NAME-3``, ..."""
    name = Path(data).resolve().name.split(".")[0] or "run"
    names = itertools.chain([name], (f"{name}-{number}" for number in itertools.count(2)))
    return next(folder for folder in (Path("runs") / name for name in names) if _is_free(folder))


def _is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
