"""Several samples z of one posterior, and the logarithm of the importance weight of each, in one pass."""

from fastvae.ops.reparametrize_log_weight import autograd, cpu, cuda, reference, schema

__all__ = ["autograd", "cpu", "cuda", "reference", "schema"]
