"""What training maximises."""

from fastvae.objectives.elbo import elbo
from fastvae.objectives.schedule import kl_weight

__all__ = ["elbo", "kl_weight"]
