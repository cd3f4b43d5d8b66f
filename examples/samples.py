"""Make new digits from noise.

An encoder turns an image into a Gaussian over codes, a mean and a variance for each of 32 codes. Training
draws a code from that Gaussian, z = mu + sigma * eps, decodes it and asks two things: that the image comes
back (the reconstruction), and that the Gaussian stays near the unit Gaussian (the KL). The second is what
makes this script possible. Since codes of real images look like unit noise to the decoder, unit noise looks
like codes of real images: draw 32 normal numbers, decode them, and see a digit that nobody wrote.

Are the new digits digits, and are they new? Two figures answer, for the samples and for two yardsticks: real
digits that training never saw, and shuffled ones, in which every pixel comes from a real digit of its own, so
that each pixel has its proper ink and the whole makes no sense.

- agreement: look up the ten training images nearest to an image and take the share that bears the most
  frequent label among them. It is high for real digits, which lie among their own kind, and low for shuffled
  ones. The samples come in between: many are clear digits, some lie between two kinds, since the codes of
  real digits do not fill the unit Gaussian evenly.
- distance to the nearest training image. It would be near zero for copies. That of the samples is close to
  that of real digits, far from that of shuffled ones.

The data is MNIST where it can be found, else the 1797 small digits that come with scikit-learn.

    python examples/samples.py
    python examples/samples.py --data digits
    python examples/samples.py --data path/to/mnist --epochs 20
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import fastvae
from fastvae import noise
from fastvae.data import open_data
from fastvae.plots.canvas import save, show_pixels
from fastvae.plots.mosaic import as_pictures, mosaic

CODES = 32
MNIST_EPOCHS = 4
NEIGHBOURS = 10
SHOWN = 100
MEASURED = 1000
COMPARED = 10_000
"""Neighbours are looked up among so many training images at most: distances to all of MNIST take longer than
the training."""


def find_data() -> str:
    """Give the folder of MNIST's files, or the name of the digits that need no file."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
    folder = Path(os.environ.get("FASTVAE_MNIST", beside))
    return str(folder) if folder.is_dir() else "digits"


def agreement(images: Tensor, known: Tensor, labels: Tensor) -> float:
    """Share of the nearest known images that bear the most frequent label among them, on average."""
    distances = torch.cdist(images.flatten(1), known.flatten(1))
    found = labels[distances.topk(NEIGHBOURS, largest=False).indices]
    return float((found == found.mode(1, keepdim=True).values).float().mean())


def distance(images: Tensor, known: Tensor) -> float:
    """Euclidean distance to the nearest known image, on average."""
    return float(torch.cdist(images.flatten(1), known.flatten(1)).amin(1).mean())


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description="Train 32 codes on handwritten digits and decode unit noise.",
        epilog="MNIST is looked for in $FASTVAE_MNIST, then in ../shared/data/mnist beside this repository.",
    )
    parser.add_argument("--data", help="'digits', or a folder of IDX files with labels (default: see below)")
    parser.add_argument("--epochs", type=int, help=f"default: {MNIST_EPOCHS}, for the small digits 154")
    parser.add_argument("--seed", type=int, default=0, help="decides all that is random (default: 0)")
    parser.add_argument("--output", type=Path, default=Path("runs/examples"), help="folder for the picture")
    args = parser.parse_args(argv)

    source = args.data or find_data()
    data = open_data(source)
    if data.labels is None:
        parser.error(f"{source} has no labels, which the agreement is measured with")
    training, held_out = (data, data.test) if data.test else data.split(0.1, args.seed)
    assert training.labels is not None
    # None lets fastvae choose: the fewer the samples, the more often it goes through them.
    epochs = args.epochs or (None if source == "digits" else MNIST_EPOCHS)

    start = time.perf_counter()
    vae = fastvae.train(training, validation=held_out, latent_dim=CODES, epochs=epochs, seed=args.seed)
    print(f"trained for {len(vae.history)} epochs in {time.perf_counter() - start:.0f} s")

    samples = vae.sample(MEASURED, seed=args.seed)
    known = training.take(torch.arange(min(len(training), COMPARED)))
    labels = training.labels[: len(known)]
    real = held_out.take(torch.arange(min(len(held_out), MEASURED)))
    # Row by row the ranks of uniform noise are an order: one for each pixel.
    orders = noise.uniform((real[0].numel(), len(real)), args.seed).argsort(1).T
    shuffled = real.flatten(1).gather(0, orders).reshape(real.shape)

    print(f"\n{'':28}{'agreement':>12}{'distance':>12}")
    for name, images in (
        ("samples from unit noise", samples),
        ("real digits, held out", real),
        ("shuffled digits", shuffled),
    ):
        print(f"{name:28}{agreement(images, known, labels):12.2f}{distance(images, known):12.2f}")

    args.output.mkdir(parents=True, exist_ok=True)
    pictures = as_pictures(samples[:SHOWN], data.value_range())
    path = save(show_pixels(mosaic(pictures, 10)), args.output / "samples.png")
    print(f"\n{SHOWN} samples: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
