"""How probable data is under a model: log p(x) itself, not a bound with one sample."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import SupportsIndex

import torch
from torch import Tensor

from fastvae import functional
from fastvae.evaluation.batches import in_range, tensors
from fastvae.models import VAE
from fastvae.models.likelihoods import LIKELIHOODS
from fastvae.models.modes import eval_mode
from fastvae.noise import Seed
from fastvae.ops.noise.seed import seed_tensor
from fastvae.ops.validation import as_integer

__all__ = ["CHUNK", "log_likelihood"]

CHUNK = 8
"""Codes per sample of the data that are decoded together."""
MOST_DRAWS = 2**32


@torch.no_grad()
def log_likelihood(
    model: VAE,
    batches: Iterable[Tensor],
    *,
    num_samples: SupportsIndex,
    seed: Seed = 0,
    chunk: SupportsIndex = CHUNK,
) -> Tensor:
    r"""Estimate log p(x) of each sample by importance sampling from its posterior.

    ``log(1/K sum_k p(x | z_k) p(z_k) / q(z_k | x))`` with ``z_k`` from q(z | x): never above log p(x) in
    expectation, and closer to it the larger K is. Evaluations of the literature take K = 5000.

    Parameters
    ----------
    model : VAE
        Evaluated in eval mode; its mode is left as it was.
    batches : iterable of Tensor
        float32 on the model's device, ``(B, *input_shape)`` each.
    num_samples : int
        K, how many codes each sample takes: exactly as many are used.
    seed : int, int64 tensor, torch.Generator or None
        Key of the latent noise. The noise of a sample depends on its place in the data, not on the batches.
    chunk : int
        How many of the codes of a sample are decoded together: memory grows with it, and the result is the
        same up to rounding.

    Returns
    -------
    Tensor
        In nats, float64 on the CPU, ``(N,)`` for N samples of the data.

    Raises
    ------
    TypeError, ValueError
        For a number of samples or a chunk below 1, more samples than 2**32, for a plain autoencoder,
        for batches that are no tensors or have values that the likelihood cannot have, and if there
        is no data.

    References
    ----------
    Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, equation 8 and section 5.
    """
    count = _at_least_one("num_samples", num_samples)
    step = _at_least_one("chunk", chunk)
    if count > MOST_DRAWS:
        raise ValueError(
            f"log_likelihood: num_samples must be at most 2**32, the draws of a key, got {count}"
        )
    checked = tensors("log_likelihood", model, batches)
    if not model.variational:
        raise ValueError("log_likelihood: a plain autoencoder has no prior: it gives data no probability")
    estimates: list[Tensor] = []
    done = 0
    with eval_mode(model):
        for x in in_range(model, checked):
            if not estimates:
                # One key for all chunks, also where it is drawn from a generator.
                seed = seed_tensor(seed, x.device)
            estimates.append(_of_batch(model, x, count, step, seed, done))
            done += len(x)
    if not estimates:
        raise ValueError("log_likelihood: there is no data")
    return torch.cat(estimates)


def _of_batch(model: VAE, x: Tensor, count: int, step: int, seed: Seed, row_offset: int) -> Tensor:
    """The estimates for one batch, from a logsumexp that runs over the chunks: ``(B,)``."""
    mu, logvar = model.posterior(x)
    total = torch.full((len(x),), -math.inf, dtype=torch.float64, device="cpu")
    for draw in range(0, count, step):
        z, log_weight = functional.reparametrize_log_weight(
            mu, logvar, num_samples=min(step, count - draw), seed=seed, draw=draw, row_offset=row_offset
        )
        terms = _log_prob(model, z, x) + log_weight
        total = torch.logaddexp(total, torch.logsumexp(terms.cpu().double(), 0))
    return total - math.log(count)


def _log_prob(model: VAE, z: Tensor, x: Tensor) -> Tensor:
    """The log-probabilities log p(x | z) for codes ``(K, B, latent_dim)``: ``(K, B)``."""
    params = model.parameters_of(z.flatten(0, 1))
    if type(model.likelihood) in LIKELIHOODS.values():
        return model.likelihood.log_prob(params.unflatten(0, z.shape[:2]), x)  # reads one batch of data
    # A user's own may have been trained with one code for each sample, and never have seen more.
    repeated = x.expand(len(z), *x.shape).flatten(0, 1)
    return model.likelihood.log_prob(params, repeated).reshape(z.shape[:2])


def _at_least_one(name: str, value: SupportsIndex) -> int:
    number = as_integer("log_likelihood", name, value)
    if number < 1:
        raise ValueError(f"log_likelihood: {name} must be at least 1, got {value}")
    return number
