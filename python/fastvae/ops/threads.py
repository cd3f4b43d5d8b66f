"""The kernels' threads: torch's own, so that two sets of threads never fight for the same cores."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch

from fastvae import _core

LIBTORCH = {"linux": "libtorch_cpu.so", "darwin": "libtorch_cpu.dylib", "win32": "torch_cpu.dll"}
"""The library that holds torch's stable C interface, by ``sys.platform``."""


def share_torchs() -> bool:
    """Let the kernels run on torch's threads; False where this torch does not offer them.

    The kernels then start threads of their own, for large work only.
    """
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / LIBTORCH[sys.platform]))
        function = library.torch_parallel_for
    except (KeyError, OSError, AttributeError):
        return False
    _core.use_torch_threads(ctypes.cast(function, ctypes.c_void_p).value or 0)
    return True
