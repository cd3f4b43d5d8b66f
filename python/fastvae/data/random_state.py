"""Randomness inside a user's data set, seeded without touching the caller's generators."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class IsolatedRandom:
    """Global random states of our own, swapped in while a user's data set or loader runs.

    Transforms and samplers draw from the global generators of torch, NumPy and Python. Between two uses the
    caller's states are back, so that neither disturbs the other.
    """

    def __init__(self) -> None:
        self._own: _States | None = None

    @contextmanager
    def active(self) -> Iterator[None]:
        """Our states inside the block, going on from the last one; the caller's after it."""
        callers = _states()
        if self._own is not None:
            _restore(self._own)
        try:
            yield
        finally:
            self._own = _states()
            _restore(callers)


def seed_global_generators(seed: int) -> None:
    """Seed the CPU generator of torch, NumPy's global one and Python's with a 64-bit integer."""
    torch.default_generator.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  the global generator is what transforms use
    random.seed(seed)


_States = tuple[torch.Tensor, Any, Any]


def _states() -> _States:
    return torch.random.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002


def _restore(states: _States) -> None:
    torch_state, numpy_state, python_state = states
    torch.random.set_rng_state(torch_state)
    np.random.set_state(numpy_state)  # noqa: NPY002
    random.setstate(python_state)
