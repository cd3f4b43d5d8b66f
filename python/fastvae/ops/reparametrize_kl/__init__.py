"""The sample and its KL from the standard normal in one pass over memory."""

from fastvae.ops.reparametrize_kl import autograd, cpu, cuda, reference, schema

__all__ = ["autograd", "cpu", "cuda", "reference", "schema"]
