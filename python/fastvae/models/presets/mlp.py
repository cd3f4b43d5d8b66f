"""Dense layers with ReLU, for samples of any shape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from fastvae.models.presets.networks import Networks

DEFAULT_HIDDEN_DIMS = (400,)


def build(
    input_shape: tuple[int, ...], latent_dim: int, *, maps: int, hidden_dims: tuple[int, ...] | None
) -> Networks:
    """Flatten, hidden layers with ReLU, codes; and back. ``hidden_dims`` are the layers' widths.

    The weights start as torch's ``nn.Linear`` does. See :class:`fastvae.models.presets.Preset`.
    """
    hidden = hidden_dims or DEFAULT_HIDDEN_DIMS
    values = math.prod(input_shape)
    output_shape = input_shape if maps == 1 else (maps, *input_shape)
    encoder = nn.Sequential(nn.Flatten(), *_dense([values, *hidden, 2 * latent_dim]))
    decoder = nn.Sequential(
        *_dense([latent_dim, *reversed(hidden), maps * values]), nn.Unflatten(1, output_shape)
    )
    return Networks(encoder, decoder)


def _dense(widths: Sequence[int]) -> list[nn.Module]:
    """Linear layers through the widths with a ReLU between each two."""
    layers: list[nn.Module] = []
    for width, next_width in pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return layers[:-1]
