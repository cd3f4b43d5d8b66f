"""The kernels for CUDA, on a device where there is one, or in Triton's interpreter.

``TRITON_INTERPRET=1 pytest tests/device`` runs them on the CPU. The variable is read when a kernel is
defined, so ``tests/test_triton.py`` starts a process for that. In it the tests give CPU tensors to the
functions behind the operators; with a device they call the operators themselves. Either way results are
compared with the CPU's.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


class NothingToRunOn(pytest.Module):
    """A file whose tests cannot run: one line says so for all of them."""

    def collect(self):
        if importlib.util.find_spec("triton") is None:
            pytest.skip("needs Triton, which torch's CUDA builds bring", allow_module_level=True)
        pytest.skip(
            "needs a CUDA device; tests/test_triton.py runs these in Triton's interpreter",
            allow_module_level=True,
        )


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    if importlib.util.find_spec("triton") and (INTERPRETED or torch.cuda.is_available()):
        return None
    return NothingToRunOn.from_parent(parent, path=module_path)


@pytest.fixture(scope="session", autouse=True)
def _rounded_to_nearest() -> Iterator[None]:
    """Round to bfloat16, and widen it, as devices do: the interpreter cuts off, and errs on subnormals."""
    if not INTERPRETED:
        yield
        return
    from triton.language import bfloat16, float32
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    cast = InterpreterBuilder.cast_impl

    def cast_impl(self, source, target):
        if source.dtype.scalar == float32 and target.scalar == bfloat16:
            halves = torch.from_numpy(source.data).to(torch.bfloat16).view(torch.uint16)
            return TensorHandle(halves.numpy(), bfloat16)
        if source.dtype.scalar == bfloat16 and target.scalar == float32:
            return TensorHandle(torch.from_numpy(source.data).view(torch.bfloat16).float().numpy(), float32)
        return cast(self, source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpreterBuilder, "cast_impl", cast_impl)
        yield


@pytest.fixture(autouse=True)
def _as_quiet_as_a_device() -> Iterator[None]:
    """Let numbers overflow: the interpreter computes in NumPy, which warns."""
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(scope="session")
def device() -> torch.device:
    """Where the tensors of a test live."""
    return torch.device("cpu") if INTERPRETED else torch.device("cuda", torch.cuda.current_device())


@pytest.fixture(scope="session")
def cuda() -> torch.device:
    """A real device, for what the interpreter cannot show."""
    if INTERPRETED:
        pytest.skip("needs a CUDA device: the interpreter has no streams, graphs or compiler")
    return torch.device("cuda", torch.cuda.current_device())


@pytest.fixture
def every_matrix_large(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cut small matrices as large ones are."""
    from fastvae.ops import cuda

    monkeypatch.setattr(cuda, "LARGE", 0)
    cuts = (cuda.tiles, cuda.tiles_of_rows, cuda.tiles_of_likelihood)
    for cut in cuts:
        cut.cache_clear()
    yield
    for cut in cuts:
        cut.cache_clear()


@pytest.fixture(scope="session")
def kernel() -> Callable[..., Callable[..., object]]:
    """From an operator to the callable that runs its kernel for CUDA."""
    from fastvae.ops.cuda import CUDA_KERNELS

    return CUDA_KERNELS.__getitem__ if INTERPRETED else lambda operator: operator
