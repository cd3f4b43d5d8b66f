"""What a model is worth after training: ``fastvae.train`` beside a plain torch script of the same network.

Both train 784-400-codes-400-784 with ReLU on MNIST's gray pixels (Bernoulli from logits), Adam at 1e-3,
batches of 128, and are evaluated alike: the mean over the test images and over draws of the code. They differ
in their random numbers alone, so their bounds should agree within what another seed changes, which is
measured too.

    python benches/bench_elbo.py --data FOLDER      the folder has MNIST's four IDX files; some minutes
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

import fastvae
import harness
from fastvae.data import open_data

RESULTS = Path(__file__).resolve().parent / "results"
CODES, HIDDEN, BATCH = 32, 400, 128
DRAWS = 8


class PlainVAE(nn.Module):
    """As the examples of torch have it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * CODES))
        self.decoder = nn.Sequential(nn.Linear(CODES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 784))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu, logvar = self.encoder(x).chunk(2, dim=-1)
        z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)
        recon = -nnf.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="none").sum(-1)
        kl = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(-1)
        return recon, kl


def train_plain(images: Tensor, epochs: int, seed: int) -> PlainVAE:
    torch.manual_seed(seed)
    model = PlainVAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            recon, kl = model(images[rows])
            loss = (kl - recon).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


@torch.no_grad()
def test_elbo(encode: nn.Module, decode: nn.Module, images: Tensor, seed: int) -> float:
    """The bound of the images in nats, by the textbook formulas in float64, for either model."""
    torch.manual_seed(seed)
    total = 0.0
    for x in images.split(1000):
        mu, logvar = (part.double() for part in encode(x).chunk(2, dim=-1))
        kl = 0.5 * (logvar.exp() - 1 - logvar + mu.square()).sum(-1)
        for _ in range(DRAWS):
            z = mu + (logvar / 2).exp() * torch.randn_like(mu)
            logits = decode(z.float()).flatten(1).double()
            recon = -nnf.binary_cross_entropy_with_logits(logits, x.double(), reduction="none").sum(-1)
            total += float((recon - kl).sum()) / DRAWS
    return total / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("FASTVAE_MNIST", "data/mnist"), metavar="FOLDER")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()

    data = open_data(arguments.data)
    if data.test is None:
        parser.error(f"{arguments.data} has no test images; name a folder with MNIST's four IDX files")
    images = data.take(torch.arange(len(data))).flatten(1)
    held_out = data.test.take(torch.arange(len(data.test))).flatten(1)
    provenance = harness.provenance(["torch", "fastvae"])
    rows = []
    for seed in range(arguments.seeds):
        for name in ("plain torch", "fastvae"):
            start = time.perf_counter()
            if name == "fastvae":
                options = {"epochs": arguments.epochs, "batch_size": BATCH, "latent_dim": CODES}
                vae = fastvae.train(
                    arguments.data, model="mlp", hidden_dims=HIDDEN, validation=None, seed=seed, **options
                )
                encode, decode = vae.model.encoder, vae.model.decoder
            else:
                plain = train_plain(images, arguments.epochs, seed)
                encode, decode = plain.encoder, plain.decoder
            seconds = time.perf_counter() - start
            elbo = test_elbo(encode, decode, held_out, seed=0)
            rows.append(
                {
                    "candidate": name,
                    "seed": seed,
                    "epochs": arguments.epochs,
                    "test_elbo": round(elbo, 2),
                    "seconds": round(seconds, 1),
                    **provenance,
                }
            )
            print(f"{name}, seed {seed}: test ELBO {elbo:.2f} nats, {seconds:.0f} s", flush=True)
    table = harness.markdown_table(
        ["candidate", "test ELBO, nats", "seconds"],
        (
            (
                name,
                " / ".join(f"{row['test_elbo']:.2f}" for row in rows if row["candidate"] == name),
                f"{statistics.median(row['seconds'] for row in rows if row['candidate'] == name):.0f}",
            )
            for name in ("plain torch", "fastvae")
        ),
    )
    folder = RESULTS / harness.slug(harness.cpu_model())
    harness.write_csv(folder / "elbo.csv", rows)
    harness.write_text(
        folder / "elbo.md",
        f"# Test ELBO after {arguments.epochs} epochs of MNIST\n\n`784-{HIDDEN}-{CODES}`, a value per seed; "
        f"{harness.cpu_model()}, torch {torch.__version__}, {provenance['date']}.\n\n{table}\n",
    )


if __name__ == "__main__":
    main()
