"""The operators behind :mod:`fastvae.functional`, one folder each; importing this registers them."""

from fastvae.ops import gaussian_kl, noise, reparametrize, reparametrize_kl, reparametrize_log_weight

__all__ = ["gaussian_kl", "noise", "reparametrize", "reparametrize_kl", "reparametrize_log_weight"]
