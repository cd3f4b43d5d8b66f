"""What a step of a training frees is there for the next one."""

import ctypes
import platform
import subprocess
import sys

import numpy as np
import pytest

from fastvae.training import loop, train

# In a process of its own: what the C library has learned from other tests would hide the difference. It is
# asked what it has, as page faults are a matter of the system too.
STEPS = """
import ctypes
import torch
from fastvae.training.memory import keep_freed_memory

class Mallinfo2(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    ).split()]

mallinfo2 = ctypes.CDLL(None).mallinfo2
mallinfo2.restype = Mallinfo2

def kept():
    gradients = [torch.ones(784, 400) for _ in range(2)]
    free = mallinfo2().fordblks
    gradients.clear()
    return mallinfo2().fordblks - free

keep_freed_memory()
kept()
kept()
print(min(kept() for _ in range(20)))
"""
FREED = 2 * 784 * 400 * 4


def least_kept():
    command = [sys.executable, "-c", STEPS]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"),
    reason="what glibc does, as it says from 2.33 on",
)
def test_what_a_step_frees_stays():
    """In each of three runs: otherwise a run in two or so gives some back, by where blocks come to lie."""
    assert min(least_kept() for _ in range(3)) >= FREED


def test_a_training_on_the_cpu_keeps_it(monkeypatch):
    calls = []
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: calls.append(None))
    train(
        np.zeros((8, 3), np.float32), epochs=1, latent_dim=2, hidden_dims=(4,), progress=False, device="cpu"
    )
    assert len(calls) == 1
