"""How exact every operation is: the largest error of its values and gradients, relative and in ulps.

Both are beside the result where all terms have one sign, and beside the sum of the sizes of the terms where
they may cancel: what is left of them can be as small as one likes, and an error that is an ulp of a term is
then many of the result.

float32, bfloat16 and float16 against the formulas in float64 on a million numbers each, float64 against fifty
digits on two thousand. The inputs reach from 1e-8 to 20 in size, on both sides of zero (float16: from 1e-4 to
6), and are exact: the truth is that of the number which the dtype holds.

    python3 tasks.py bench              all benches, into benches/results/<processor>/
    python benches/accuracy.py --quick  fewer numbers, printed only
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import machine
import report
from exact import Arithmetic, Array, FiftyDigits, Float64
from fastvae import functional, noise
from fastvae.ops.layout import OPMATH
from fastvae.ops.noise.reference import words

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
ROW = 100
"""Columns that a sum goes over."""

SEED = 1
RESULT, TERMS = "the result", "its terms"


@dataclass(frozen=True)
class Quantity:
    """A result, its truth, and the size that its error is compared with.

    Attributes
    ----------
    operation, name : str
    got : Tensor
    truth : array
    size : array, optional
        Sum of the sizes of the terms, where they may cancel: no arithmetic of the inputs' precision keeps an
        error that is small beside what is left of them. Without it, the truth itself.
    """

    operation: str
    name: str
    got: Tensor
    truth: Array
    size: Array | None = None


class Numbers:
    """Exact inputs of a dtype, and the arithmetic that is truth for it."""

    def __init__(self, dtype: torch.dtype, count: int) -> None:
        self.dtype = dtype
        self.exact: Arithmetic = FiftyDigits() if dtype == torch.float64 else Float64()
        self.rows = max(1, count // ROW)
        self._generator = torch.Generator().manual_seed(0)
        # In float16 the square of 1e-4 is almost nothing and e^7 times the square of 7 is infinite.
        self._smallest, self._largest = (1e-4, 6.0) if dtype == torch.float16 else (1e-8, 20.0)

    def signed(self, *shape: int) -> Tensor:
        """Numbers of all sizes and both signs, evenly over the logarithm of their size."""
        low, high = np.log(self._smallest), np.log(self._largest)
        size = (low + (high - low) * self._uniform(shape)).exp()
        sign = 1 - 2 * (self._uniform(shape) < 0.5).double()
        return (size * sign).to(self.dtype).requires_grad_()

    def weights(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        """Gradients that come in: between 1/2 and 1, so that none makes a result small."""
        return (0.5 + 0.5 * self._uniform(shape)).to(dtype or self.dtype)

    def between(self, *shape: int) -> Tensor:
        """Numbers between 0 and 1, in the dtype of the arithmetic."""
        return self._uniform(shape).to(OPMATH[self.dtype]).requires_grad_()

    def pixels(self, *shape: int) -> Tensor:
        return torch.randint(0, 256, shape, dtype=torch.uint8, generator=self._generator)

    def _uniform(self, shape: Sequence[int]) -> Tensor:
        return torch.rand(*shape, dtype=torch.float64, generator=self._generator)


# --------------------------------------------------------------------------------------------- the operations


def normals(numbers: Numbers) -> Iterator[Quantity]:
    """Box-Muller on the contract's words; beside the radius, since sine and cosine pass through zero."""
    if numbers.dtype != torch.float32:
        return  # the same float32 numbers, converted
    got = noise.normal((numbers.rows, ROW), SEED)
    first, second, third, fourth = words(torch.arange(numbers.rows), ROW, torch.tensor(SEED), 0)
    e = numbers.exact
    truth, size = [], []
    for radial, angular in ((first, second), (third, fourth)):
        # The contract rounds the uniform to float32 before its logarithm, twice.
        uniform = (radial.float() + 0.5) / 2**32
        radius = np.sqrt(-2 * e.log(e.array(uniform)))
        half_turn, quarters = angular >> 31, (angular + 2**30) % 2**31 - 2**30
        angle = 2 * e.pi * (e.array(half_turn) / 2 + (e.array(quarters) + 0.5) / 2**32)
        truth += [radius * e.cos(angle), radius * e.sin(angle)]
        size += [radius, radius]
    shape = (numbers.rows, ROW)
    yield Quantity(
        "noise.normal", "value", got, np.stack(truth, -1).reshape(shape), np.stack(size, -1).reshape(shape)
    )


def uniforms(numbers: Numbers) -> Iterator[Quantity]:
    """24 bits of the contract's words: rounded in half precision alone."""
    got = noise.uniform((numbers.rows, ROW), SEED, dtype=numbers.dtype)
    parts = words(torch.arange(numbers.rows), ROW, torch.tensor(SEED), 0)
    truth = torch.stack([(part >> 8).double() / 2**24 for part in parts], -1)
    yield Quantity("noise.uniform", "value", got, numbers.exact.array(truth.view(numbers.rows, ROW)))


def gaussian_kl(numbers: Numbers) -> Iterator[Quantity]:
    name = "gaussian_kl"
    mu, logvar = (numbers.signed(numbers.rows, ROW) for _ in range(2))
    kl = functional.gaussian_kl(mu, logvar, reduction="none")
    incoming = numbers.weights(numbers.rows, ROW, dtype=kl.dtype)
    grads = torch.autograd.grad(kl, (mu, logvar), incoming)
    e = numbers.exact
    m, l, g = map(e.array, (mu, logvar, incoming))  # noqa: E741
    truth = (e.expm1_minus(l) + m * m) / 2
    yield Quantity(name, "one dimension", kl, truth)
    yield Quantity(name, "sum of a row", functional.gaussian_kl(mu, logvar), truth.sum(-1))
    yield Quantity(name, "gradient of mu", grads[0], g * m)
    yield Quantity(name, "gradient of logvar", grads[1], g * e.expm1(l) / 2)
    mean = functional.gaussian_kl(mu, logvar, reduction="dimension")
    incoming = numbers.weights(ROW, dtype=mean.dtype)
    grads = torch.autograd.grad(mean, (mu, logvar), incoming)
    g = e.array(incoming) / numbers.rows
    yield Quantity(name, "mean of a dimension", mean, truth.sum(0) / numbers.rows)
    yield Quantity(name, "gradient of mu from it", grads[0], g * m)
    yield Quantity(name, "gradient of logvar from it", grads[1], g * e.expm1(l) / 2)


def free_bits(numbers: Numbers) -> Iterator[Quantity]:
    """With a floor that half of the groups reach, in a wide gap of theirs: rounding moves none over it."""
    name, group = "gaussian_kl, free bits", 4
    mu, logvar = (numbers.signed(numbers.rows, ROW) for _ in range(2))
    e = numbers.exact
    m, l = map(e.array, (mu, logvar))  # noqa: E741
    groups = ((e.expm1_minus(l) + m * m) / 2).reshape(numbers.rows, -1, group).sum(-1)
    ordered = np.sort(as_float(groups), axis=None)
    middle = ordered[len(ordered) * 4 // 10 : len(ordered) * 6 // 10]
    widest = int((middle[1:] / middle[:-1]).argmax())
    floor = float(np.sqrt(middle[widest] * middle[widest + 1]))
    kl = functional.gaussian_kl(mu, logvar, free_bits=floor, group_size=group)
    incoming = numbers.weights(numbers.rows, dtype=kl.dtype)
    grads = torch.autograd.grad(kl, (mu, logvar), incoming)
    above = as_float(groups) > floor
    g = e.array(incoming.unsqueeze(-1)) * np.repeat(above, group, axis=-1)
    yield Quantity(name, "sum of a row", kl, np.where(above, groups, floor).sum(-1))
    yield Quantity(name, "gradient of mu", grads[0], g * m)
    yield Quantity(name, "gradient of logvar", grads[1], g * e.expm1(l) / 2)


def gaussian_kl_prior(numbers: Numbers) -> Iterator[Quantity]:
    name = "gaussian_kl, given prior"
    # Log-variances of half the range: their difference then stays in it.
    mu, logvar, prior_mu, prior_logvar = (
        (numbers.signed(numbers.rows, ROW) / scale).detach().requires_grad_() for scale in (1, 2, 1, 2)
    )
    inputs = (mu, logvar, prior_mu, prior_logvar)
    kl = functional.gaussian_kl(*inputs, reduction="none")
    incoming = numbers.weights(numbers.rows, ROW, dtype=kl.dtype)
    grads = torch.autograd.grad(kl, inputs, incoming)
    e = numbers.exact
    m, l, pm, pl, g = map(e.array, (*inputs, incoming))  # noqa: E741
    precision = e.exp(-pl)
    square = (m - pm) ** 2 * precision
    growth = e.expm1(l - pl)
    yield Quantity(name, "one dimension", kl, (e.expm1_minus(l - pl) + square) / 2)
    yield Quantity(name, "gradient of mu", grads[0], g * (m - pm) * precision)
    yield Quantity(name, "gradient of logvar", grads[1], g * growth / 2)
    yield Quantity(name, "gradient of prior_mu", grads[2], g * (pm - m) * precision)
    yield Quantity(
        name, "gradient of prior_logvar", grads[3], -g * (growth + square) / 2, g * (abs(growth) + square) / 2
    )


def reparametrize_kl(numbers: Numbers) -> Iterator[Quantity]:
    name = "reparametrize_kl"
    mu, logvar = (numbers.signed(numbers.rows, ROW) for _ in range(2))
    z, kl = functional.reparametrize_kl(mu, logvar, seed=SEED)
    grad_z, grad_kl = numbers.weights(numbers.rows, ROW), numbers.weights(numbers.rows, dtype=kl.dtype)
    grads = torch.autograd.grad((z, kl), (mu, logvar), (grad_z, grad_kl))
    e = numbers.exact
    m, l, g, w = map(e.array, (mu, logvar, grad_z, grad_kl.unsqueeze(-1)))  # noqa: E741
    scaled = e.exp(l / 2) * e.array(noise.normal((numbers.rows, ROW), SEED))
    growth = e.expm1(l)
    yield Quantity(name, "z", z, m + scaled, abs(m) + abs(scaled))
    yield Quantity(name, "kl of a row", kl, ((e.expm1_minus(l) + m * m) / 2).sum(-1))
    yield Quantity(name, "gradient of mu", grads[0], g + w * m, g + abs(w * m))
    yield Quantity(
        name,
        "gradient of logvar",
        grads[1],
        (g * scaled + w * growth) / 2,
        (abs(g * scaled) + abs(w * growth)) / 2,
    )


def reparametrize_log_weight(numbers: Numbers) -> Iterator[Quantity]:
    name = "reparametrize_log_weight"
    samples, rows = 4, max(1, numbers.rows // 4)
    # Sizes up to a few units: log-variances of 20 have weights that are their largest square alone.
    mu, logvar = ((numbers.signed(rows, ROW) / 8).detach().requires_grad_() for _ in range(2))
    z, weight = functional.reparametrize_log_weight(mu, logvar, num_samples=samples, seed=SEED)
    grad_z, grad_weight = numbers.weights(*z.shape), numbers.weights(*weight.shape, dtype=weight.dtype)
    grads = torch.autograd.grad((z, weight), (mu, logvar), (grad_z, grad_weight))
    e = numbers.exact
    zero = torch.zeros(rows, ROW)
    eps = e.array(functional.reparametrize_log_weight(zero, zero, num_samples=samples, seed=SEED)[0])
    m, l, g, w = map(e.array, (mu, logvar, grad_z, grad_weight.unsqueeze(-1)))  # noqa: E741
    scaled = e.exp(l / 2) * eps
    point = m + scaled
    term = (eps * eps + l - point * point) / 2
    yield Quantity(name, "z", z, point, abs(m) + abs(scaled))
    yield Quantity(
        name, "log_weight", weight, term.sum(-1), ((eps * eps + abs(l) + point * point) / 2).sum(-1)
    )
    yield Quantity(
        name, "gradient of mu", grads[0], (g - w * point).sum(0), (g + w * (abs(m) + abs(scaled))).sum(0)
    )
    yield Quantity(
        name,
        "gradient of logvar",
        grads[1],
        ((g - w * point) * scaled + w).sum(0) / 2,
        ((g + w * (abs(m) + abs(scaled))) * abs(scaled) + w).sum(0) / 2,
    )


def bernoulli_log_prob(numbers: Numbers) -> Iterator[Quantity]:
    """Of pixels, and of targets that are floating-point numbers."""
    e = numbers.exact
    logits = numbers.signed(numbers.rows, ROW)
    l = e.array(logits)  # noqa: E741
    pixels, values = numbers.pixels(numbers.rows, ROW), numbers.between(numbers.rows, ROW)
    for name, target, largest, x in (
        ("bernoulli_log_prob", pixels, 255, e.array(pixels) / 255),
        ("bernoulli_log_prob, float targets", values, None, e.array(values)),
    ):
        value = functional.bernoulli_log_prob(logits, target, target_max=largest)
        each = functional.bernoulli_log_prob(logits, target, target_max=largest, event_dims=0)
        incoming = numbers.weights(numbers.rows, dtype=value.dtype)
        wanted = (logits, target) if target.requires_grad else (logits,)
        grads = torch.autograd.grad(value, wanted, incoming)
        g = e.array(incoming.unsqueeze(-1))
        # Two terms that are never positive: x log p + (1 - x) log(1 - p).
        truth = -(x * e.softplus(-l) + (1 - x) * e.softplus(l))
        p = 1 / (1 + e.exp(-l))
        yield Quantity(name, "one pixel", each, truth)
        yield Quantity(name, "sum of a row", value, truth.sum(-1))
        yield Quantity(name, "gradient of logits", grads[0], g * (x - p), g * (x + p))
        if target.requires_grad:
            yield Quantity(name, "gradient of targets", grads[1], g * l)


def gaussian_log_prob(numbers: Numbers) -> Iterator[Quantity]:
    """Of pixels, with a log-variance for each, and with one for all."""
    e = numbers.exact
    mean = numbers.signed(numbers.rows, ROW)
    target = numbers.pixels(numbers.rows, ROW)
    m, x = e.array(mean), e.array(target) / 255
    for name, logvar in (
        ("gaussian_log_prob", numbers.signed(numbers.rows, ROW)),
        ("gaussian_log_prob, one logvar", torch.tensor(-1.3, dtype=OPMATH[numbers.dtype]).requires_grad_()),
    ):
        value = functional.gaussian_log_prob(mean, logvar, target, target_max=255)
        each = functional.gaussian_log_prob(mean, logvar, target, target_max=255, event_dims=0)
        incoming = numbers.weights(numbers.rows, dtype=value.dtype)
        grads = torch.autograd.grad(value, (mean, logvar), incoming)
        l, g = e.array(logvar), e.array(incoming.unsqueeze(-1))  # noqa: E741
        precision = e.exp(-l)
        square, constant = (x - m) ** 2 * precision, e.log(2 * e.pi)
        truth, size = -(l + square + constant) / 2, (abs(l) + square + constant) / 2
        yield Quantity(name, "one pixel", each, truth, size)
        yield Quantity(name, "sum of a row", value, truth.sum(-1), size.sum(-1))
        yield Quantity(
            name, "gradient of mean", grads[0], g * (x - m) * precision, g * (x + abs(m)) * precision
        )
        truth, size = g * (square - 1) / 2, g * (square + 1) / 2
        if logvar.dim() == 0:
            truth, size = np.asarray(truth.sum()), np.asarray(size.sum())
        yield Quantity(name, "gradient of logvar", grads[1], truth, size)


def gather_batch(numbers: Numbers) -> Iterator[Quantity]:
    if numbers.dtype not in {torch.float32, torch.bfloat16}:
        return  # not dtypes of a batch
    name = "gather_batch"
    data = numbers.pixels(numbers.rows, ROW)
    index = torch.arange(numbers.rows).flip(0)
    e = numbers.exact
    level = e.array(data[index]) / 255
    got = functional.gather_batch(data, index, data_max=255, dtype=numbers.dtype)
    yield Quantity(name, "scaled", got, level)
    drawn = functional.gather_batch(
        data, index, data_max=255, binarize="dynamic", seed=SEED, dtype=numbers.dtype
    )
    uniform = e.array(noise.uniform((numbers.rows, ROW), SEED, rows=index))
    yield Quantity(name, "drawn", drawn, (uniform < level).astype(np.float64))


OPERATIONS = (
    normals,
    uniforms,
    gaussian_kl,
    free_bits,
    gaussian_kl_prior,
    reparametrize_kl,
    reparametrize_log_weight,
    bernoulli_log_prob,
    gaussian_log_prob,
    gather_batch,
)


# ----------------------------------------------------------------------------------------------------- errors


def errors(quantity: Quantity, exact: Arithmetic) -> tuple[float, float]:
    """The largest error of a result: relative to its size, and in units of the last place of its dtype there.

    The size is the quantity's own: the truth, or the sum of the sizes of its terms.

    Numbers below the normal range of the dtype count in ulps only: they have no relative precision.
    """
    got = exact.array(quantity.got)
    if got.shape != quantity.truth.shape:
        raise ValueError(f"{quantity.operation}, {quantity.name}: {got.shape} beside {quantity.truth.shape}")
    if not bool(quantity.got.isfinite().all()):
        raise ValueError(f"{quantity.operation}, {quantity.name}: there are results that are not finite")
    error = as_float(abs(got - quantity.truth))
    size = as_float(abs(quantity.truth if quantity.size is None else quantity.size))
    spacing, normal = unit_in_last_place(size, quantity.got.dtype)
    relative = np.divide(error, size, out=np.zeros_like(error), where=normal)
    return float(relative.max()), float((error / spacing).max())


def unit_in_last_place(size: np.ndarray, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """The distance of a dtype's numbers at a size, and where that size is a normal number of it."""
    information = torch.finfo(dtype)
    _, exponent = np.frexp(np.maximum(size, information.tiny))
    return np.ldexp(information.eps, exponent - 1), size >= information.tiny


def as_float(values: Array) -> np.ndarray:
    return np.asarray(values, dtype=np.float64)


def run(counts: dict[str, int]) -> list[dict[str, Any]]:
    """Measure every operation in every dtype; one row for each of its results."""
    source = machine.provenance(["torch", "fastvae"])
    rows = []
    for operation in OPERATIONS:
        for dtype, count in counts.items():
            numbers = Numbers(DTYPES[dtype], count)
            for quantity in operation(numbers):
                relative, ulps = errors(quantity, numbers.exact)
                row = {
                    "benchmark": "accuracy",
                    "operation": quantity.operation,
                    "result": quantity.name,
                    "dtype": dtype,
                    "result_dtype": str(quantity.got.dtype).removeprefix("torch."),
                    "numbers": quantity.got.numel(),
                    "relative_error": f"{relative:.2e}",
                    "ulps": f"{ulps:.2f}",
                    "beside": RESULT if quantity.size is None else TERMS,
                }
                print(line(row), flush=True)
                rows.append({**row, **source})
    return rows


def line(row: dict[str, Any]) -> str:
    name = f"{row['operation']:<33} {row['result']:<26} {row['dtype']:<9}"
    return f"{name} {row['relative_error']:>9} of {row['beside']:<10} {row['ulps']:>8} ulps"


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Write the table: a line for each result, a column for each dtype."""
    dtypes = list(dict.fromkeys(row["dtype"] for row in rows))
    lines: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in rows:
        key = (row["operation"], row["result"], row["beside"])
        wide = "" if row["result_dtype"] == row["dtype"] else f", {row['result_dtype']}"
        lines.setdefault(key, {})[row["dtype"]] = f"{row['relative_error']} ({row['ulps']}{wide})"
    return "\n".join(
        [
            "# Accuracy\n",
            report.source(rows[0]),
            "The largest error relative to the size named: the result, or the sum of the sizes of its terms",
            "where they may cancel. In brackets in units of the last place, at that size, of the result's",
            "dtype (and that dtype, where it is wider). `benches/accuracy.py` says on which numbers.\n",
            report.markdown_table(
                ["", "relative to", *dtypes],
                (
                    [f"`{operation}`: {result}", beside, *(cells.get(dtype, "") for dtype in dtypes)]
                    for (operation, result, beside), cells in lines.items()
                ),
            ),
        ]
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer numbers, printed only")
    parser.add_argument("--output-dir", type=Path, help="default: benches/results/<processor>")
    options = parser.parse_args(argv)
    many, few = (10_000, 400) if options.quick else (1_000_000, 2_000)
    rows = run({dtype: few if dtype == "float64" else many for dtype in DTYPES})
    folder = options.output_dir
    if folder is None and not options.quick:
        folder = report.RESULTS / machine.processor().folder
    if folder is None:
        print("\n" + tables(rows))
        return 0
    report.write_csv(folder / "accuracy.csv", rows)
    report.write_text(folder / "accuracy.md", tables(rows))
    print(f"\n{folder}: accuracy.csv, accuracy.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
