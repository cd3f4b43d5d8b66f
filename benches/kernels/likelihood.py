"""The Bernoulli likelihood of 8-bit pixels under many samples of the code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as nnf

import harness
import passes
from comparison import COMPILED, EAGER, FASTVAE, Comparison, Target
from fastvae import functional

SAMPLES, BATCH, PIXELS = 50, 128, 784
Likelihood: TypeAlias = Callable[[Tensor, Tensor], Tensor]


def eager(logits: Tensor, target: Tensor) -> Tensor:
    """As people write it: the cross-entropy wants a target of the logits' shape."""
    x = (target.float() / 255).expand_as(logits)
    return -nnf.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(-1)


def fused(logits: Tensor, target: Tensor) -> Tensor:
    return functional.bernoulli_log_prob(logits, target, target_max=255)


def candidate(name: str, log_prob: Likelihood) -> harness.Candidate:
    check(name, log_prob)
    logits, target, incoming = inputs(SAMPLES)
    return passes.candidate(name, log_prob, "both", (logits, target), (incoming,))


def inputs(samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits, 8-bit pixels, and the gradient that comes in."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(samples, BATCH, PIXELS, generator=generator)
    target = torch.randint(0, 256, (BATCH, PIXELS), dtype=torch.uint8, generator=generator)
    return logits.requires_grad_(), target, torch.rand(samples, BATCH, generator=generator)


def check(name: str, log_prob: Likelihood) -> None:
    """Refuse a likelihood that is not x l - log(1 + e^l), or whose gradient is not x - sigmoid(l)."""
    logits, target, incoming = inputs(2)
    got = log_prob(logits, target)
    (grad,) = torch.autograd.grad(got, logits, incoming)
    x, wide = target.double() / 255, logits.detach().double()
    wanted = (x * wide - nnf.softplus(wide)).sum(-1)
    wanted_grad = incoming.double().unsqueeze(-1) * (x - wide.sigmoid())
    for actual, truth in ((got, wanted), (grad, wanted_grad)):
        torch.testing.assert_close(
            actual.double(), truth, rtol=1e-5, atol=1e-6, msg=lambda text: f"{name}: {text}"
        )


COMPARISONS = [
    Comparison(
        name="bernoulli",
        title=f"`bernoulli_log_prob`, {SAMPLES}x{BATCH}x{PIXELS}, targets {BATCH}x{PIXELS} uint8",
        kind="forward and backward",
        candidates={
            EAGER: lambda name: candidate(name, eager),
            COMPILED: lambda name: candidate(name, passes.compiled(eager)),
            FASTVAE: lambda name: candidate(name, fused),
        },
        targets=lambda _: (Target(3),),
    )
]
