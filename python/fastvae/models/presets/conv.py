"""Strided convolutions for images of any size, odd ones included, with any number of channels."""

from __future__ import annotations

import math

from torch import nn

from fastvae.models.presets.networks import Networks

FIRST_CHANNELS, MOST_CHANNELS = 32, 256
COLOURS = {1, 3, 4}
SMALLEST_SIDE = 4
"""By default the image is halved until its longer side is no longer than this."""


def build(
    input_shape: tuple[int, ...], latent_dim: int, *, maps: int, hidden_dims: tuple[int, ...] | None
) -> Networks:
    """Stages that halve the image, codes, and stages that double it back to the exact size.

    ``hidden_dims`` are the channels of the stages, by default 32, 64, 128, 256, 256, ... for as many stages
    as bring the image to 4x4. ``(H, W)`` is an image of one channel. See
    :class:`fastvae.models.presets.Preset`.
    """
    if len(input_shape) not in {2, 3}:
        raise ValueError(
            f'model="conv" needs images of shape (C, H, W) or (H, W), got samples of shape {input_shape}; '
            'model="mlp" takes any shape'
        )
    if len(input_shape) == 3 and input_shape[2] in COLOURS and min(input_shape[:2]) > max(COLOURS):
        raise ValueError(
            f'model="conv" needs the channels first, (C, H, W), and samples of shape {input_shape} look like '
            "(H, W, C): give it x.transpose(0, 3, 1, 2), of a tensor x.permute(0, 3, 1, 2)"
        )
    image = (1, *input_shape) if len(input_shape) == 2 else input_shape
    channels = list(hidden_dims or _default_channels(max(image[1:])))
    sizes = [image[1:]]
    for _ in channels:
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    code_shape = (channels[-1], *sizes[-1])
    output_shape = input_shape if maps == 1 else (maps, *input_shape)

    encoder: list[nn.Module] = [nn.Unflatten(1, (1, input_shape[0]))] if len(input_shape) == 2 else []
    for before, after in zip([image[0], *channels], channels, strict=False):
        encoder += [nn.Conv2d(before, after, kernel_size=3, stride=2, padding=1), nn.ReLU()]
    encoder += [nn.Flatten(), nn.Linear(math.prod(code_shape), 2 * latent_dim)]

    decoder: list[nn.Module] = [
        nn.Linear(latent_dim, math.prod(code_shape)),
        nn.ReLU(),
        nn.Unflatten(1, code_shape),
    ]
    stages = zip(
        reversed(channels), [*reversed(channels[:-1]), maps * image[0]], reversed(sizes[:-1]), strict=True
    )
    for before, after, size in stages:
        decoder += [_doubling(before, after, size), nn.ReLU()]
    decoder[-1] = nn.Flatten()
    decoder.append(nn.Unflatten(1, output_shape))
    return Networks(nn.Sequential(*encoder), nn.Sequential(*decoder))


def _doubling(before: int, after: int, size: tuple[int, ...]) -> nn.ConvTranspose2d:
    """Double an image to exactly ``size``: a side of n becomes 2n with a kernel of 4, 2n - 1 with 3."""
    height, width = (3 if side % 2 else 4 for side in size)
    return nn.ConvTranspose2d(before, after, kernel_size=(height, width), stride=2, padding=1)


def _default_channels(side: int) -> list[int]:
    channels = [FIRST_CHANNELS]
    while (side := (side + 1) // 2) > SMALLEST_SIDE:
        channels.append(min(2 * channels[-1], MOST_CHANNELS))
    return channels
