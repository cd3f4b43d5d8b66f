"""Log-density of data under independent Gaussian variables, given by mean and log-variance."""

from fastvae.ops.gaussian_log_prob import autograd, cpu, cuda, reference, schema

__all__ = ["autograd", "cpu", "cuda", "reference", "schema"]
