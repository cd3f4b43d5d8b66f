"""fastvae: variational autoencoders with fused, reproducible kernels."""

from fastvae import functional, noise

__all__ = ["functional", "noise"]
