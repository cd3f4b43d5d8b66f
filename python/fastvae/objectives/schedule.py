"""How what is asked of the KL grows during training."""

from __future__ import annotations

import math
from typing import SupportsIndex

from fastvae.ops.validation import as_integer

__all__ = ["kl_capacity", "kl_weight"]


def kl_weight(step: int, total_steps: int, *, beta: float, warmup: float, cycles: SupportsIndex = 1) -> float:
    """The weight of the KL at a step: a straight line from near 0 to ``beta``, then ``beta``.

    The length of the warm-up is a fraction of the whole training, so that it ends whatever the number of
    epochs is. With ``cycles`` the training is cut into so many equal parts, each with a warm-up of that
    fraction of it: all of them together take the fraction of the whole.

    Parameters
    ----------
    step : int
        Counted from 0.
    total_steps : int
        Steps of the whole training.
    beta : float
        The final weight.
    warmup : float
        Fraction of all steps in [0, 1] in which the weight is below ``beta``; 0 is no warm-up.
    cycles : int
        How many warm-ups there are.

    Raises
    ------
    TypeError
        For ``cycles`` that are no integer.
    ValueError
        For a warm-up that is no such fraction, or fewer cycles than 1.

    References
    ----------
    Bowman et al., "Generating Sentences from a Continuous Space", CoNLL 2016, section 3.1;
    Sonderby et al., "Ladder Variational Autoencoders", NeurIPS 2016, section 3.2;
    Fu et al., "Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing", NAACL 2019,
    for ``cycles`` (their M; their R is ``warmup``), linear, without their rounding of a cycle to whole steps.
    """
    cycles = as_integer("kl_weight", "cycles", cycles)
    if cycles < 1:
        raise ValueError(f"kl_weight: cycles must be at least 1, got {cycles}")
    return beta * _grown("kl_weight", step, total_steps, warmup, cycles)


def kl_capacity(step: int, total_steps: int, *, capacity: float, warmup: float) -> float:
    """The KL that is aimed at, at a step: a straight line from near 0 to ``capacity``, then ``capacity``.

    The loss has ``beta * |KL - C|``, with the mean KL of a batch, in place of ``beta * KL``:
    ``elbo(recon, kl, beta, C)``.

    Parameters
    ----------
    step : int
        Counted from 0.
    total_steps : int
        Steps of the whole training.
    capacity : float
        The final one, in nats per sample.
    warmup : float
        Fraction of all steps in [0, 1] in which it grows; 0: it is ``capacity`` from the beginning.

    Raises
    ------
    ValueError
        For a warm-up that is no such fraction, or a capacity that is negative or not finite.

    References
    ----------
    Burgess et al., "Understanding disentangling in beta-VAE", 2018 (arXiv 1804.03599), section 5.
    """
    if not 0 <= capacity < math.inf:
        raise ValueError(f"kl_capacity: capacity must be a finite number of at least 0, got {capacity}")
    return capacity * _grown("kl_capacity", step, total_steps, warmup, 1)


def _grown(function: str, step: int, total_steps: int, warmup: float, cycles: int) -> float:
    """How far it is, from near 0 to 1."""
    if not 0 <= warmup <= 1:
        raise ValueError(
            f"{function}: warmup must lie between 0 and 1, a fraction of all steps, got {warmup}; for n "
            "steps write n / total_steps"
        )
    ramp = warmup * total_steps / cycles
    if not ramp > 0:
        return 1.0
    # A DataLoader may have more batches than it said: those are of the last cycle.
    cycle = min(max(step * cycles // total_steps, 0), cycles - 1)
    return min(1.0, (step - cycle * total_steps / cycles + 1) / ramp)
