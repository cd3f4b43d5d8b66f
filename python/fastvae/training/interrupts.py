"""Ctrl-C, where it must not come between."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["AsCtrlC", "deadly", "uninterrupted"]


@contextmanager
def uninterrupted() -> Iterator[None]:
    """A block at whose end Ctrl-C comes, if it was pressed in it; pressed a second time it comes at once.

    So does SIGTERM, where a function handles it. In other threads than the main one, which no signal ever
    reaches, nothing is done, nor for a signal that is ignored.
    """
    handled = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    later = {
        number: _Later(before)
        for number, before in handled.items()
        if callable(before) and not isinstance(before, _Later)
    }
    if not later or threading.current_thread() is not threading.main_thread():
        yield
        return
    try:
        for number, handler in later.items():
            signal.signal(number, handler)
    except ValueError:  # an interpreter that takes another thread for the main one
        yield
        return
    try:
        yield
    finally:
        for number, handler in later.items():
            signal.signal(number, handler.before)
        for number, handler in later.items():
            if handler.pressed:
                # Not the signal once more, which an event loop would count as a second one.
                handler.before(number, sys._getframe())


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


class AsCtrlC:
    """A handler that ends a training by another signal than that of Ctrl-C."""

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Raise what Ctrl-C raises."""
        # Not Ctrl-C itself, which is ignored in the background of a shell.
        raise KeyboardInterrupt


@contextmanager
def deadly() -> Iterator[None]:
    """A block before anything is trained, in which the signal of :class:`AsCtrlC` ends the process at once.

    Where a process waits in C++, a handler in Python is not called.
    """
    handler = signal.getsignal(signal.SIGTERM)
    if not isinstance(handler, AsCtrlC) or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
