"""z = mu + exp(logvar / 2) * eps, with the noise of the contract."""

from fastvae.ops.reparametrize import autograd, cpu, cuda, reference, schema

__all__ = ["autograd", "cpu", "cuda", "reference", "schema"]
