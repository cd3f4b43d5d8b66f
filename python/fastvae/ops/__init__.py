"""The operators behind :mod:`fastvae.functional`, one folder each; importing this registers them."""

from fastvae.ops import (
    bernoulli_log_prob,
    gather_batch,
    gaussian_kl,
    gaussian_log_prob,
    noise,
    reparametrize,
    reparametrize_kl,
    reparametrize_log_weight,
)
from fastvae.ops.threads import share_torchs

share_torchs()

__all__ = [
    "bernoulli_log_prob",
    "gather_batch",
    "gaussian_kl",
    "gaussian_log_prob",
    "noise",
    "reparametrize",
    "reparametrize_kl",
    "reparametrize_log_weight",
]
