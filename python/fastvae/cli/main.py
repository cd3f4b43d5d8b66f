"""From a command line to an exit code."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from fastvae.cli.codes import FAILED, INTERRUPTED, OK, WRONG_USE
from fastvae.cli.parser import build_parser, reject_unknown_options

_USERS_MISTAKE = (
    ValueError,
    TypeError,
    ImportError,
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the ``fastvae`` command.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the program's name; by default those of the process.

    Returns
    -------
    int
        0: fine; 1: failed at run time; 2: wrong use (a bad option, a missing file, data that does not fit);
        130: interrupted, after writing what there is. Errors go to standard error, without a traceback unless
        ``--traceback`` asks for it.

    Raises
    ------
    SystemExit
        With one of these codes, after ``--help``, ``--version`` or options that do not exist.
    """
    parser = build_parser()
    options, unknown = parser.parse_known_args(arguments)
    if unknown:
        reject_unknown_options(parser, options, unknown)
    try:
        with _warnings_as_lines():
            return _run(options)
    except KeyboardInterrupt:
        _say("interrupted")
        return INTERRUPTED
    except BrokenPipeError:  # whoever reads the output, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (*_USERS_MISTAKE, OSError, RuntimeError, ArithmeticError, MemoryError) as error:
        if options.traceback:
            raise
        _say("\n".join([f"error: {_text(error)}", *getattr(error, "__notes__", [])]))
        return WRONG_USE if isinstance(error, _USERS_MISTAKE) else FAILED


def _run(options: Namespace) -> int:
    """Import the command, and torch with it, and run it."""
    command: Any = importlib.import_module(f"fastvae.cli.{options.command}")
    code: int = command.run(options)
    sys.stdout.flush()
    return code


def _text(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


@contextmanager
def _warnings_as_lines() -> Iterator[None]:
    """Show warnings as one line each, without a place in the source."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
        yield


def _say(line: str) -> None:
    print(line, file=sys.stderr)
