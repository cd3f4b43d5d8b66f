"""Where a model runs, and what around a call does not reach it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch

from fastvae.training.ranks import local_rank

__all__ = ["choose_device", "in_float32", "undisturbed"]


KINDS = ("cpu", "cuda", "mps")


def undisturbed() -> AbstractContextManager[object]:
    """A block that ``autocast`` and ``inference_mode`` around it do not reach.

    Where there are none, which is nearly always, it costs nothing.
    """
    cast = [kind for kind in KINDS if torch.is_autocast_enabled(kind)]
    if not cast and not torch.is_inference_mode_enabled():
        return NOTHING
    stack = ExitStack()
    stack.enter_context(torch.inference_mode(mode=False))
    for kind in cast:
        stack.enter_context(torch.autocast(kind, enabled=False))
    return stack


NOTHING = nullcontext()


@contextmanager
def in_float32() -> Iterator[None]:
    """A block in which new tensors are float32, whatever ``torch.set_default_dtype`` said before."""
    before = torch.get_default_dtype()
    if before is torch.float32:  # it is one for all threads: left alone wherever that does
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def choose_device(device: str | torch.device) -> torch.device:
    """Find the device for a name.

    Parameters
    ----------
    device : str or torch.device
        ``"auto"`` is the first of CUDA, MPS and the CPU that is there. Of several processes on a machine each
        has a CUDA device of its own, where there are as many.

    Raises
    ------
    TypeError, ValueError
        For something that names no device, or a device this machine does not have.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", _own_cuda_index())
        alone = local_rank() is None
        return torch.device("mps" if alone and torch.backends.mps.is_available() else "cpu")
    if not isinstance(device, str | torch.device):
        raise TypeError(f'device must be a name such as "auto" or "cpu", got {type(device).__name__}')
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f'device must be "auto", "cpu", "cuda", "cuda:1" or "mps", got {device!r}') from None
    if chosen.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (chosen.index or 0) >= count:
            raise ValueError(
                f'{chosen} is not there: torch {torch.__version__} sees {count} CUDA devices; use "auto"'
            )
        return torch.device("cuda", _own_cuda_index() if chosen.index is None else chosen.index)
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError('mps is not there: it needs macOS on Apple silicon; use "auto"')
    if chosen.type not in {"cpu", "mps"}:
        raise ValueError(f'device must be "auto", "cpu", "cuda" or "mps", got {device!r}')
    return chosen


def _own_cuda_index() -> int:
    """The device that torch has chosen, or else the one whose number this process has on its machine."""
    current, own = torch.cuda.current_device(), local_rank()
    if current or own is None or own >= torch.cuda.device_count():
        return current
    return own
