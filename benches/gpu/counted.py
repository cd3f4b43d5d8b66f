"""The latent step of fastvae as a graph has it: its noise is that of a count of steps on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastvae import functional, noise

SEED = 1


@dataclass
class Counted:
    """A count that each replay moves on, so that each draws noise of its own."""

    count: Tensor
    seed: Tensor

    @classmethod
    def on(cls, device: torch.device) -> Counted:
        return cls(*(torch.full((), value, dtype=torch.int64, device=device) for value in (0, SEED)))

    def __call__(self, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        outputs = functional.reparametrize_kl(mu, logvar, seed=noise.fold_in(self.seed, self.count))
        self.count.add_(1)
        return outputs
