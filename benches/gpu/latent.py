"""Sampling with the KL, forward and backward, where the time is that of moving bytes."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
import torch._functorch.config
from torch import Tensor

import bench_latent
import harness
import passes
from comparison import COMPILED, EAGER, FASTVAE, Target
from gpu.counted import Counted
from gpu.graphs import in_a_graph
from gpu.measuring import COPY, Bandwidth, Work, compare, copy, cuda, in_memory

Step: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

SIZES = {"16M": (4096, 4096), "16M-narrow": (131_072, 128), "256M": (16_384, 16_384)}
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
CHECKED = 64
"""Rows from either end of a tensor that are held to the formulas: a place past 2^31 would show there."""

TOLERANCES = {torch.float32: (1e-4, 1e-4), torch.bfloat16: (3e-2, 2e-1)}
"""Relative and absolute. Eager torch rounds every step to the eight bits of a bfloat16."""

HELD = 32
"""Tensors of this size that all candidates hold together at their highest, and some to spare."""


# ---------------------------------------------------------------------------------------------------- inputs


@functools.lru_cache(maxsize=1)
def inputs(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Return mu, logvar, and the gradients that come in for z and the KL; all candidates share them."""
    generator = torch.Generator(device).manual_seed(0)
    mu, logvar, grad_z = (
        torch.randn(rows, columns, generator=generator, dtype=dtype, device=device) for _ in range(3)
    )
    weight = torch.rand(rows, generator=generator, device=device)
    return mu.requires_grad_(), logvar.requires_grad_(), grad_z, weight


def moved(rows: int, columns: int, dtype: torch.dtype, kind: str) -> int:
    """Bytes that a pass has to move: mu and logvar in, and z out or its gradient in and two out.

    And a KL for each row, or its gradient, in float32. Noise is nothing to move: a seed makes it.
    """
    tensors = 3 if kind == "forward" else 5
    return tensors * rows * columns * dtype.itemsize + 4 * rows


# ------------------------------------------------------------------------------------------------ candidates


def candidate(name: str, step: Step, kind: str, tensors: Sequence[Tensor]) -> harness.Candidate:
    """One pass, called again and again: the graph of a backward is made once and kept."""
    # Leaves of its own, in the same memory: those of another stream would have to be waited for.
    mu, logvar = (tensor.detach().requires_grad_() for tensor in tensors[:2])
    grad_z, weight = tensors[2:]
    z, kl = step(mu, logvar)
    # Eager torch has a KL of bfloat16, and wants its gradient so.
    incoming = (grad_z, weight.to(kl.dtype))
    outputs = (z, kl)

    def backward(_: object = None) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, (mu, logvar), incoming, retain_graph=True)

    check(name, (z, kl, *backward()), tensors)
    if kind == "forward":
        return harness.Candidate(name, lambda _: step(mu, logvar))
    return harness.Candidate(name, backward)


def check(name: str, results: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
    """Refuse a step whose z, KL or gradients are not those of the formulas in float64 with the noise it drew.

    Rows do not depend on each other, so those at both ends stand for all.
    """
    relative, absolute = TOLERANCES[tensors[0].dtype]

    def ends(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if len(tensor) <= 2 * CHECKED:
            return tensor.double()
        return torch.cat((tensor[:CHECKED], tensor[-CHECKED:])).double()

    z, kl, of_mu, of_logvar = map(ends, results)
    mean, log, grad, weight = map(ends, tensors)
    noise, weight = z - mean, weight.unsqueeze(-1)
    pairs = [
        ("KL", kl, 0.5 * (log.exp() + mean.square() - 1 - log).sum(-1)),
        ("gradient of mu", of_mu, grad + weight * mean),
        ("gradient of logvar", of_logvar, 0.5 * (grad * noise + weight * (log.exp() - 1))),
    ]
    compare(name, pairs, relative=relative, absolute=absolute)
    eps = noise / (0.5 * log).exp()
    bound = 6 / eps.numel() ** 0.5 + absolute / 10
    if not (abs(eps.mean()) < bound and abs(eps.std() - 1) < bound):
        raise AssertionError(f"{name}: the noise has mean {eps.mean():.3f} and deviation {eps.std():.3f}")


def compiled() -> Step:
    # A graph that is kept is what the compiler refuses where it plans to write over saved tensors.
    torch._functorch.config.donated_buffer = False
    return passes.compiled(bench_latent.eager)


STEPS: dict[str, Callable[[], Step]] = {
    EAGER: lambda: bench_latent.eager,
    COMPILED: compiled,
    FASTVAE: lambda: bench_latent.fused,
}

IN_A_GRAPH: dict[str, Callable[[], Step]] = {FASTVAE: lambda: Counted.on(cuda())}
"""Those that are other steps there: as in training, a count costs less than a seed from the generator."""


def build(
    step: Callable[[], Step], kind: str, shape: tuple[int, int], dtype: torch.dtype
) -> Callable[[str], harness.Candidate]:
    return in_memory(lambda name: candidate(name, step(), kind, inputs(*shape, dtype, cuda())))


def targets(kind: str) -> Sequence[Target]:
    if kind == "forward":
        return (Bandwidth(0.7), Target(3), Target(1.5, COMPILED))
    return (Bandwidth(0.6), Target(2))


def work(size: str, dtype: str, kind: str, *, graph: bool = False) -> Work:
    shape, type_ = SIZES[size], DTYPES[dtype]
    bytes_ = moved(*shape, type_, kind)
    steps = STEPS | IN_A_GRAPH if graph else STEPS
    candidates = {
        **{name: build(step, kind, shape, type_) for name, step in steps.items()},
        COPY: in_memory(copy(bytes_)),
    }
    return Work(
        name=f"{kind}-{size}-{dtype}{'-graph' * graph}",
        title=f"`reparametrize_kl`, {shape[0]}x{shape[1]}{', in a graph' * graph}",
        kind=kind,
        candidates={name: in_a_graph(make) if graph else make for name, make in candidates.items()},
        targets=lambda _: targets(kind),
        quick=size == "16M",
        dtype=dtype,
        moved=bytes_,
        needs=HELD * shape[0] * shape[1] * type_.itemsize,
    )


COMPARISONS = [
    work(size, dtype, kind, graph=graph)
    for size, dtype, ways in (
        ("16M", "float32", (False, True)),
        ("16M", "bf16", (False, True)),
        ("256M", "float32", (False,)),
        ("256M", "bf16", (False,)),
        ("16M-narrow", "float32", (True,)),
    )
    for graph in ways
    for kind in ("forward", "backward")
]
