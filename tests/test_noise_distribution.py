"""The noise is what it claims to be: tests on ten million draws and more.

Every bound is at five standard errors of its statistic, computed beside it: the seeds are fixed, so the tests
are deterministic, and a generator that is off by more than chance fails.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastvae import noise

N = 10_000_000
SIGMAS = 5.0


@pytest.fixture(scope="module")
def normals() -> np.ndarray:
    return noise.normal((10_000, 1000), 2024).numpy().astype(np.float64)


@pytest.fixture(scope="module")
def uniforms() -> np.ndarray:
    return noise.uniform((10_000, 1000), 2024).numpy().astype(np.float64)


@pytest.mark.parametrize(("power", "moment"), [(1, 0), (2, 1), (3, 0), (4, 3), (6, 15)])
def test_moments(normals, power, moment):
    """E z^p, against its standard error sqrt(E z^2p - (E z^p)^2) / sqrt(N)."""
    double_factorial = math.prod(range(2 * power - 1, 0, -2))
    error = math.sqrt((double_factorial - moment**2) / N)
    assert abs((normals**power).mean() - moment) < SIGMAS * error


def test_kolmogorov_smirnov(normals, uniforms):
    assert stats.kstest(normals.ravel(), "norm").pvalue > 1e-6
    assert stats.kstest(uniforms.ravel(), "uniform").pvalue > 1e-6


@pytest.mark.parametrize("threshold", [3.0, 4.0, 4.5, 5.0])
@pytest.mark.parametrize("side", [1, -1])
def test_tails(normals, threshold, side):
    """How many lie beyond a threshold, each side on its own, against the Poisson spread."""
    expected = N * stats.norm.sf(threshold)
    beyond = (side * normals > threshold).sum()
    assert abs(beyond - expected) < SIGMAS * math.sqrt(expected) + 1


def test_the_furthest_tail():
    """100 million draws hold values beyond 5.5 sigma in the right number, and none beyond the bound 6.77."""
    beyond, largest = 0, 0.0
    for draw in range(10):
        z = noise.normal((1000, 10_000), 7, draw=draw).abs()
        beyond += int((z > 5.5).sum())
        largest = max(largest, float(z.max()))
    expected = 1e8 * 2 * stats.norm.sf(5.5)
    assert abs(beyond - expected) < SIGMAS * math.sqrt(expected) + 1
    assert 5.5 < largest < 6.77


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).mean() * math.sqrt(a.size))


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 8, 64])
def test_neighbouring_columns_are_uncorrelated(normals, step):
    assert abs(correlation(normals[:, :-step], normals[:, step:])) < SIGMAS


@pytest.mark.parametrize("step", [1, 2, 16])
def test_neighbouring_rows_are_uncorrelated(normals, step):
    assert abs(correlation(normals[:-step], normals[step:])) < SIGMAS


@pytest.mark.parametrize(
    "other",
    [{"draw": 1}, {"draw": 2}, {"seed": 2025}, {"seed": 2024 + 2**32}, {"row_offset": 2**32}],
    ids=str,
)
def test_neighbouring_draws_seeds_and_far_rows_are_uncorrelated(normals, other):
    """Squares too: normals of one radius would agree in size though not in sign."""
    z = noise.normal((10_000, 1000), **{"seed": 2024, **other}).numpy().astype(np.float64)
    assert abs(correlation(normals, z)) < SIGMAS
    assert abs(correlation(normals**2 - 1, z**2 - 1) / 2) < SIGMAS


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_sizes_of_neighbours_are_uncorrelated(normals, step):
    """The two normals of a pair share a radius: their squares show if the angle is not uniform."""
    squares = normals**2 - 1
    assert abs(correlation(squares[:, :-step], squares[:, step:]) / 2) < SIGMAS


def test_bits_of_uniforms_are_fair(uniforms):
    words = (uniforms * 2**24).astype(np.int64)
    for bit in range(24):
        ones = (words >> bit & 1).sum()
        assert abs(ones - N / 2) < SIGMAS * math.sqrt(N) / 2, bit
    assert uniforms.min() >= 0
    assert uniforms.max() < 1


def test_permutations_are_uniform():
    """All 24 orders of four, over 24,000 seeds."""
    orders = torch.stack([noise.permutation(4, seed) for seed in range(24_000)])
    codes = (orders * torch.tensor([64, 16, 4, 1])).sum(1)
    counts = codes.unique(return_counts=True)[1].numpy()
    assert counts.size == 24
    assert stats.chisquare(counts).pvalue > 1e-6


def test_folded_seeds_do_not_collide():
    """A hundred thousand derived seeds: a collision of 64-bit values has a chance of 3e-10."""
    folded = noise.fold_in(torch.zeros(100_000, dtype=torch.int64), torch.arange(100_000))
    assert folded.unique().numel() == 100_000
