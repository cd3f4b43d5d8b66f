"""What went wrong, told after an epoch, and what to try."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from operator import itemgetter

import torch

from fastvae.data import Data
from fastvae.errors import NonFiniteError, NonFiniteWarning, OverfittingWarning, PosteriorCollapseWarning
from fastvae.models import VAE
from fastvae.training.config import Settings
from fastvae.training.history import Record

__all__ = ["report_collapse", "report_overfitting", "report_skipped"]

LEAST_DROP, LEAST_SHARE = 1.0, 0.1
"""In nats per sample, and of the best bound: a drop of less is not spoken of."""
AT_THE_END = 3
"""Epochs, of which the best counts as the end."""
COLLAPSED_KL = 0.01
"""Nats per sample: below this the codes carry nothing."""


def report_skipped(
    record: Record,
    steps: int,
    history: Sequence[Record],
    *,
    model: VAE,
    data: Data,
    settings: Settings,
    device: torch.device,
) -> None:
    """Warn of the first epoch with skipped steps, and stop at one where all were.

    Raises
    ------
    NonFiniteError
        If no step of the epoch had a finite loss and gradient.
    """
    skipped = record["skipped_steps"]
    if not skipped:
        return
    text = (
        f"epoch {record['epoch']}: {skipped} of {steps} steps had a loss or gradient that is not finite and "
        f"were skipped. {_circumstances(model, data, settings, device)} Try a smaller learning_rate, "
        f'scaled data, or, with variance="predicted", variance="learned"'
    )
    if skipped == steps:
        raise NonFiniteError(f"{text}. Training stopped, because nothing was learned in this epoch")
    if not any(earlier["skipped_steps"] for earlier in history):
        warnings.warn(text, NonFiniteWarning, stacklevel=4)


def report_collapse(kl: float | None, settings: Settings) -> None:
    """Warn if a variational model ends with a KL near zero."""
    if kl is not None and kl < COLLAPSED_KL:
        if settings.capacity:
            ways = ["a larger capacity"]
        elif not settings.warmup:
            ways = ["warmup=0.3"]
        else:
            ways = ["cycles=4"] if settings.cycles == 1 else []
        if not (settings.free_bits or settings.capacity):
            ways.append("free_bits=0.1")
        ways.append("more epochs")
        if settings.beta and not settings.capacity:
            ways.append(f"a beta below {settings.beta:g}")
        warnings.warn(
            f"the KL ended at {kl:.2g} nats per sample: the codes say nothing about the data (posterior "
            f"collapse). Try {', '.join(ways[:-1])} or {ways[-1]}",
            PosteriorCollapseWarning,
            stacklevel=3,
        )


def report_overfitting(history: Sequence[Record]) -> None:
    """Warn if the bound of the held-out data ended well below its best, unless the other one fell too."""
    held_out = [
        (bound, record)
        for record in history
        if (bound := record["val_elbo"]) is not None and math.isfinite(bound)
    ]
    if not held_out:
        return
    best, then = max(held_out, key=itemgetter(0))
    last = max(bound for bound, _ in held_out[-AT_THE_END:])
    drop, gap = best - last, (history[-1]["elbo"] or 0.0) - last
    # Without a gap between the two both fell, as with a small beta or many free bits: that was asked for.
    if drop > max(LEAST_DROP, LEAST_SHARE * abs(best)) and gap > drop / 2:
        warnings.warn(
            f"the bound of the held-out data was best after epoch {then['epoch']:.0f}, {best:.2f} nats, and "
            f"ended at {last:.2f}, far below that of the training data: it was learned by heart. Try "
            f"epochs={then['epoch']:.0f}, more data, smaller hidden_dims or weight_decay",
            OverfittingWarning,
            stacklevel=3,
        )


def _circumstances(model: VAE, data: Data, settings: Settings, device: torch.device) -> str:
    """Say what bears on the cause: the data's range, the latent of a few samples, the learning rate."""
    low, high = data.value_range()
    rows = torch.arange(min(len(data), settings.batch_size), device="cpu")
    model.eval()
    with torch.no_grad():
        mu, logvar = model.posterior(data.take(rows).to(device))
    return (
        f"The data lies between {low:g} and {high:g}, the largest |mean| of a code is "
        f"{float(mu.abs().max()):.3g}, the largest log-variance {float(logvar.max()):.3g}, "
        f"learning_rate is {settings.learning_rate:g}."
    )
