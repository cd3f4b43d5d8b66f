"""KL divergence of a diagonal Gaussian from the standard normal or from another one."""

from fastvae.ops.gaussian_kl import autograd, cpu, cuda, reference, schema

__all__ = ["autograd", "cpu", "cuda", "reference", "schema"]
