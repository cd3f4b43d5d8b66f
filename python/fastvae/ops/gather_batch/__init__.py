"""Rows of a data set as a batch: gathered, scaled and made binary in one pass."""

from fastvae.ops.gather_batch import cpu, reference, schema

__all__ = ["cpu", "reference", "schema"]
