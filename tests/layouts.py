"""The layouts that torch's views make of a tensor: what the kernels have to read as it is, or copy."""

from __future__ import annotations

import torch

LAYOUTS = [
    "contiguous",
    "transposed",
    "every other",
    "half of a chunk",
    "expanded",
    "one number",
    "offset",
    "negative",
    "flipped",
]
"""``"expanded"`` repeats the first row, ``"one number"`` the first element: the gradient of ``sum()``."""


def in_layout(values: torch.Tensor, layout: str) -> torch.Tensor:
    """The values (or some of them, repeated) in a layout; a negative one has the opposite values."""
    shape = values.shape
    if layout == "negative" and values.is_floating_point():
        return torch._neg_view(values)
    if not shape or not values.numel():
        return values
    if layout == "transposed":
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "every other":
        return torch.stack([values, values], dim=-1).flatten(-2)[..., ::2]
    if layout == "half of a chunk":
        return torch.cat([values, values], dim=-1).chunk(2, dim=-1)[1]
    if layout == "expanded":
        return values[:1].expand(shape)
    if layout == "one number":
        return values.flatten()[0].expand(shape)
    if layout == "offset":
        return torch.cat([values.flatten()[:1], values.flatten()])[1:].view(shape)
    return values.flip(0) if layout == "flipped" else values
