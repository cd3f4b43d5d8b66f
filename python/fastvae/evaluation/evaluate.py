"""The evidence lower bound of a model on data."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from fastvae.evaluation.active_units import ACTIVE_VARIANCE, CodeStatistics
from fastvae.evaluation.batches import in_range, tensors
from fastvae.models import VAE
from fastvae.models.modes import eval_mode
from fastvae.noise import Seed
from fastvae.ops.noise.seed import seed_tensor

__all__ = ["EvaluationSums", "evaluate"]


def evaluate(model: VAE, batches: Iterable[Tensor], *, seed: Seed = 0) -> dict[str, float]:
    """Evaluate the bound at ``beta = 1`` with one sample of the codes per data point.

    Parameters
    ----------
    model : VAE
        Evaluated in eval mode; its mode is left as it was.
    batches : iterable of Tensor
        float32 on the model's device, ``(B, *input_shape)`` each.
    seed : int, int64 tensor, torch.Generator or None
        Key of the latent noise. The noise of a sample depends on its place in the data, not on the batches.

    Returns
    -------
    dict
        Means over the data in nats: ``elbo``, ``recon`` (log p(x | z)) and ``kl``; ``active_units``, the
        number of codes in use; and ``samples``, the size of the data.

    Raises
    ------
    TypeError, ValueError
        If ``batches`` is a tensor, or gives something else than tensors, or values that the likelihood
        cannot have; if there is no data.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, equation 3;
    Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, for active units.
    """
    given = in_range(model, tensors("evaluate", model, batches))
    sums = EvaluationSums(model.latent_dim)
    sums.add(model, given, seed)
    return sums.means()


class EvaluationSums:
    """What an evaluation adds up, over any number of batches, in float64.

    Parameters
    ----------
    latent_dim : int
        Number of codes.
    """

    def __init__(self, latent_dim: int) -> None:
        self._codes = CodeStatistics(latent_dim)
        self._terms = torch.zeros(2, dtype=torch.float64, device="cpu")

    @torch.no_grad()
    def add(self, model: VAE, batches: Iterable[Tensor], seed: Seed, first_row: int = 0) -> None:
        """Take in batches, whose samples are rows of the data, and of the noise, from that one on."""
        with eval_mode(model):
            for x in batches:
                if model.variational and not self._codes.count:
                    # One key for all batches, also where it is drawn from a generator.
                    seed = seed_tensor(seed, x.device)
                mu, logvar = model.posterior(x)
                terms = model.terms(x, mu, logvar, seed, row_offset=first_row + self._codes.count)
                self._codes.add(mu)
                self._terms += torch.stack(terms).cpu().double().sum(1)

    def numbers(self) -> Tensor:
        """All of it in one vector, float64 on the CPU."""
        codes = self._codes
        count = torch.tensor([codes.count], dtype=torch.float64, device="cpu")
        return torch.cat((count, self._terms, codes.mean, codes.squares))

    def take_in(self, numbers: Tensor) -> None:
        """Take in what :meth:`numbers` gave of the same number of codes."""
        latent_dim = len(self._codes.mean)
        count, terms, mean, squares = numbers.split([1, 2, latent_dim, latent_dim])
        other = CodeStatistics(latent_dim)
        other.count, other.mean, other.squares = int(count), mean, squares
        self._codes.merge(other)
        self._terms += terms

    def means(self) -> dict[str, float]:
        """What :func:`evaluate` gives."""
        codes = self._codes
        if codes.count == 0:
            raise ValueError("evaluate: there is no data")
        recon, kl = (self._terms / codes.count).tolist()
        return {
            "elbo": recon - kl,
            "recon": recon,
            "kl": kl,
            "active_units": int((codes.variance() > ACTIVE_VARIANCE).sum()),
            "samples": codes.count,
        }
