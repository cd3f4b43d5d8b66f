"""What training maximises."""

from fastvae.objectives.elbo import elbo
from fastvae.objectives.importance import iwae_bound
from fastvae.objectives.schedule import kl_weight

__all__ = ["elbo", "iwae_bound", "kl_weight"]
