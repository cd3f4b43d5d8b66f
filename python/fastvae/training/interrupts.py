"""Ctrl-C, where it must not come between."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["uninterrupted"]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A block at whose end Ctrl-C comes, if it was pressed in it; pressed a second time it comes at once.

    In other threads than the main one, which it never reaches, and where it is ignored, nothing is done.
    """
    before = signal.getsignal(signal.SIGINT)
    main = threading.current_thread() is threading.main_thread()
    if not main or not callable(before) or isinstance(before, _Later):
        yield
        return
    later = _Later(before)
    try:
        signal.signal(signal.SIGINT, later)
    except ValueError:  # an interpreter that takes another thread for the main one
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if later.pressed:
            # Not the signal once more, which an event loop would count as a second one.
            before(signal.SIGINT, sys._getframe())


class _Later:
    """A handler that takes note once, and then hands over to the one before."""

    def __init__(self, before: Callable[[int, FrameType | None], object]) -> None:
        self.before = before
        self.pressed = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            self.pressed = False
            self.before(number, frame)
        else:
            self.pressed = True
