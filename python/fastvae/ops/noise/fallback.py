"""The noise reference as the kernel of every device that has none of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastvae.ops.library import kernel
from fastvae.ops.noise import reference, schema
from fastvae.ops.noise.seed import random_seed


@kernel(schema.draw_seed, "CompositeExplicitAutograd")
def draw_seed(*, device: torch.device) -> Tensor:
    """A seed from torch's own generator of the device."""
    return random_seed(device)


def on_any_device(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run the reference where the seed lives, or on the CPU where a device has no float64 (Apple's MPS)."""

    def run(*arguments: Any) -> Tensor:
        device = next(a.device for a in arguments if isinstance(a, Tensor))
        if device.type != "mps":
            return function(*arguments)
        moved = [a.cpu() if isinstance(a, Tensor) else a for a in arguments]
        return function(*moved).to(device)

    return run


for _name in ("normal", "uniform", "permutation", "fold_in"):
    kernel(getattr(schema, _name), "CompositeExplicitAutograd")(on_any_device(getattr(reference, _name)))


def written_over(function: Callable[..., Tensor]) -> Callable[..., None]:
    """Fill the last argument with what the function makes of the others."""

    def run(*arguments: Any) -> None:
        *others, out = arguments
        out.copy_(on_any_device(function)(*others).reshape(out.shape))

    return run


for _name in ("normal", "uniform"):
    kernel(getattr(schema, f"{_name}_into"), "CompositeExplicitAutograd")(
        written_over(getattr(reference, _name))
    )
