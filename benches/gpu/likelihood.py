"""The Bernoulli likelihood of 8-bit pixels under many samples of the code."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as nnf

import harness
import kernels.likelihood
import passes
from comparison import COMPILED, EAGER, FASTVAE, Target
from gpu.graphs import in_a_graph
from gpu.measuring import COPY, Work, compare, copy, cuda
from kernels.likelihood import BATCH, PIXELS, SAMPLES, Likelihood

MOVED = 3 * 4 * SAMPLES * BATCH * PIXELS + 2 * BATCH * PIXELS + 2 * 4 * SAMPLES * BATCH
"""Logits in, again in backward, and their gradient out; pixels twice; a sum and its gradient per sample."""


def candidate(name: str, log_prob: Likelihood, device: torch.device) -> harness.Candidate:
    logits, target, incoming = inputs(device)
    check(name, log_prob, (logits, target, incoming))
    return passes.candidate(name, log_prob, "both", (logits, target), (incoming,))


def inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    logits, target, incoming = kernels.likelihood.inputs(SAMPLES)
    return logits.detach().to(device).requires_grad_(), target.to(device), incoming.to(device)


def check(name: str, log_prob: Likelihood, tensors: tuple[Tensor, Tensor, Tensor]) -> None:
    """Refuse a likelihood that is not x l - log(1 + e^l), or whose gradient is not x - sigmoid(l)."""
    logits, target, incoming = tensors
    got = log_prob(logits, target)
    (grad,) = torch.autograd.grad(got, logits, incoming)
    x, wide = target.double() / 255, logits.detach().double()
    pairs = [
        ("log-probability", got.detach(), (x * wide - nnf.softplus(wide)).sum(-1)),
        ("gradient", grad, incoming.double().unsqueeze(-1) * (x - wide.sigmoid())),
    ]
    compare(name, pairs, relative=1e-5, absolute=1e-5)


def build(make: Callable[[], Likelihood]) -> Callable[[str], harness.Candidate]:
    return lambda name: candidate(name, make(), cuda())


def work(*, graph: bool = False) -> Work:
    candidates = {
        EAGER: build(lambda: kernels.likelihood.eager),
        COMPILED: build(lambda: passes.compiled(kernels.likelihood.eager)),
        FASTVAE: build(lambda: kernels.likelihood.fused),
        COPY: copy(MOVED),
    }
    shapes = f"{SAMPLES}x{BATCH}x{PIXELS}, targets {BATCH}x{PIXELS} uint8"
    return Work(
        name=f"bernoulli{'-graph' * graph}",
        title=f"`bernoulli_log_prob`, {shapes}{', in a graph' * graph}",
        kind="forward and backward",
        candidates={name: in_a_graph(make) if graph else make for name, make in candidates.items()},
        targets=lambda _: (Target(3),),
        moved=MOVED,
        needs=40 * 4 * SAMPLES * BATCH * PIXELS,
    )


COMPARISONS = [work(), work(graph=True)]
