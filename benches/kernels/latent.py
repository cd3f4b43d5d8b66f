"""The latent step: sampling with the KL, on one thread and on two, and sampling with importance weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import torch
from torch import Tensor

import bench_latent
import harness
import passes
from comparison import COMPILED, EAGER, FASTVAE, Build, Comparison, Target, UnavailableError
from fastvae import functional
from machine import Processor

# ----------------------------------------------------------------------------------------- reparametrize_kl


def kl_candidate(name: str, size: str) -> harness.Candidate:
    """A step of ``bench_latent``, forward and backward."""
    step = bench_latent.STEPS[name]()
    bench_latent.check(name, step)
    return bench_latent.candidate(name, step, "both", bench_latent.inputs(*bench_latent.SIZES[size]))


def kl_build(size: str) -> Build:
    return lambda name: kl_candidate(name, size)


EMPTY = "an empty function"


class Empty(torch.autograd.Function):
    """Results and gradients that are there already: what remains is what torch takes for any function."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(mu, logvar)
        return mu.detach(), logvar.detach()[:, 0]

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        ctx.saved_tensors  # noqa: B018 -- they are unpacked here
        return grad_z, grad_z


def empty_candidate(size: str) -> harness.Candidate:
    """The one that is not checked: it computes nothing."""
    tensors = bench_latent.inputs(*bench_latent.SIZES[size])
    return bench_latent.candidate(EMPTY, Empty.apply, "both", tensors)


def largest_targets(processor: Processor) -> Sequence[Target]:
    if processor.generation.startswith("Zen"):
        return (Target(12),)
    return (Target(9),) if processor.vendor == "Intel" else ()


def kl_comparison(
    size: str,
    targets: Callable[[Processor], Sequence[Target]],
    *,
    others: Mapping[str, Build] = MappingProxyType({}),
    quick: bool = True,
) -> Comparison:
    return Comparison(
        name=f"reparametrize_kl-{size}",
        title=f"`reparametrize_kl`, {size}",
        kind="forward and backward",
        candidates={name: kl_build(size) for name in bench_latent.STEPS} | dict(others),
        targets=targets,
        quick=quick,
    )


# ------------------------------------------------------------------------------------------- two threads

THREADS_SIZE = "64x16384"


def on_threads(name: str, step: bench_latent.Step, threads: int) -> harness.Candidate:
    """The forward on a number of threads that is set, and warmed up, before the clock starts."""
    if (os.cpu_count() or 1) < threads:
        raise UnavailableError(f"this machine has {os.cpu_count()} core")
    bench_latent.check(name, step)
    mu, logvar, *_ = bench_latent.inputs(*bench_latent.SIZES[THREADS_SIZE])

    def prepare() -> None:
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
            step(mu, logvar)

    return harness.Candidate(name, lambda _: step(mu, logvar), prepare)


# -------------------------------------------------------------------------------- reparametrize_log_weight

SAMPLES, BATCH, CODES = 50, 128, 50
Weights: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def eager_weights(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    """As public importance-weighted autoencoders have it; the constants of the two densities cancel."""
    std = torch.exp(0.5 * logvar)
    eps = torch.randn(SAMPLES, *mu.shape)
    z = mu + eps * std
    log_prior = torch.sum(-0.5 * z**2, -1)
    log_posterior = torch.sum(-0.5 * eps**2 - 0.5 * logvar, -1)
    return z, log_prior - log_posterior


def fused_weights(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    return functional.reparametrize_log_weight(mu, logvar, num_samples=SAMPLES)


def weights_candidate(name: str, step: Weights) -> harness.Candidate:
    mu, logvar, _, _ = bench_latent.inputs(BATCH, CODES)
    generator = torch.Generator().manual_seed(1)
    incoming = (
        torch.randn(SAMPLES, BATCH, CODES, generator=generator),
        torch.rand(SAMPLES, BATCH, generator=generator),
    )
    check_weights(name, step, mu, logvar, incoming)
    return passes.candidate(name, step, "both", (mu, logvar), incoming)


def check_weights(
    name: str, step: Weights, mu: Tensor, logvar: Tensor, incoming: tuple[Tensor, Tensor]
) -> None:
    """Refuse values or gradients that are not those of the formulas in float64 with the noise it drew."""
    outputs = step(mu, logvar)
    got = (outputs[1], *torch.autograd.grad(outputs, (mu, logvar), incoming))
    mean, log = (tensor.detach().double().requires_grad_() for tensor in (mu, logvar))
    eps = (outputs[0].detach().double() - mean.detach()) / (0.5 * log.detach()).exp()
    bound = 6 / eps.numel() ** 0.5  # standard errors of the mean, and more than that of the deviation
    if not (abs(eps.mean()) < bound and abs(eps.std() - 1) < bound):
        raise AssertionError(f"{name}: the noise has mean {eps.mean():.3f} and deviation {eps.std():.3f}")
    z = mean + (0.5 * log).exp() * eps
    weight = 0.5 * (eps.square() + log - z.square()).sum(-1)
    grads = torch.autograd.grad((z, weight), (mean, log), tuple(tensor.double() for tensor in incoming))
    for actual, wanted in zip(got, (weight, *grads), strict=True):
        torch.testing.assert_close(
            actual.double(), wanted, rtol=1e-4, atol=1e-3, msg=lambda text: f"{name}: {text}"
        )


COMPARISONS = [
    kl_comparison("128x32", lambda _: (Target(3),), others={EMPTY: lambda _: empty_candidate("128x32")}),
    kl_comparison("1024x128", lambda _: (Target(5), Target(10, COMPILED))),
    kl_comparison("64x16384", lambda _: (Target(9),)),
    kl_comparison("4096x4096", largest_targets, quick=False),
    Comparison(
        name="threads",
        title=f"`reparametrize_kl`, {THREADS_SIZE}, two threads over one",
        kind="forward",
        candidates={
            f"{EAGER}, 1 thread": lambda name: on_threads(name, bench_latent.eager, 1),
            f"{EAGER}, 2 threads": lambda name: on_threads(name, bench_latent.eager, 2),
            f"{FASTVAE}, 1 thread": lambda name: on_threads(name, bench_latent.fused, 1),
            f"{FASTVAE}, 2 threads": lambda name: on_threads(name, bench_latent.fused, 2),
        },
        targets=lambda _: (Target(1.8, f"{FASTVAE}, 1 thread", f"{FASTVAE}, 2 threads"),),
        threads=0,
    ),
    Comparison(
        name="log_weight",
        title=f"`reparametrize_log_weight`, {SAMPLES} samples of {BATCH}x{CODES}",
        kind="forward and backward",
        candidates={
            EAGER: lambda name: weights_candidate(name, eager_weights),
            COMPILED: lambda name: weights_candidate(name, passes.compiled(eager_weights)),
            FASTVAE: lambda name: weights_candidate(name, fused_weights),
        },
        targets=lambda _: (Target(6),),
    ),
]
