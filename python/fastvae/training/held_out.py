"""Evaluation of a model on a data set, with the pixels it was trained to see."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastvae.data import Data
from fastvae.data.binarize import Binarize
from fastvae.evaluation import evaluate, log_likelihood
from fastvae.models import VAE
from fastvae.training.config import Settings
from fastvae.training.randomness import Stream, derive

__all__ = ["evaluate_on"]


def evaluate_on(
    model: VAE,
    data: Data,
    settings: Settings,
    device: torch.device,
    *,
    seed: int,
    num_samples: int = 0,
) -> dict[str, float]:
    """Evaluate the bound, and log p(x) with that many samples of the codes where there are any.

    See :func:`fastvae.evaluation.evaluate` and :func:`fastvae.evaluation.log_likelihood`. Drawn pixels
    (``binarize="dynamic"``) and codes are the same at each call with one seed.
    """

    def batches() -> Iterator[Tensor]:
        binarize = Binarize(settings.binarize, derive(seed, Stream.EVALUATION_BINARIZE))
        source_seed = derive(seed, Stream.SOURCE)
        for x, _ in data.batches(
            settings.batch_size, order=None, device=device, seed=source_seed, binarize=binarize
        ):
            yield x.reshape(-1, *model.input_shape)

    latent_seed = derive(seed, Stream.EVALUATION)
    values = evaluate(model, batches(), seed=latent_seed)
    if num_samples:
        estimates = log_likelihood(model, batches(), num_samples=num_samples, seed=latent_seed)
        values["log_likelihood"] = estimates.mean().item()
    return values
