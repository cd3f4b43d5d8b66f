"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["new_folder", "replacing"]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary file to write to, which takes the place of ``path`` at the end of the block.

    Whatever fails inside, ``path`` is left as it was and the temporary file is removed. The new file has the
    mode that the umask gives to any file.

    Raises
    ------
    OSError
        Before the block, if ``path`` is a folder, or no file can be made in its place. One from inside the
        block gets the name of ``path``, if it has none.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    temporary = _beside(path)
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None
    mode = temporary.stat().st_mode
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors keeps others out
        with temporary.open("r+b") as written:  # Windows flushes no file that is open for reading
            os.fsync(written.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in {None, str(temporary)}:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder to fill, which is called ``path`` from the end of the block on.

    Whatever fails inside, there is no ``path`` and the temporary folder is removed. Missing folders above are
    made.

    Raises
    ------
    ValueError
        If ``path`` exists.
    """
    if path.exists():
        raise ValueError(f"{path} exists already; choose a new folder")
    temporary = _beside(path)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
