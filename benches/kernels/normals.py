"""Standard normals into a tensor that is there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

import harness
import passes
from comparison import COMPILED, EAGER, FASTVAE, Comparison, Target, UnavailableError
from fastvae import _core, noise
from machine import Processor

ELEMENTS = 2**16
SEED = 1


def eager(target: Tensor) -> Tensor:
    return target.normal_()


def fused(target: Tensor) -> Tensor:
    return noise.normal(target.shape, SEED, out=target)


def candidate(name: str, fill: Callable[[Tensor], Tensor]) -> harness.Candidate:
    target = torch.empty(ELEMENTS)
    check(name, fill, target)
    return harness.Candidate(name, lambda _: fill(target))


def check(name: str, fill: Callable[[Tensor], Tensor], target: Tensor) -> None:
    """Refuse numbers that are not in the tensor, or whose first four moments are not a normal's."""
    target.zero_()
    fill(target)
    values = target.double()
    # Five standard errors of each moment: of n normals they are sqrt(1, 2, 15, 96) / sqrt(n).
    for power, (truth, variance) in enumerate(((0, 1), (1, 2), (0, 15), (3, 96)), start=1):
        moment = float(values.pow(power).mean())
        if abs(moment - truth) > 5 * (variance / len(values)) ** 0.5:
            raise AssertionError(f"{name}: moment {power} of the normals is {moment:.4f}, not {truth}")


def avx2(name: str) -> harness.Candidate:
    if _core.simd_level() != "avx2":
        raise UnavailableError(f"the kernels run at level {_core.simd_level()}, not avx2")
    return candidate(name, fused)


def targets(processor: Processor) -> Sequence[Target]:
    if processor.generation in {"Zen 4", "Zen 5"}:
        return (Target(6),)
    return (Target(4.2),) if processor.vendor == "Intel" and processor.simd == "AVX-512" else ()


WAYS = {
    EAGER: lambda name: candidate(name, eager),
    COMPILED: lambda name: candidate(name, passes.compiled(eager)),
}
COMPARISONS = [
    Comparison(
        name="normals",
        title=f"normals into a tensor, {ELEMENTS}",
        kind="forward",
        candidates={**WAYS, FASTVAE: lambda name: candidate(name, fused)},
        targets=targets,
        threads=1,
    ),
    Comparison(
        name="normals-avx2",
        title=f"normals into a tensor, {ELEMENTS}, AVX2 forced",
        kind="forward",
        candidates={**WAYS, FASTVAE: avx2},
        targets=lambda _: (Target(2.5),) if "avx2" in _core.levels() else (),
        threads=1,
        variables={"FASTVAE_SIMD": "avx2"} if "avx2" in _core.levels() else {},
    ),
]
