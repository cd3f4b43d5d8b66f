"""The fused latent step in a model and a loop of your own.

Nothing here is fastvae but one line: ``z, kl = F.reparametrize_kl(mu, logvar)``. The networks, the loss, the
optimiser and the loop are plain torch. That line takes the place of these, in one pass over memory each way:

    eps = torch.randn_like(mu)
    z = mu + torch.exp(0.5 * logvar) * eps
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(-1)

It is an ordinary differentiable operation: after training, the script compares z, kl and both gradients with
those that autograd finds for the three lines, given the same noise, and prints the largest differences. They
are rounding errors of float32.

The noise is torch's to govern, by ``torch.manual_seed``. Or give ``seed=``: then the noise of a row depends
on that seed and the number of the row alone, and a batch in two parts, the second with ``row_offset``, gets
the very same z as the whole batch. The script prints whether it does.

    python examples/own_model.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from fastvae import functional as F
from fastvae import noise

CODES = 8
HELD_OUT = 200


class DigitVAE(nn.Module):
    """A small convolutional network from 8x8 pixels to codes and back to logits."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(32 * 2 * 2, 2 * CODES),
        )
        self.decoder = nn.Sequential(
            nn.Linear(CODES, 32 * 2 * 2),
            nn.Unflatten(1, (32, 2, 2)),
            nn.SiLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor, seed: int | None = None) -> tuple[Tensor, Tensor]:
        """Give log p(x | z) and the KL of each image, in nats."""
        mu, logvar = self.encoder(x).chunk(2, -1)
        z, kl = F.reparametrize_kl(mu, logvar, seed=seed)
        logits = self.decoder(z)
        recon = -binary_cross_entropy_with_logits(logits, x, reduction="none").flatten(1).sum(1)
        return recon, kl


def train(model: DigitVAE, images: Tensor, epochs: int) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for x in images[torch.randperm(len(images))].split(64):
            recon, kl = model(x)
            loss = (kl - recon).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def textbook(mu: Tensor, logvar: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """What the fused step computes, in plain torch."""
    z = mu + torch.exp(0.5 * logvar) * eps
    kl = 0.5 * (mu.square() + logvar.exp() - 1 - logvar).sum(-1)
    return z, kl


def compare(model: DigitVAE, x: Tensor, seed: int) -> dict[str, float]:
    """Give the largest differences between the fused step and the textbook, on the codes of a batch."""
    with torch.no_grad():
        mu, logvar = (half.contiguous() for half in model.encoder(x).chunk(2, -1))
    mu.requires_grad_()
    logvar.requires_grad_()
    fused = F.reparametrize_kl(mu, logvar, seed=seed)
    plain = textbook(mu, logvar, noise.normal(mu.shape, seed))
    # Any loss that treats no two values of z and kl alike.
    gradients = [
        torch.autograd.grad(z.square().sum() + kl.square().sum(), (mu, logvar)) for z, kl in (fused, plain)
    ]
    pairs = {
        "z": (fused[0], plain[0]),
        "kl": (fused[1], plain[1]),
        "gradient of mu": (gradients[0][0], gradients[1][0]),
        "gradient of logvar": (gradients[0][1], gradients[1][1]),
    }
    return {name: float((a - b).detach().abs().max()) for name, (a, b) in pairs.items()}


def same_in_parts(model: DigitVAE, x: Tensor, seed: int) -> bool:
    """Whether a batch in two parts gets the very z of the whole batch."""
    with torch.no_grad():
        mu, logvar = model.encoder(x).chunk(2, -1)
    k = len(x) // 3
    first, _ = F.reparametrize_kl(mu[:k], logvar[:k], seed=seed)
    second, _ = F.reparametrize_kl(mu[k:], logvar[k:], seed=seed, row_offset=k)
    whole, _ = F.reparametrize_kl(mu, logvar, seed=seed)
    return torch.equal(torch.cat([first, second]), whole)


def draw(model: DigitVAE, path: Path) -> None:
    with torch.no_grad():
        samples = model.decoder(torch.randn(60, CODES)).sigmoid().numpy()
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    for axes, image in zip(figure.subplots(5, 12).flat, samples, strict=True):
        axes.imshow(image[0], cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Use the fused latent step in a plain torch model and loop.")
    parser.add_argument("--epochs", type=int, default=60, help="default: 60")
    parser.add_argument("--seed", type=int, default=0, help="decides all that is random (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("runs/examples"), help="folder for the picture")
    args = parser.parse_args(argv)

    torch.manual_seed(args.seed)
    images = torch.tensor(load_digits().images, dtype=torch.float32).unsqueeze(1) / 16
    images = images[torch.randperm(len(images))]
    training, held_out = images[HELD_OUT:], images[:HELD_OUT]
    model = DigitVAE()

    print(f"{'held out, nats per image':28}{'ELBO':>10}{'recon':>10}{'KL':>10}")
    for name, epochs in (("untrained", 0), (f"after {args.epochs} epochs", args.epochs)):
        train(model, training, epochs)
        with torch.no_grad():
            recon, kl = (float(term.mean()) for term in model(held_out, seed=args.seed))
        print(f"{name:28}{recon - kl:10.2f}{recon:10.2f}{kl:10.2f}")

    print("\nlargest difference from the textbook's lines")
    for name, difference in compare(model, held_out, args.seed).items():
        print(f"{name:28}{difference:10.1e}")
    print(f"\nthe same z for a batch in two parts: {'yes' if same_in_parts(model, held_out, 0) else 'no'}")

    args.output.mkdir(parents=True, exist_ok=True)
    draw(model, args.output / "own_model.png")
    print(f"\n60 samples: {args.output / 'own_model.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
