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
from torch import Tensor

import fastvae
import machine
import report
from fastvae.data import open_data
from plain import PlainVAE, held_out_elbo

CODES, HIDDEN, BATCH = 32, 400, 128
DRAWS = 8


def train_plain(images: Tensor, epochs: int, seed: int) -> PlainVAE:
    torch.manual_seed(seed)
    model = PlainVAE([HIDDEN], CODES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(BATCH):
            recon, kl = model(images[rows])
            loss = (kl - recon).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default=os.environ.get("FASTVAE_MNIST", "data/mnist"), metavar="FOLDER")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--output-dir", type=Path, help="default: benches/results/<processor>")
    arguments = parser.parse_args()

    data = open_data(arguments.data)
    if data.test is None:
        parser.error(f"{arguments.data} has no test images; name a folder with MNIST's four IDX files")
    images = data.take(torch.arange(len(data))).flatten(1)
    held_out = data.test.take(torch.arange(len(data.test))).flatten(1)
    provenance = machine.provenance(["torch", "fastvae"])
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
            elbo = held_out_elbo(encode, decode, held_out, draws=DRAWS)
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
    table = report.markdown_table(
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
    folder = arguments.output_dir or report.RESULTS / machine.processor().folder
    report.write_csv(folder / "elbo.csv", rows)
    report.write_text(
        folder / "elbo.md",
        f"# Test ELBO after {arguments.epochs} epochs of MNIST\n\n`784-{HIDDEN}-{CODES}`, a value per seed.\n"
        f"{report.source(rows[0])}\n\n{table}\n",
    )


if __name__ == "__main__":
    main()
