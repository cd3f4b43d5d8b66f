"""``fastvae info``."""

from __future__ import annotations

import dataclasses
import json
from argparse import Namespace

from fastvae.cli.codes import OK
from fastvae.training.persistence import Description, describe


def run(options: Namespace) -> int:
    """Print what a run is."""
    described = describe(options.run)
    if options.json:
        print(json.dumps(dataclasses.asdict(described.config) | {"history": described.history}))
    else:
        print("\n".join(f"{label:<11}{text}" for label, text in _lines(described)))
    return OK


_USUAL = {
    "warmup": 0,
    "cycles": 1,
    "capacity": 0,
    "free_bits": 0,
    "weight_decay": 0,
    "binarize": "none",
    "precision": "float32",
}
"""What is named only where it is something else."""


def _written(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def _lines(described: Description) -> list[tuple[str, str]]:
    model, training, data = described.config.model, described.config.training, described.config.data
    held_out = f", {data.validation_samples} held out" if data.validation_samples else ""
    own = " and ".join(part for part in model.custom if part != "likelihood")
    networks = f"own {own}" if own else model.preset
    kind = "" if model.variational else ", plain autoencoder"
    unusual = "".join(
        f", {name.replace('_', ' ')} {_written(value)}"
        for name, usual in _USUAL.items()
        if (value := getattr(training, name)) != usual
    )
    lines = [
        ("data", f"{data.name}: {data.samples} samples of shape {model.input_shape}{held_out}"),
        ("model", f"{networks}, {model.latent_dim} codes, {described.numbers:,} weights{kind}"),
        (
            "likelihood",
            f"{model.likelihood}"
            + (f", variance {model.variance}" if model.likelihood == "gaussian" else ""),
        ),
        (
            "training",
            f"{len(described.history)} of {training.epochs} epochs, batches of {training.batch_size}, "
            f"learning rate {training.learning_rate:g}, beta {training.beta:g}{unusual}, seed {training.seed}"
            + (", interrupted" if described.config.interrupted else ""),
        ),
    ]
    if described.history:
        last = described.history[-1]
        lines.append(("ELBO", f"{last['elbo']:.3f} nats (recon {last['recon']:.3f}, KL {last['kl']:.3f})"))
        if last["val_elbo"] is not None:
            terms = f"(recon {last['val_recon']:.3f}, KL {last['val_kl']:.3f})"
            lines.append(("held out", f"{last['val_elbo']:.3f} nats {terms}"))
    return lines
