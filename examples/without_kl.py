"""What the KL is for: the same network with it and without.

The loss of a variational autoencoder has two terms. The reconstruction wants each image back from its code
z = mu + sigma * eps. Alone, it has an easy way out of the noise: push the means of different images far
apart and shrink sigma until eps no longer matters. What is left is a plain autoencoder, which stores every
image at a point of its own. The KL forbids this: it draws means towards zero and variances towards one, so
that the Gaussians of neighbouring images overlap, and the decoder must make sense of everything in between.

This script trains the network twice, with the KL (beta=1) and without (beta=0), and measures.

The codes. The spread of the means (their standard deviation over images, taken over all codes) is
hundreds of times larger than sigma without the KL, and of the same order or smaller with it. Codes that the
network does not use stay at mean 0 and sigma 1 where there is a KL; so the same ratio is also given for the
code that is used most, where it says how many images could be told apart by that code alone.

Reconstruction. It is better without the KL, in the log-likelihood of held-out digits: this is the price of
what follows.

Sampling. Unit noise lands among the codes only if there was a KL. Two figures on decoded noise, in both
directions, since either alone can be cheated: the distance from a sample to the nearest training image (which
one perfect sample, repeated, would minimise) and from a held-out digit to the nearest sample (which variety
minimises). And the agreement: of the ten training images nearest to a sample, the share that bears the most
frequent label among them, high where the sample is a digit and lower where it lies between kinds. It is fair
to ask whether beta=0 only fails because its codes have another scale. So it gets a second chance: noise from
a Gaussian fitted to the mean codes of the training images. That helps, and does not make up for the KL.

Interpolation. Half of the way between the codes of two digits of different kinds, the decoder shows something
in either case. Agreement says what: with the KL mostly a digit of some kind, without it hardly more than one
sees in the average of the two images, pixel by pixel. The distance to the nearest training image, also
printed, does not tell the two apart: blur is near to everything. Look at the picture too.

    python examples/without_kl.py
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import fastvae
from fastvae import noise
from fastvae.data import open_data
from fastvae.plots.canvas import HELD_OUT_COLOR, MODEL_COLOR, new_figure, plain, save, set_title, show_pixels
from fastvae.plots.mosaic import as_pictures, mosaic

CODES = 32
NEIGHBOURS = 10
SHOWN = 12


class Digits(NamedTuple):
    """Images ``(N, 1, 8, 8)`` with their labels, known in training and held out."""

    known: Tensor
    labels: Tensor
    held_out: Tensor
    first: Tensor
    """Held-out images, each to be paired with ``second``, an image of another kind."""
    second: Tensor


def load_digits(seed: int) -> Digits:
    data = open_data("digits")
    training, held_out = data.split(0.2, seed)
    assert training.labels is not None
    assert held_out.labels is not None
    images = held_out.take(torch.arange(len(held_out)))
    first, second = torch.combinations(torch.arange(len(images))).unbind(1)
    chosen = noise.permutation(len(first), seed)[:2000]
    chosen = chosen[held_out.labels[first[chosen]] != held_out.labels[second[chosen]]]
    return Digits(
        training.take(torch.arange(len(training))),
        training.labels,
        images,
        images[first[chosen]],
        images[second[chosen]],
    )


def agreement(images: Tensor, digits: Digits) -> float:
    """Share of the nearest known images that bear the most frequent label among them, on average."""
    distances = torch.cdist(images.flatten(1), digits.known.flatten(1))
    found = digits.labels[distances.topk(NEIGHBOURS, largest=False).indices]
    return float((found == found.mode(1, keepdim=True).values).float().mean())


def distance(images: Tensor, others: Tensor) -> float:
    """Euclidean distance to the nearest of the others, on average."""
    return float(torch.cdist(images.flatten(1), others.flatten(1)).amin(1).mean())


@torch.no_grad()
def posterior(vae: fastvae.TrainedVAE, images: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and sigma of the codes of images, ``(N, CODES)`` each."""
    mu, logvar = vae.model.posterior(images.to(vae.device))
    return mu.cpu(), (0.5 * logvar).exp().cpu()


def fitted_samples(vae: fastvae.TrainedVAE, images: Tensor, count: int, seed: int) -> Tensor:
    """Decode noise that has the mean and the covariance of the mean codes of images."""
    codes = vae.encode(images).double()
    unit = noise.normal((count, CODES), seed, dtype=torch.float64)
    # By eigenvectors and not by Cholesky: the codes need not fill all dimensions.
    variances, axes = torch.linalg.eigh(codes.T.cov())
    return vae.decode((codes.mean(0) + unit * variances.clamp(min=0).sqrt() @ axes.T).float())


def measure(vae: fastvae.TrainedVAE, digits: Digits, seed: int) -> dict[str, float]:
    mu, sigma = posterior(vae, digits.held_out)
    spread = mu.std(0)
    most = int(spread.argmax())
    terms = vae.evaluate(digits.held_out, seed=seed)
    samples = vae.sample(len(digits.known), seed=seed)
    fitted = fitted_samples(vae, digits.known, len(digits.known), seed)
    halfway = vae.interpolate(digits.first, digits.second, 3)[:, 1]
    return {
        "spread of the means": float(spread.square().mean().sqrt()),
        "mean sigma": float(sigma.mean()),
        "spread / sigma": float(spread.square().mean().sqrt() / sigma.mean()),
        "spread / sigma, most used code": float(spread[most] / sigma[:, most].mean()),
        "KL, nats": terms["kl"],
        "reconstruction, nats": terms["recon"],
        "unit noise: to a training image": distance(samples, digits.known),
        "unit noise: from a held-out digit": distance(digits.held_out, samples),
        "unit noise: agreement": agreement(samples, digits),
        "fitted noise: to a training image": distance(fitted, digits.known),
        "fitted noise: from a held-out digit": distance(digits.held_out, fitted),
        "fitted noise: agreement": agreement(fitted, digits),
        "halfway: to a training image": distance(halfway, digits.known),
        "halfway: agreement": agreement(halfway, digits),
    }


def draw_images(models: dict[str, fastvae.TrainedVAE], digits: Digits, seed: int, path: Path) -> Path:
    """Draw decoded noise and interpolations, one block for each model."""
    rows: list[Tensor] = []
    words: list[str] = []
    for name, vae in models.items():
        rows += [*vae.sample(2 * SHOWN, seed=seed).split(SHOWN)]
        rows += [*vae.interpolate(digits.first[:4], digits.second[:4], SHOWN)]
        words += [f"{name}, unit noise", "", f"{name}, between digits", "", "", ""]
    pictures = as_pictures(torch.cat(rows), (0, 1))
    height = len(mosaic(pictures[:1], 1)) + 3
    middles = [(index * height + height / 2, word) for index, word in enumerate(words) if word]
    return save(show_pixels(mosaic(pictures, SHOWN), rows=middles), path)


def draw_codes(models: dict[str, fastvae.TrainedVAE], digits: Digits, path: Path) -> Path:
    """Draw a dot for each code of each held-out image: its mean and its sigma."""
    figure = new_figure(7, 4.2)
    figure.set_layout_engine("constrained")
    axes = figure.subplots()
    plain(axes)
    for (name, vae), color in zip(models.items(), (MODEL_COLOR, HELD_OUT_COLOR), strict=True):
        mu, sigma = (np.asarray(values).ravel() for values in posterior(vae, digits.held_out))
        axes.scatter(mu, sigma, s=3, alpha=0.25, color=color, linewidths=0, label=name)
    axes.set(yscale="log", xlabel="mean", ylabel="sigma")
    legend = axes.legend(frameon=False, fontsize=9, markerscale=5)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1)
    set_title(axes, "each code of each held-out digit")
    return save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Train the same network with the KL and without it.")
    parser.add_argument("--epochs", type=int, default=150, help="default: 150")
    parser.add_argument("--seed", type=int, default=0, help="decides all that is random (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("runs/examples"), help="folder for the pictures")
    args = parser.parse_args(argv)

    digits = load_digits(args.seed)
    models = {
        f"beta={beta}": fastvae.train(
            digits.known,
            validation=digits.held_out,
            latent_dim=CODES,
            beta=beta,
            epochs=args.epochs,
            seed=args.seed,
        )
        for beta in (1, 0)
    }

    figures = [measure(vae, digits, args.seed) for vae in models.values()]
    print(f"\n{'':40}{''.join(f'{name:>10}' for name in models)}")
    for name, value in figures[0].items():
        print(f"{name:40}{value:10.3f}{figures[1][name]:10.3f}")

    mixed = (digits.first + digits.second) / 2
    print(f"\n{'to compare':40}{'distance':>10}{'agreement':>11}")
    for name, images in (("held-out digits", digits.held_out), ("averages of two different ones", mixed)):
        print(f"{name:40}{distance(images, digits.known):10.3f}{agreement(images, digits):11.3f}")

    args.output.mkdir(parents=True, exist_ok=True)
    print()
    print(f"pictures: {draw_images(models, digits, args.seed, args.output / 'without_kl.png')}")
    print(f"codes:    {draw_codes(models, digits, args.output / 'without_kl_codes.png')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
