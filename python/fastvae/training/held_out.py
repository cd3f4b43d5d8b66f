"""Evaluation of a model on a data set, with the pixels it was trained to see."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastvae.data import Data
from fastvae.data.binarize import Binarize
from fastvae.evaluation import log_likelihood
from fastvae.evaluation.evaluate import EvaluationSums
from fastvae.models import VAE
from fastvae.training.config import Settings
from fastvae.training.randomness import Stream, derive
from fastvae.training.ranks import ALONE, Ranks

__all__ = ["evaluate_on", "log_likelihood_on"]


def evaluate_on(
    model: VAE,
    data: Data,
    settings: Settings,
    device: torch.device,
    *,
    seed: int,
    num_samples: int = 0,
    ranks: Ranks = ALONE,
) -> dict[str, float]:
    """Evaluate the bound, and log p(x) with that many samples of the codes where there are any.

    See :func:`fastvae.evaluation.evaluate` and :func:`fastvae.evaluation.log_likelihood`. Drawn pixels
    (``binarize="dynamic"``) and codes are the same at each call with one seed. Of several ``ranks`` each
    evaluates the bound of a part of the data, unless that picks its own rows, and gets that of all.
    """
    sums = EvaluationSums(model.latent_dim)
    key = derive(seed, Stream.EVALUATION)
    if ranks.size > 1 and data.can_split:
        own = ranks.share(len(data))
        rows = torch.arange(own.start, own.stop, device="cpu")
        if len(rows):
            sums.add(model, _batches(model, data, settings, device, seed, rows), key, own.start)
        parts, sums = ranks.gather_numbers(sums.numbers()), EvaluationSums(model.latent_dim)
        for part in parts:
            sums.take_in(part)
    else:
        sums.add(model, _batches(model, data, settings, device, seed), key)
    # What picks its own rows may do so by other numbers in each process.
    values = ranks.gather(sums.means())[0]
    if num_samples:
        estimates = log_likelihood_on(model, data, settings, device, seed=seed, num_samples=num_samples)
        values["log_likelihood"] = estimates.mean().item()
    return values


def log_likelihood_on(
    model: VAE, data: Data, settings: Settings, device: torch.device, *, seed: int, num_samples: int
) -> Tensor:
    """Estimate log p(x) of each sample, with the same pixels and codes as :func:`evaluate_on`."""
    batches = _batches(model, data, settings, device, seed)
    return log_likelihood(model, batches, num_samples=num_samples, seed=derive(seed, Stream.EVALUATION))


def _batches(
    model: VAE,
    data: Data,
    settings: Settings,
    device: torch.device,
    seed: int,
    rows: Tensor | None = None,
) -> Iterator[Tensor]:
    binarize = Binarize(settings.binarize, derive(seed, Stream.EVALUATION_BINARIZE))
    source_seed = derive(seed, Stream.SOURCE)
    for x, _ in data.batches(
        settings.batch_size, order=rows, device=device, seed=source_seed, binarize=binarize
    ):
        yield x.reshape(-1, *model.input_shape)
