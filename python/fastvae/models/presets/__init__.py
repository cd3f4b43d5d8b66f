"""Networks by name. A new one is a file with a ``build`` of this signature and a line in :data:`PRESETS`."""

from __future__ import annotations

from typing import Protocol

from fastvae.models.presets import conv, mlp
from fastvae.models.presets.networks import Networks

__all__ = ["PRESETS", "Networks", "Preset"]


class Preset(Protocol):
    """Builds the two networks for one shape of data."""

    def __call__(
        self,
        input_shape: tuple[int, ...],
        latent_dim: int,
        *,
        maps: int,
        hidden_dims: tuple[int, ...] | None,
    ) -> Networks:
        """Build the networks.

        Parameters
        ----------
        input_shape : tuple of int
            Shape of one sample.
        latent_dim : int
            Number of codes: the encoder gives ``(B, 2 * latent_dim)``, the decoder takes ``(B, latent_dim)``.
        maps : int
            Numbers per value the decoder gives; with more than one its output is ``(B, maps, *input_shape)``.
        hidden_dims : tuple of int or None
            Sizes of the hidden layers from the data to the code; mirrored in the decoder.

        Raises
        ------
        ValueError
            If the preset cannot take such samples.
        """
        ...


PRESETS: dict[str, Preset] = {"mlp": mlp.build, "conv": conv.build}
"""The presets by name."""
