"""Which codes a model uses."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["ACTIVE_VARIANCE", "CodeStatistics", "active_units"]

ACTIVE_VARIANCE = 0.01
"""A code is active if its posterior mean varies more than this over the data (Burda et al., 2016)."""


def active_units(means: Tensor, threshold: float = ACTIVE_VARIANCE) -> int:
    """The number of codes whose posterior mean depends on the data.

    Parameters
    ----------
    means : Tensor
        Posterior means of at least two samples, ``(N, latent_dim)``.
    threshold : float
        The variance over the samples above which a code counts as active.

    Returns
    -------
    int

    Raises
    ------
    ValueError
        If ``means`` is no matrix, or has fewer than two rows.

    References
    ----------
    Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, section 5.2 and
    appendix C: active if Cov_x(E_q[u | x]) > 0.01.
    """
    if means.dim() != 2 or len(means) < 2:
        raise ValueError(
            f"active_units: means must be (N, latent_dim) with N at least 2, got {tuple(means.shape)}"
        )
    statistics = CodeStatistics(means.shape[1])
    statistics.add(means)
    return int((statistics.variance() > threshold).sum())


class CodeStatistics:
    """Mean and variance of each code over any number of batches, in float64.

    Parameters
    ----------
    latent_dim : int
        Number of codes.

    References
    ----------
    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances",
    1979, equation 2.1: batches merged without the cancellation of a sum of squares.
    """

    def __init__(self, latent_dim: int) -> None:
        self.count = 0
        self.mean = torch.zeros(latent_dim, dtype=torch.float64, device="cpu")
        self.squares = torch.zeros(latent_dim, dtype=torch.float64, device="cpu")

    def add(self, codes: Tensor) -> None:
        """Take in a batch ``(B, latent_dim)``, B at least 1."""
        codes = codes.detach().cpu().double()
        mean = codes.mean(0)
        self._merge(len(codes), mean, (codes - mean).square().sum(0))

    def merge(self, other: CodeStatistics) -> None:
        """Take in what another one did."""
        if other.count:
            self._merge(other.count, other.mean, other.squares)

    def _merge(self, count: int, mean: Tensor, squares: Tensor) -> None:
        shift = mean - self.mean
        total = self.count + count
        self.squares += squares + shift.square() * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total

    def variance(self) -> Tensor:
        """Unbiased variance of each code, float64 on the CPU, ``(latent_dim,)``; 0 for a single sample."""
        return self.squares / max(self.count - 1, 1)
