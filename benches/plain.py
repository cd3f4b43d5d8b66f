"""The plain torch model that the benches train beside fastvae's, and a bound that is fair to every model.

784-H...-codes-...H-784 with ReLU and torch's own initial weights, as ``fastvae.train(model="mlp")`` has it,
with the loss written out as in the examples of torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

PIXELS = 784


class PlainVAE(nn.Module):
    """As the examples of torch have it: a Bernoulli likelihood from logits, a standard normal prior.

    Parameters
    ----------
    hidden : sequence of int
        Widths from data to code, mirrored in the decoder.
    codes : int
        Number of codes.
    """

    def __init__(self, hidden: Sequence[int], codes: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(*dense([PIXELS, *hidden, 2 * codes]))
        self.decoder = nn.Sequential(*dense([codes, *reversed(hidden), PIXELS]))

    def forward(self, x: Tensor, eps: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The reconstruction and the KL of each sample, in nats; ``eps`` is drawn unless given."""
        mu, logvar = self.encoder(x).chunk(2, dim=-1)
        z = mu + torch.exp(0.5 * logvar) * (torch.randn_like(mu) if eps is None else eps)
        recon = -nnf.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(-1)
        kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(-1)
        return recon, kl

    def loss(self, x: Tensor) -> Tensor:
        """Minus the bound, averaged over the batch, with the fewest passes over memory that torch offers."""
        mu, logvar = self.encoder(x).chunk(2, dim=-1)
        z = torch.addcmul(mu, (0.5 * logvar).exp(), torch.randn_like(mu))
        cross_entropy = nnf.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()
        return (cross_entropy + kl) / len(x)


def dense(widths: Sequence[int]) -> list[nn.Module]:
    """Linear layers through the widths with a ReLU between each two."""
    layers: list[nn.Module] = []
    for width, next_width in pairwise(widths):
        layers += [nn.Linear(width, next_width), nn.ReLU()]
    return layers[:-1]


@torch.no_grad()
def held_out_elbo(
    encoder: Callable[[Tensor], Tensor],
    decoder: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    draws: int,
    seed: int = 0,
) -> float:
    """The bound of images in nats, in float64 and by the textbook formulas, for any model.

    Parameters
    ----------
    encoder : callable
        Gives mean and log-variance side by side.
    decoder : callable
        Gives logits.
    images : Tensor
        Values in [0, 1], ``(N, 784)``.
    draws : int
        Codes for each image; all models get the same noise.
    """
    encoder, decoder = in_float64(encoder), in_float64(decoder)
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for x in images.double().split(1000):
        mu, logvar = encoder(x).chunk(2, dim=-1)
        kl = 0.5 * (logvar.exp() - 1 - logvar + mu.square()).sum(-1)
        for _ in range(draws):
            z = mu + (logvar / 2).exp() * torch.randn(mu.shape, generator=generator, dtype=mu.dtype)
            logits = decoder(z).flatten(1)
            recon = -nnf.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)
            total += float((recon - kl).sum()) / draws
    return total / len(images)


def in_float64(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A network in float64, the given one left as it is; a plain function is given back."""
    return copy.deepcopy(function).double() if isinstance(function, nn.Module) else function
