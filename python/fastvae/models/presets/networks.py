"""The pair of networks a preset gives."""

from __future__ import annotations

from typing import NamedTuple

from torch import nn


class Networks(NamedTuple):
    """An encoder and the decoder that mirrors it."""

    encoder: nn.Module
    decoder: nn.Module
