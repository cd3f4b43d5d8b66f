"""What training maximises."""

from fastvae.objectives.elbo import elbo
from fastvae.objectives.free_bits import free_bits
from fastvae.objectives.importance import iwae_bound
from fastvae.objectives.schedule import kl_capacity, kl_weight

__all__ = ["elbo", "free_bits", "iwae_bound", "kl_capacity", "kl_weight"]
