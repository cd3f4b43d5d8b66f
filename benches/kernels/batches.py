"""A shuffled batch of 8-bit pixels, gathered and drawn as binary ones."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

import harness
import passes
from comparison import COMPILED, EAGER, FASTVAE, Comparison, Target
from fastvae import functional

ROWS, BATCH, PIXELS = 60_000, 128, 784
SEED = 1
Gather: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def images(rows: int) -> Tensor:
    """Pixels of every level, ``(rows, 784)`` uint8."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (rows, PIXELS), dtype=torch.uint8, generator=generator)


def eager(data: Tensor, index: Tensor) -> Tensor:
    return torch.bernoulli(data[index].float() / 255)


def fused(data: Tensor, index: Tensor) -> Tensor:
    return functional.gather_batch(data, index, data_max=255, binarize="dynamic", seed=SEED)


def candidate(name: str, gather: Gather) -> harness.Candidate:
    """Each call gets the next batch of a shuffled pass, as in training: its rows are not in the cache."""
    check(name, gather)
    data = images(ROWS)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(2))
    batches = itertools.cycle(part for part in order.split(BATCH) if len(part) == BATCH)
    return harness.Candidate(name, lambda index: gather(data, index), lambda: next(batches))


def check(name: str, gather: Gather) -> None:
    """Refuse pixels that are not binary, of other rows, or whose frequencies are not their levels."""
    generator = torch.Generator().manual_seed(3)
    # Black and white pixels have nothing to draw: any other row shows.
    certain = 255 * torch.randint(0, 2, (2 * BATCH, PIXELS), dtype=torch.uint8, generator=generator)
    index = torch.randperm(len(certain), generator=generator)[:BATCH]
    drawn = gather(certain, index)
    if drawn.dtype != torch.float32 or not torch.equal(drawn, (certain[index] == 255).float()):
        raise AssertionError(f"{name}: black and white pixels do not come back as zeros and ones of float32")
    rows, levels = 4096, torch.arange(PIXELS) % 256
    drawn = gather(levels.to(torch.uint8).expand(rows, -1).contiguous(), torch.arange(rows))
    if not bool(((drawn == 0) | (drawn == 1)).all()):
        raise AssertionError(f"{name}: the pixels are not binary")
    pixels = rows * levels.bincount().double()
    frequency = torch.zeros(256, dtype=torch.float64).index_add(0, levels, drawn.double().sum(0)) / pixels
    truth = torch.arange(256).double() / 255
    # Six standard errors: one of the 256 levels is beyond by chance once in a million runs or so.
    wrong = (frequency - truth).abs() > 6 * (truth * (1 - truth) / pixels).sqrt()
    for level in wrong.nonzero().flatten().tolist():
        raise AssertionError(f"{name}: level {level} is drawn {frequency[level]:.4f}, not {truth[level]:.4f}")


COMPARISONS = [
    Comparison(
        name="gather",
        title=f"`gather_batch`, {BATCH} of {ROWS}x{PIXELS} uint8, dynamic binarisation",
        kind="forward",
        candidates={
            EAGER: lambda name: candidate(name, eager),
            COMPILED: lambda name: candidate(name, passes.compiled(eager)),
            FASTVAE: lambda name: candidate(name, fused),
        },
        targets=lambda _: (Target(15),),
    )
]
