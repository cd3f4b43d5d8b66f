"""Every source of randomness in training: streams of one seed, and torch's generators while we hold them."""

from __future__ import annotations

import enum
import operator
from collections.abc import Iterator
from contextlib import contextmanager
from typing import SupportsIndex

import torch
from torch import Tensor

from fastvae import noise
from fastvae.ops.noise.seed import as_int64

__all__ = ["Stream", "as_seed", "derive", "repeatable", "seed_generators"]


class Stream(enum.IntEnum):
    """What randomness is for. The numbers are part of what a seed means: never change or reuse one."""

    WEIGHTS = 1
    """Initial weights, by torch's generator."""
    SPLIT = 2
    """Which samples are held out."""
    SHUFFLE = 3
    """The order of an epoch."""
    SOURCE = 4
    """Randomness inside a data set: augmentation, a DataLoader's own shuffling."""
    BINARIZE = 5
    """Binary pixels drawn from gray ones."""
    LATENT = 6
    """The codes of a training step."""
    MODULES = 7
    """Randomness inside the networks, such as dropout, by torch's generator."""
    EVALUATION = 8
    """The codes of an evaluation."""
    EVALUATION_BINARIZE = 9
    """Binary pixels of an evaluation."""
    PRIOR = 10
    """Codes drawn from the prior."""
    OBSERVATION = 11
    """Samples drawn from the likelihood."""
    POSTERIOR = 12
    """Codes drawn from the posterior by ``encode``."""


def as_seed(value: SupportsIndex) -> int:
    """Give a seed as an int of at most 64 bits, or raise."""
    try:
        seed = operator.index(value)
    except TypeError:
        raise TypeError(f"seed must be a whole number, got {value!r}") from None
    if isinstance(value, bool):
        raise TypeError(f"seed must be a whole number, got {value!r}")
    as_int64(seed)
    return seed


def derive(seed: SupportsIndex, stream: Stream, *path: int) -> int:
    """Give the seed of one stream, and of one epoch or step in it: the tags folded in one after the other."""
    seed = as_seed(seed)
    for tag in (stream, *path):
        seed = noise.fold_in(seed, int(tag))
    return seed


def seed_generators(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of one device, and no other's."""
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[_index(device)].manual_seed(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


@contextmanager
def repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Run a block the same way each time, and leave the caller's random state as it was.

    Inside, torch's generators start from ``seed``, and cuDNN takes only algorithms that give the same bits
    each time.
    """
    generators = _generator_states(device)
    cudnn = torch.backends.cudnn
    flags = cudnn.deterministic, cudnn.benchmark
    seed_generators(seed, device)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.benchmark = flags
        _restore(generators, device)


def _generator_states(device: torch.device) -> list[Tensor]:
    states = [torch.random.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def _restore(states: list[Tensor], device: torch.device) -> None:
    torch.random.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
