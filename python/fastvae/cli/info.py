"""``fastvae info``."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace

from fastvae.cli.codes import OK
from fastvae.training import TrainedVAE, load


def run(options: Namespace) -> int:
    """Print what a run is."""
    result = load(options.run, device="cpu")
    if options.json:
        print(json.dumps(dataclasses.asdict(result.config) | {"history": result.history}))
    else:
        print("\n".join(f"{label:<11}{text}" for label, text in _lines(result)))
    return OK


def _lines(result: TrainedVAE) -> list[tuple[str, str]]:
    model, training, data = result.config.model, result.config.training, result.config.data
    parameters = sum(parameter.numel() for parameter in result.model.parameters())
    held_out = f", {data.validation_samples} held out" if data.validation_samples else ""
    networks = f"own {', '.join(model.custom)}" if model.custom else model.preset
    kind = "" if model.variational else ", plain autoencoder"
    lines = [
        ("data", f"{data.name}: {data.samples} samples of shape {model.input_shape}{held_out}"),
        ("model", f"{networks}, {model.latent_dim} codes, {parameters:,} parameters{kind}"),
        (
            "likelihood",
            f"{model.likelihood}"
            + (f", variance {model.variance}" if model.likelihood == "gaussian" else ""),
        ),
        (
            "training",
            f"{len(result.history)} of {training.epochs} epochs, batches of {training.batch_size}, learning "
            f"rate {training.learning_rate:g}, beta {training.beta:g}, seed {training.seed}"
            + (", interrupted" if result.interrupted else ""),
        ),
    ]
    if result.history:
        last = result.history[-1]
        lines.append(("ELBO", f"{last['elbo']:.3f} nats (recon {last['recon']:.3f}, KL {last['kl']:.3f})"))
        if last["val_elbo"] is not None:
            terms = f"(recon {last['val_recon']:.3f}, KL {last['val_kl']:.3f})"
            lines.append(("held out", f"{last['val_elbo']:.3f} nats {terms}"))
    return lines
