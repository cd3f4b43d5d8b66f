"""Every operation on a CUDA device on small tensors of odd shapes, forward and backward, beside the CPU.

What ``benches/gpu.sh`` runs under compute-sanitizer: nothing is timed, and what each kernel reads and writes
lies at the ends of its tensors. The exit code is 1 where a result is wrong.

    python benches/small_gpu.py             one case after the other
    python benches/small_gpu.py --jobs 8    in eight processes: nearly all of the time kernels are compiled
"""

from __future__ import annotations

import argparse
import concurrent.futures
import math
import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

import device as cuda
import fastvae
from fastvae import functional, noise
from fastvae.training import small_layers

SHAPES = ((7, 41), (1, 1), (33, 3), (5, 1030))
"""The first in every dtype, the others in float32: each combination is compiled."""

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
SEED = 7
SAMPLES = 3

Function: TypeAlias = Callable[..., Tensor | tuple[Tensor, ...]]
Case: TypeAlias = tuple[str, Function, Sequence[Tensor]]


def cases() -> Iterator[Case]:
    """What is called, and the tensors it is called with, on the CPU; the floating ones get gradients."""
    generator = torch.Generator().manual_seed(0)
    for rows, columns in SHAPES:
        pixels = torch.randint(0, 256, (rows, columns), dtype=torch.uint8, generator=generator)
        index = torch.randint(0, rows, (2 * rows + 1,), generator=generator)
        wide = torch.randn(4, SAMPLES, rows, columns, dtype=torch.float64, generator=generator)
        for dtype in DTYPES if (rows, columns) == SHAPES[0] else DTYPES[:1]:
            mu, logvar, prior_mu, prior_logvar = wide[:, 0].to(dtype)
            # Pixels stand for every sample: the rows of the parameters are more than those of the data.
            logits = wide[0].to(dtype)
            yield from latents(mu, logvar, prior_mu, prior_logvar)
            yield "bernoulli_log_prob", _of(functional.bernoulli_log_prob, target_max=255), (logits, pixels)
            yield (
                "gaussian_log_prob",
                _of(functional.gaussian_log_prob, target_max=255),
                (logits, wide[1].to(dtype), pixels),
            )
        for how in (None, "threshold", "dynamic"):
            gather = _of(functional.gather_batch, data_max=255, binarize=how, seed=SEED)
            yield f"gather_batch, {how}", gather, (pixels, index)
        x, weight = wide[0, 0].float(), torch.randn(9, columns, generator=generator)
        yield "layer", _Layer.apply, (x, weight, weight[:, 0].contiguous())
        yield from noises(rows, columns)


def latents(mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor) -> Iterator[Case]:
    yield "reparametrize", _of(functional.reparametrize, seed=SEED), (mu, logvar)
    for reduction in ("sample", "none", "dimension", "sum"):
        named = f"gaussian_kl, {reduction}"
        yield named, _of(functional.gaussian_kl, reduction=reduction), (mu, logvar)
        yield (
            f"reparametrize_kl, {reduction}",
            _of(functional.reparametrize_kl, reduction=reduction, seed=SEED),
            (mu, logvar),
        )
    yield "gaussian_kl, prior", functional.gaussian_kl, (mu, logvar, prior_mu, prior_logvar)
    yield (
        "reparametrize_kl, free bits",
        _of(functional.reparametrize_kl, free_bits=0.5, seed=SEED),
        (mu, logvar),
    )
    # Columns of another tensor: rows that lie apart.
    yield (
        "reparametrize_kl, chunks",
        lambda both: functional.reparametrize_kl(*both.chunk(2, -1), seed=SEED),
        (torch.cat((mu, logvar), -1),),
    )
    weights = _of(functional.reparametrize_log_weight, num_samples=SAMPLES, seed=SEED)
    yield "reparametrize_log_weight", weights, (mu, logvar)


def noises(rows: int, columns: int) -> Iterator[Case]:
    numbers = torch.arange(rows) * 5 + 2**33
    for make in (noise.normal, noise.uniform):
        yield (
            f"noise.{make.__name__}",
            lambda numbers, make=make: make((rows, columns), SEED, rows=numbers),
            (numbers,),
        )
    yield "noise.permutation", lambda like: noise.permutation(rows * columns, like), (torch.tensor(SEED),)
    yield (
        "noise.fold_in",
        lambda tags: noise.fold_in(torch.tensor(SEED, device=tags.device), tags),
        (numbers,),
    )


class _Layer(torch.autograd.Function):
    """A linear layer with its ReLU, as it is in a captured step."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = small_layers.forward(x, weight, bias, relu=True)
        ctx.save_for_backward(x, weight, y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        x, weight, y = ctx.saved_tensors
        return small_layers.of_input(grad, y, weight), *small_layers.of_weight(grad, y, x, weight)


def _of(function: Function, **options: object) -> Function:
    return lambda *tensors: function(*tensors, **options)


def results(function: Function, tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """What a function gives on a device, and its gradients for gradients that are all different."""
    given = [tensor.detach().to(device).requires_grad_(tensor.is_floating_point()) for tensor in tensors]
    outputs = function(*given)
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    differentiated = [tensor for tensor in given if tensor.requires_grad]
    grads: Sequence[Tensor] = ()
    if differentiated:
        incoming = [
            torch.linspace(-1, 1, output.numel(), device=device).to(output.dtype).reshape(output.shape)
            for output in outputs
        ]
        grads = torch.autograd.grad(outputs, differentiated, incoming)
    return [tensor.detach().cpu() for tensor in (*outputs, *grads)]


def check(name: str, function: Function, tensors: Sequence[Tensor], device: torch.device) -> str:
    """Say how the device is wrong; nothing where it is right."""
    tolerance = TOLERANCES.get(tensors[0].dtype, 0.0)
    for own, other in zip(
        results(function, tensors, torch.device("cpu")), results(function, tensors, device), strict=True
    ):
        try:
            # A sum of terms of either sign may be small beside them.
            scale = float(own.double().abs().max()) if own.is_floating_point() else 0.0
            torch.testing.assert_close(other, own, rtol=tolerance, atol=tolerance * scale)
        except AssertionError as error:
            return f"{name}, {tuple(tensors[0].shape)} {tensors[0].dtype}: {error}"
    return ""


def check_training(device: torch.device) -> str:
    """Say how a training on the device is wrong: its updates have kernels of their own.

    It is not captured: in a capture only torch's allocator can allocate, which hides the ends of tensors from
    the sanitizer.
    """
    rows = torch.rand(70, 11, generator=torch.Generator().manual_seed(0)).numpy()
    bounds = []
    for place in (torch.device("cpu"), device):
        result = fastvae.train(
            rows,
            likelihood="bernoulli",
            latent_dim=3,
            hidden_dims=(7,),
            batch_size=16,
            epochs=2,
            validation=None,
            device=place,
            compile=False,
            progress=False,
        )
        bounds.append(float(result.history[-1]["elbo"] or math.nan))
    own, other = bounds
    near = abs(own - other) <= TOLERANCES[torch.float32] * abs(own)
    return "" if near else f"training: the bound is {other} nats, on the CPU {own}"


def share(device: torch.device, number: int, jobs: int) -> list[str]:
    """Check every so manieth case, from one on; say what is wrong."""
    found = [check(*case, device) for case in list(cases())[number::jobs]]
    if number == 0:
        found.append(check_training(device))
    return [text for text in found if text]


def run(device: torch.device, jobs: int = 1) -> int:
    """Check every case; print those that are wrong, and how many there are."""
    if jobs == 1:
        shares = [share(device, 0, 1)]
    else:
        spawn = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(jobs, spawn) as pool:
            shares = list(pool.map(share, [device] * jobs, range(jobs), [jobs] * jobs))
    wrong = [text for texts in shares for text in texts]
    for text in wrong:
        print(text)
    print(f"{len(list(cases()))} small cases and a training on {device}: {len(wrong)} wrong")
    return int(bool(wrong))


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that share the cases")
    options = parser.parse_args(argv)
    if options.jobs < 1:
        parser.error(f"--jobs must be at least 1, got {options.jobs}")
    wrong = cuda.problem()
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return cuda.MISSING
    return run(torch.device("cuda", torch.cuda.current_device()), options.jobs)


if __name__ == "__main__":
    sys.exit(main())
