"""Rows of a data set as a batch: gathered, scaled and made binary in one pass."""

from fastvae.ops.gather_batch import cpu, cuda, reference, schema

__all__ = ["cpu", "cuda", "reference", "schema"]
