"""The fused operations, for a model of your own.

Every function of the latent step is one kernel forward and one backward on the CPU, plain torch operations
elsewhere, and composes with autograd, ``torch.func``, ``torch.compile``, ``torch.export``, autocast and
activation checkpointing. Arithmetic is in float32 (float64 for float64) whatever the input, rounded once at
the end.

A latent has shape ``(..., *event)``; ``event_dims`` says how many trailing axes form one latent: 1 for a
vector of codes, 3 for a ``(B, C, H, W)`` map. All divergences and log-probabilities are in nats.

:func:`gather_batch` makes the batches: rows of a data set in memory, scaled and made binary, in one kernel.
Data sets are constants, so no gradient flows through it; for the rest it composes as the others do.

>>> import torch
>>> from fastvae import functional as F
>>> mu, logvar = torch.zeros(8, 32), torch.zeros(8, 32)
>>> z, kl = F.reparametrize_kl(mu, logvar, seed=0)
>>> z.shape, kl.shape
(torch.Size([8, 32]), torch.Size([8]))
"""

from fastvae.functional.batches import gather_batch
from fastvae.functional.importance import reparametrize_log_weight
from fastvae.functional.latent import Reduction, gaussian_kl, reparametrize, reparametrize_kl
from fastvae.functional.likelihood import bernoulli_log_prob, gaussian_log_prob

__all__ = [
    "Reduction",
    "bernoulli_log_prob",
    "gather_batch",
    "gaussian_kl",
    "gaussian_log_prob",
    "reparametrize",
    "reparametrize_kl",
    "reparametrize_log_weight",
]
