"""The latent step of a small model, forward and backward, inside a captured graph and outside."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

import bench_latent
import harness
import passes
from comparison import COMPILED, EAGER, FASTVAE, Target
from fastvae import functional, noise
from gpu import latent
from gpu.counted import SEED, Counted
from gpu.graphs import Captured, Results, capture
from gpu.measuring import Work, cuda

SHAPE = (128, 32)
EAGER_CAPTURED, FASTVAE_CAPTURED = f"{EAGER}, captured", f"{FASTVAE}, captured"


def once(step: latent.Step, tensors: Sequence[Tensor]) -> Results:
    """The step and its backward."""
    mu, logvar, grad_z, weight = tensors
    outputs = step(mu, logvar)
    return (
        *(output.detach() for output in outputs),
        *torch.autograd.grad(outputs, (mu, logvar), (grad_z, weight)),
    )


def plain(name: str, step: latent.Step) -> harness.Candidate:
    """A step as it is called."""
    tensors = latent.inputs(*SHAPE, torch.float32, cuda())
    latent.check(name, once(step, tensors), tensors)
    return harness.Candidate(name, lambda _: once(step, tensors))


def replayed(name: str, step: latent.Step) -> harness.Candidate:
    """A step that is recorded once and replayed."""
    tensors = latent.inputs(*SHAPE, torch.float32, cuda())
    graph = capture(lambda: once(step, tensors))
    check_replays(name, graph, tensors)
    return harness.Candidate(name, lambda _: graph.replay())


def counted(name: str) -> harness.Candidate:
    """The step of fastvae, recorded once; its noise is that of the count."""
    step = Counted.on(cuda())
    tensors = latent.inputs(*SHAPE, torch.float32, cuda())
    graph = capture(lambda: once(step, tensors))
    check_replays(name, graph, tensors)
    check_counted(name, graph, step, tensors)
    return harness.Candidate(name, lambda _: graph.replay())


def check_replays(name: str, graph: Captured, tensors: Sequence[Tensor]) -> None:
    """Refuse a graph whose replays are wrong, or all have the same noise."""
    seen = []
    for _ in range(2):
        graph.replay()
        latent.check(name, graph.results, tensors)
        seen.append(graph.results[0].clone())
    if torch.equal(*seen):
        raise AssertionError(f"{name}: two replays have the same noise")


def check_counted(name: str, graph: Captured, step: Counted, tensors: Sequence[Tensor]) -> None:
    """Refuse a replay whose z is not that of its step, computed on the CPU."""
    at = int(step.count)
    graph.replay()
    mu, logvar = (tensor.detach().cpu() for tensor in tensors[:2])
    wanted, _ = functional.reparametrize_kl(mu, logvar, seed=noise.fold_in(SEED, at))
    torch.testing.assert_close(
        graph.results[0].cpu(), wanted, rtol=1e-6, atol=1e-6, msg=lambda text: f"{name}: step {at}: {text}"
    )


COMPARISONS = [
    Work(
        name="captured",
        title=f"the latent step, {SHAPE[0]}x{SHAPE[1]}",
        kind="forward and backward",
        candidates={
            EAGER: lambda name: plain(name, bench_latent.eager),
            COMPILED: lambda name: plain(name, passes.compiled(bench_latent.eager)),
            FASTVAE: lambda name: plain(name, bench_latent.fused),
            EAGER_CAPTURED: lambda name: replayed(name, bench_latent.eager),
            FASTVAE_CAPTURED: counted,
        },
        targets=lambda _: (Target(5, of=FASTVAE_CAPTURED),),
    )
]
