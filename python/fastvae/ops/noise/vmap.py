"""Batching rules: inside ``torch.vmap`` a batch of seeds gives a batch of noise.

With one seed for all, every example of the batch gets the noise it would get alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastvae.ops.library import LIBRARY
from fastvae.ops.noise import schema


def one_by_one(operator: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, int | None]]:
    """The rule that calls the operator once per example and stacks the results."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
        examples = [
            operator(
                *(a if dim is None else a.select(dim, i) for a, dim in zip(arguments, in_dims, strict=True))
            )
            for i in range(info.batch_size)
        ]
        return torch.stack(examples), 0

    return rule


for _name in ("normal", "uniform", "permutation", "fold_in"):
    torch.library.register_vmap(f"fastvae::{_name}", one_by_one(getattr(schema, _name)), lib=LIBRARY)
