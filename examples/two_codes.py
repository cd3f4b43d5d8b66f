"""Two codes, drawn as a plane.

With two codes only, the latent space can be looked at. The encoder makes a Gaussian of every image; its mean
and its two sigmas are an ellipse: here is the image, and so far from here the decoder has to expect its code.
The picture shows an ellipse for each digit, coloured by its kind, and beside it what the decoder makes of
each point of the plane. Nobody told the network which digit is which. Three things can be seen, and counted:

- Kinds lie together: for most digits, the nearest other mean is that of a digit of the same kind. The share
  is printed beside what chance would give.
- The ellipses together have the size of the unit Gaussian: for each code, the mean over all images of
  mu^2 + sigma^2 settles near 1. The decoder could undo any stretching of a code, so a code's scale is the
  KL's alone to choose, and the derivative of the KL by that scale is the mean of mu^2 + sigma^2 - 1.
- There are no empty stretches to get lost in: about as many means lie within the dashed circle, two standard
  deviations, as of the unit Gaussian itself, and the ellipses of neighbours overlap: the distance to the
  nearest mean is typically a small part of sigma.

With --beta 0, no KL, the ellipses shrink to points and the plane has any size: the same figures say so.

    python examples/two_codes.py
    python examples/two_codes.py --beta 0
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import fastvae
from fastvae.data import open_data
from fastvae.plots.canvas import save
from fastvae.plots.latent import draw_latent


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train two codes on the small digits and draw their plane.")
    parser.add_argument("--beta", type=float, default=1.0, help="weight of the KL (default: 1)")
    parser.add_argument("--epochs", type=int, default=200, help="default: 200")
    parser.add_argument("--seed", type=int, default=0, help="decides all that is random (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("runs/examples"), help="folder for the picture")
    args = parser.parse_args(argv)

    data = open_data("digits")
    assert data.labels is not None
    vae = fastvae.train(data, latent_dim=2, beta=args.beta, epochs=args.epochs, seed=args.seed)

    images = data.take(torch.arange(len(data)))
    with torch.no_grad():
        mu, logvar = vae.model.posterior(images.to(vae.device))
    mu, sigma = mu.cpu(), (0.5 * logvar).exp().cpu()
    nearest = torch.cdist(mu, mu).fill_diagonal_(torch.inf).min(1)
    same = data.labels[nearest.indices] == data.labels
    shares = data.labels.bincount() / len(data)

    print(f"\n{'':36}{'code 0':>10}{'code 1':>10}")
    for name, values in (
        ("mean of mu^2", mu.square().mean(0)),
        ("mean of sigma^2", sigma.square().mean(0)),
        ("mean of mu^2 + sigma^2", (mu.square() + sigma.square()).mean(0)),
        ("mean sigma", sigma.mean(0)),
    ):
        print(f"{name:36}{values[0]:10.4f}{values[1]:10.4f}")
    print()
    for name, value in (
        ("nearest mean is of the same kind", same.float().mean()),
        ("  by chance", shares.square().sum()),
        ("means within the circle", (mu.norm(dim=1) < 2).float().mean()),
        ("  of the unit Gaussian", 1 - math.exp(-2)),
        ("distance to the nearest mean / sigma", (nearest.values / sigma.mean(1)).median()),
    ):
        print(f"{name:40}{value:10.2f}")

    args.output.mkdir(parents=True, exist_ok=True)
    print(f"\nplane: {save(draw_latent(vae, data), args.output / 'two_codes.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
