"""The operators behind :mod:`fastvae.functional`, one folder each; importing this registers them."""

from fastvae.ops import gather_batch, gaussian_kl, noise, reparametrize, reparametrize_kl
from fastvae.ops.threads import share_torchs

share_torchs()

__all__ = ["gather_batch", "gaussian_kl", "noise", "reparametrize", "reparametrize_kl"]
