"""Log-probability of data under independent Bernoulli variables, given by logits."""

from fastvae.ops.bernoulli_log_prob import autograd, cpu, cuda, reference, schema

__all__ = ["autograd", "cpu", "cuda", "reference", "schema"]
