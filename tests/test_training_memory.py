"""What a step of a training frees is there for the next one."""

import platform
import subprocess
import sys

import numpy as np
import pytest

from fastvae.training import loop, train

# In a process of its own: what the C library has learned from other tests would hide the difference.
STEPS = """
import resource, sys
import torch
from fastvae.training.memory import keep_freed_memory

def step():
    gradients = [torch.ones(784, 400) for _ in range(2)]

if sys.argv[1] == "keep":
    keep_freed_memory()
step()
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages_cleared(keep):
    command = [sys.executable, "-c", STEPS, keep]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what glibc does")
def test_the_system_clears_few_pages_twice():
    """Of three runs each, since where a block comes to lie is a matter of chance."""
    kept = min(pages_cleared("keep") for _ in range(3))
    assert kept < max(pages_cleared("as it is") for _ in range(3)) / 2


def test_a_training_on_the_cpu_keeps_it(monkeypatch):
    calls = []
    monkeypatch.setattr(loop, "keep_freed_memory", lambda: calls.append(None))
    train(
        np.zeros((8, 3), np.float32), epochs=1, latent_dim=2, hidden_dims=(4,), progress=False, device="cpu"
    )
    assert len(calls) == 1
