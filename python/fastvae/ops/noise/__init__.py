"""Counter-based noise: a pure function of (seed, draw, row, column)."""

from fastvae.ops.noise import cpu, cuda, fallback, reference, schema, vmap

__all__ = ["cpu", "cuda", "fallback", "reference", "schema", "vmap"]
