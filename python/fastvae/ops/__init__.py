"""The operators behind :mod:`fastvae.functional`, one folder each; importing this registers them."""

from fastvae.ops import (
    bernoulli_log_prob,
    gaussian_kl,
    gaussian_log_prob,
    noise,
    reparametrize,
    reparametrize_kl,
)

__all__ = [
    "bernoulli_log_prob",
    "gaussian_kl",
    "gaussian_log_prob",
    "noise",
    "reparametrize",
    "reparametrize_kl",
]
