"""From what a person passes as a seed to the int64 tensor the operators take."""

from __future__ import annotations

import contextlib
import operator
from typing import NamedTuple, SupportsIndex, TypeAlias, cast

import torch
from torch import Tensor

from fastvae.ops.library import transforms_active
from fastvae.ops.noise import schema
from fastvae.ops.validation import describe

Seed: TypeAlias = SupportsIndex | Tensor | torch.Generator | None
"""An integer (also NumPy's), an int64 tensor of one element, a torch.Generator, or None: torch's own."""


class UnchangingSeed(NamedTuple):
    """A seed that nobody counts on before backward: in a small step its copy takes as long as a layer."""

    tensor: Tensor
    """int64, without axes, on the device of the data."""


SEED_RANGE = (-(2**63), 2**63 - 1)
"""Between which default seeds are drawn, the upper end excluded as torch has it."""


def as_int64(seed: int) -> int:
    """A 64-bit integer, signed or unsigned, as the signed integer with the same bits."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit in 64 bits (between -2**63 and 2**64 - 1), got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def random_seed(device: torch.device, generator: torch.Generator | None = None) -> Tensor:
    """A seed from a generator of torch, by default the one that ``torch.manual_seed`` governs."""
    return torch.randint(*SEED_RANGE, (), generator=generator, dtype=torch.int64, device=device)


def seed_tensor(seed: Seed | UnchangingSeed, device: torch.device) -> Tensor:
    """The seed as an int64 tensor without axes on ``device``, independent of the one that was given.

    ``None`` draws from torch's generator of the device, which ``torch.manual_seed`` governs. Inside
    ``torch.vmap`` that follows vmap's ``randomness`` argument.
    """
    if isinstance(seed, UnchangingSeed):
        return seed.tensor
    if seed is None:
        if torch.compiler.is_compiling() and not transforms_active():
            # Compiled code has random numbers of its own; an operator that it cannot see into has eager's.
            drawn: Tensor = schema.draw_seed(device=device)
            return drawn
        return random_seed(device)
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(
                f"seed must be an int64 tensor of one element, got {describe(seed)}; "
                "torch.tensor(seed, dtype=torch.int64) makes one"
            )
        if seed.is_meta and device.type != "meta":
            raise ValueError(
                f"seed is on {seed.device}, where tensors have no values, and the data on {device}"
            )
        # A copy: backward draws the noise again, and the caller may count the tensor on before that.
        copy = seed.clone() if seed.dim() == 0 else seed.reshape(()).clone()
        return copy if copy.device == device else copy.to(device)
    if isinstance(seed, torch.Generator):
        return random_seed(seed.device, seed).to(device)
    if not isinstance(seed, int):
        with contextlib.suppress(TypeError):
            seed = operator.index(seed)
    if isinstance(seed, bool) or not isinstance(seed, int | torch.SymInt):
        raise TypeError(
            f"seed must be an int, an int64 tensor, a torch.Generator or None, got {describe(seed)}"
        )
    return torch.full((), as_int64(cast("int", seed)), dtype=torch.int64, device=device)
