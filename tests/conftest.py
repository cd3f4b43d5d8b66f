"""What all tests share."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.utils._python_dispatch import TorchDispatchMode

pytest.register_assert_rewrite("adam_tests")

settings.register_profile(
    "fastvae",
    deadline=None,  # times are measured in benches/, never in tests
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("fastvae")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Give every test the same torch randomness, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture
def threads():
    """A function that sets torch's thread count, undone at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


class Watch(TorchDispatchMode):
    """A mode that keeps the names of the operators it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.fixture
def watch():
    """A mode that sees the operators called within it, by name in ``seen``."""
    return Watch()
