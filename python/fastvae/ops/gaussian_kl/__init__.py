"""KL divergence of a diagonal Gaussian from the standard normal or from another one."""

from fastvae.ops.gaussian_kl import autograd, cpu, reference, schema

__all__ = ["autograd", "cpu", "reference", "schema"]
