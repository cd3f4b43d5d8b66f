"""From what a person passes as a seed to the int64 tensor the operators take."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from fastvae.ops.library import transforms_active
from fastvae.ops.noise import schema
from fastvae.ops.validation import describe

Seed: TypeAlias = int | Tensor | torch.Generator | None
"""An integer, an int64 tensor of one element, a torch.Generator to draw from, or None: torch's own."""


def as_int64(seed: int) -> int:
    """A 64-bit integer, signed or unsigned, as the signed integer with the same bits."""
    if not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must fit in 64 bits (between -2**63 and 2**64 - 1), got {seed}")
    return seed - 2**64 if seed >= 2**63 else seed


def seed_tensor(seed: Seed, device: torch.device) -> Tensor:
    """The seed as an int64 tensor without axes on ``device``.

    ``None`` draws from torch's generator of the device, which ``torch.manual_seed`` governs. Inside
    ``torch.vmap`` that follows vmap's ``randomness`` argument.
    """
    if seed is None:
        if transforms_active():
            return torch.randint(-(2**63), 2**63 - 1, (), dtype=torch.int64, device=device)
        drawn: Tensor = schema.draw_seed(device)
        return drawn
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1:
            raise TypeError(
                f"seed must be an int64 tensor of one element, got {describe(seed)}; "
                "torch.tensor(seed, dtype=torch.int64) makes one"
            )
        return seed.detach().reshape(()).to(device)
    if isinstance(seed, torch.Generator):
        drawn = torch.empty((), dtype=torch.int64, device=seed.device).random_(generator=seed)
        return drawn.to(device)
    if isinstance(seed, bool) or not isinstance(seed, int | torch.SymInt):
        raise TypeError(
            f"seed must be an int, an int64 tensor, a torch.Generator or None, got {describe(seed)}"
        )
    return torch.full((), as_int64(seed), dtype=torch.int64, device=device)
