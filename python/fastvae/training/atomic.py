"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

__all__ = ["leftovers", "new_folder", "replacing", "replacing_together"]


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
    with replacing_together(path) as (temporary,):
        yield temporary


@contextmanager
def replacing_together(*paths: Path) -> Iterator[list[Path]]:
    """Give a temporary file for each path, as :func:`replacing` does: all take their places, or none does.

    None is renamed before all are written. Should a rename fail, what the others replaced is put back; for
    that the old files are kept in memory but for the last one, which may be large.

    Raises
    ------
    OSError
        As of :func:`replacing`. One without a name from inside the block gets that of the first path.
    """
    for path in paths:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    places = {_beside(path): path for path in paths}
    try:
        for temporary, path in places.items():
            with _told_of(path):
                temporary.touch(exist_ok=False)
        modes = [temporary.stat().st_mode for temporary in places]
        with _told_of(paths[0], {str(temporary): path for temporary, path in places.items()}):
            yield list(places)
        for (temporary, path), mode in zip(places.items(), modes, strict=True):
            with _told_of(path):
                temporary.chmod(mode)  # safetensors keeps others out
                with temporary.open("r+b") as written:  # Windows flushes no file that is open for reading
                    os.fsync(written.fileno())
        _rename(places)
    finally:
        for temporary in places:
            temporary.unlink(missing_ok=True)


def _rename(places: Mapping[Path, Path]) -> None:
    replaced = list[tuple[Path, bytes | None]]()
    *but_the_last, _ = places.values()
    old = [path.read_bytes() if path.exists() else None for path in but_the_last]
    try:
        for (temporary, path), content in zip(places.items(), [*old, None], strict=True):
            with _told_of(path):
                temporary.replace(path)
            replaced.append((path, content))
    except BaseException:
        for path, content in replaced:
            if content is None:
                path.unlink()
            else:
                with replacing(path) as temporary:
                    temporary.write_bytes(content)
        raise


@contextmanager
def _told_of(path: Path, temporaries: Mapping[str, Path] | None = None) -> Iterator[None]:
    """Have an OSError name the file that the caller knows of, not the temporary one."""
    try:
        yield
    except OSError as error:
        if temporaries is None:
            error.filename = str(path)
        elif error.errno is not None and (error.filename is None or error.filename in temporaries):
            error.filename = str(temporaries.get(error.filename, path))
        raise


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


def leftovers(path: Path) -> list[Path]:
    """The temporary files and folders of this file that a process left when it was killed."""
    name = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.tmp(\.d)?")
    return [beside for beside in path.parent.iterdir() if name.fullmatch(beside.name)]


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
