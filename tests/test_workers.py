"""Threads and processes: the operations use torch's threads, and do without them in a forked worker."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fastvae import functional as F
from fastvae import noise

SHAPE = (600, 700)


def operations() -> dict[str, Callable[[], tuple[Tensor, ...]]]:
    """Every forward operation, on enough elements for several threads where it has them."""
    generator = torch.Generator().manual_seed(1)
    mu, logvar = (torch.randn(SHAPE, generator=generator) for _ in range(2))
    pixels = torch.randint(0, 256, SHAPE, dtype=torch.uint8, generator=generator)
    index = torch.arange(SHAPE[0]).flip(0)
    free = {"free_bits": 0.5, "group_size": 7}
    return {
        "reparametrize": lambda: (F.reparametrize(mu, logvar, seed=1),),
        "gaussian_kl": lambda: (
            *(F.gaussian_kl(mu, logvar, reduction=r) for r in ("none", "sample", "dimension", "sum")),
            F.gaussian_kl(mu, logvar, logvar, mu),
            F.gaussian_kl(mu, logvar, **free),
        ),
        "reparametrize_kl": lambda: (
            *F.reparametrize_kl(mu, logvar, seed=1),
            *F.reparametrize_kl(mu, logvar, seed=1, **free),
        ),
        "reparametrize_log_weight": lambda: F.reparametrize_log_weight(mu, logvar, num_samples=3, seed=1),
        "bernoulli_log_prob": lambda: (F.bernoulli_log_prob(mu, pixels, target_max=255),),
        "gaussian_log_prob": lambda: (
            F.gaussian_log_prob(mu, logvar, pixels, target_max=255),
            F.gaussian_log_prob(mu, 0.5, pixels, target_max=255),
        ),
        "gather_batch": lambda: (
            F.gather_batch(pixels, index, data_max=255),
            F.gather_batch(pixels, index, data_max=255, binarize="dynamic", seed=1),
        ),
        "normal": lambda: (noise.normal(SHAPE, 1),),
        "uniform": lambda: (noise.uniform(SHAPE, 1),),
        "permutation": lambda: (noise.permutation(1000, 1),),
        "fold_in": lambda: (noise.fold_in(torch.tensor(1), 2),),
    }


def bits(name: str) -> list[bytes]:
    # Without torch's arithmetic, which would wait for threads that a worker has not inherited.
    return [result.numpy().tobytes() for result in operations()[name]()]


def test_the_list_of_operations_is_complete() -> None:
    assert set(operations()) == {*F.__all__, *noise.__all__} - {"Reduction", "Seed"}


class Calls(Dataset):
    """A data set whose samples are an operation's results, as a worker gets them."""

    def __init__(self, expected: dict[str, list[bytes]], threads: int) -> None:
        self.expected, self.threads = expected, threads

    def __len__(self) -> int:
        return len(self.expected)

    def __getitem__(self, index: int) -> tuple[str, bool, int]:
        torch.set_num_threads(self.threads)
        name = list(self.expected)[index]
        return name, bits(name) == self.expected[name], os.getpid()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("wanted", [1, 2], ids=lambda count: f"{count} threads")
def test_every_operation_works_in_a_forked_worker_of_a_dataloader(wanted, threads):
    """It gives the parent's bits, whose threads were at work before; a hang would run into the limit.

    torch gives a worker one thread; one that asks for more must not wait for those of its parent.
    """
    threads(2)
    expected = {name: bits(name) for name in operations()}
    loader = DataLoader(
        Calls(expected, wanted), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60
    )
    results = list(loader)
    assert [(name, same) for name, same, _ in results] == [(name, True) for name in expected]
    assert os.getpid() not in {process for _, _, process in results}


CALLS = """
import os, sys, time
sys.path.insert(0, {tests!r})
import torch
from test_workers import operations
torch.set_num_threads(2)
torch.ones(2**22).mul_(2)
calls = list(operations().values())
for call in calls:
    call()
if {forked!r} and (child := os.fork()):
    sys.exit(os.waitpid(child, 0)[1])
print(os.getpid(), flush=True)
sys.stdin.readline()
end = time.monotonic() + 1.5
while time.monotonic() < end:
    for call in calls:
        call()
"""


def threads_seen(*, forked: bool) -> tuple[set[str], set[str]]:
    """The threads of a process whose torch has started its own, and those that appear while it computes."""
    script = CALLS.format(tests=str(Path(__file__).parent), forked=forked)
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        tasks = Path("/proc") / process.stdout.readline().strip() / "task"
        before = {task.name for task in tasks.iterdir()}
        process.stdin.write("\n")
        process.stdin.flush()
        seen: set[str] = set()
        end = time.monotonic() + 1
        while time.monotonic() < end:
            seen |= {task.name for task in tasks.iterdir()}
    assert process.returncode == 0
    return before, seen


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the threads of a process in /proc")
def test_no_call_starts_a_thread_where_torchs_are_there():
    before, seen = threads_seen(forked=False)
    assert len(before) > 1
    assert seen == before
    # In a forked child they are not there: calls start threads of their own, and this is how they are seen.
    before, seen = threads_seen(forked=True)
    assert len(before) == 1
    assert seen > before
