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

__all__ = ["evaluate", "evaluate_in_range"]


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
    return evaluate_in_range(model, in_range(model, tensors("evaluate", model, batches)), seed)


@torch.no_grad()
def evaluate_in_range(model: VAE, batches: Iterable[Tensor], seed: Seed) -> dict[str, float]:
    """Evaluate on batches whose range was looked at before; see :func:`evaluate`."""
    codes = CodeStatistics(model.latent_dim)
    sums = torch.zeros(2, dtype=torch.float64, device="cpu")
    with eval_mode(model):
        for x in batches:
            if model.variational and not codes.count:
                # One key for all batches, also where it is drawn from a generator.
                seed = seed_tensor(seed, x.device)
            mu, logvar = model.posterior(x)
            terms = model.terms(x, mu, logvar, seed, row_offset=codes.count)
            codes.add(mu)
            sums += torch.stack(terms).cpu().double().sum(1)
    if codes.count == 0:
        raise ValueError("evaluate: there is no data")
    recon, kl = (sums / codes.count).tolist()
    return {
        "elbo": recon - kl,
        "recon": recon,
        "kl": kl,
        "active_units": int((codes.variance() > ACTIVE_VARIANCE).sum()),
        "samples": codes.count,
    }
