"""Whole epochs of training on a CUDA device, beside loops in torch on the same device.

- plain torch: a loop as people write it, ``TensorDataset``, ``DataLoader(shuffle=True)``, a batch at a time
  to the device, the loss read in each step, default Adam;
- tuned torch: the pixels as bytes on the device, gathered by index, one loss, nothing read before the end of
  the epoch, the fused Adam; and the same with ``torch.compile(mode="reduce-overhead")``, which captures
  graphs;
- fastvae: ``fastvae.train`` with its step captured, compiled, captured in bfloat16, and neither.

A training has several epochs: the first compiles, captures and loads, the others are measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fastvae
import harness
import passes
from bench_training import CONFIGURATIONS, FASTVAE, PLAIN, RATE, SEED, TUNED, Configuration
from comparison import COMPILED, Row, Target, judge
from gpu.measuring import release, synchronize
from plain import PlainVAE

TUNED_COMPILED = f"{TUNED}, {COMPILED}"
CAPTURED, INDUCTOR, HALF, STEP_BY_STEP = (
    f"{FASTVAE}, {how}" for how in ("captured", "inductor", "captured, bfloat16", "not captured")
)
ALIKE = 0.05
"""How far the bounds of two ways to train may be apart: another seed makes less than 1 %."""


@dataclass(frozen=True)
class Trained:
    """The seconds of each epoch, and the mean bound of the last in nats."""

    seconds: Sequence[float]
    elbo: float


Train: TypeAlias = Callable[[np.ndarray, Configuration, int, torch.device], Trained]


@dataclass(frozen=True)
class Within(Target):
    """What is asked of a step by itself: at most ``times`` microseconds."""

    of: str = CAPTURED

    def text(self) -> str:
        return f"at most {self.times:g} us a step"

    def measured(self, timings: Mapping[str, harness.Timing]) -> float | None:
        if self.of not in timings:
            return None
        return 1e6 * harness.percentiles(timings[self.of].seconds)[1]

    def reached(self, ratio: float) -> bool:
        return ratio <= self.times


ASKED: dict[str, Sequence[Target]] = {
    "400-20-batch-128": (Target(5, PLAIN, CAPTURED),),
    "200-200-50-batch-20": (Within(60),),
}


# ------------------------------------------------------------------------------------------------ candidates


def epochs_of(epoch: Callable[[], float], samples: int, epochs: int) -> Trained:
    """Time epochs that give the sum of the loss over their samples."""
    seconds, total = [], 0.0
    for _ in range(epochs):
        synchronize()
        start = time.perf_counter()
        total = epoch()
        synchronize()
        seconds.append(time.perf_counter() - start)
    return Trained(seconds, -total / samples)


def train_plain(
    pixels: np.ndarray, configuration: Configuration, epochs: int, device: torch.device
) -> Trained:
    torch.manual_seed(SEED)
    images = torch.from_numpy(pixels).float() / 255
    loader = DataLoader(TensorDataset(images), batch_size=configuration.batch_size, shuffle=True)
    model = PlainVAE(configuration.hidden, configuration.codes).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def epoch() -> float:
        total = 0.0
        for (batch,) in loader:
            x = batch.to(device)
            recon, kl = model(x)
            loss = (kl - recon).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        return total

    return epochs_of(epoch, len(images), epochs)


def tuned(mode: str | None = None) -> Train:
    """The loop of a person who knows torch; ``mode`` is the compiler's, None is none."""

    def train(pixels: np.ndarray, configuration: Configuration, epochs: int, device: torch.device) -> Trained:
        torch.manual_seed(SEED)
        images = torch.from_numpy(pixels).to(device)
        model = PlainVAE(configuration.hidden, configuration.codes).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
        loss_of: Callable[[Tensor], Tensor] = model.loss
        if mode is not None:
            torch.compiler.reset()
            loss_of = torch.compile(model.loss, mode=mode, dynamic=False)

        def epoch() -> float:
            total = torch.zeros((), dtype=torch.float64, device=device)
            for rows in torch.randperm(len(images), device=device).split(configuration.batch_size):
                if mode is not None:
                    torch.compiler.cudagraph_mark_step_begin()
                loss = loss_of(images[rows].float().div_(255))
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total.add_(loss.detach(), alpha=len(rows))
            return float(total)

        return epochs_of(epoch, len(images), epochs)

    return train


def fused(**options: Any) -> Train:
    """``fastvae.train``, called as a person calls it; its history has the times."""

    def train(pixels: np.ndarray, configuration: Configuration, epochs: int, device: torch.device) -> Trained:
        result = fastvae.train(
            pixels,
            model="mlp",
            hidden_dims=configuration.hidden,
            latent_dim=configuration.codes,
            likelihood="bernoulli",
            batch_size=configuration.batch_size,
            learning_rate=RATE,
            epochs=epochs,
            validation=None,
            seed=SEED,
            device=device,
            progress=False,
            **options,
        )
        return Trained(
            [number(record["seconds"]) for record in result.history], number(result.history[-1]["elbo"])
        )

    return train


def number(value: float | None) -> float:
    assert value is not None
    return float(value)


TRAININGS: dict[str, Train] = {
    PLAIN: train_plain,
    CAPTURED: fused(compile="graph"),
    HALF: fused(compile="graph", precision="bfloat16"),
    STEP_BY_STEP: fused(compile=False),
    TUNED: tuned(),
    TUNED_COMPILED: tuned("reduce-overhead"),
    INDUCTOR: fused(compile="inductor"),
}
"""In the order in which they are trained: what the figures are about comes before what only compiles."""

QUICK = (PLAIN, CAPTURED, TUNED)


# ------------------------------------------------------------------------------------------------ measurement


def measure(
    key: str, pixels: np.ndarray, *, epochs: int, chosen: Sequence[str], data: str, device: torch.device
) -> Iterator[Row]:
    """Train in each of some ways, one epoch more than is measured; give the rows as they are made.

    The first that trains is what speeds refer to. One that fails has a row that says why.
    """
    configuration = CONFIGURATIONS[key]
    steps = -(-len(pixels) // configuration.batch_size)
    timings: dict[str, harness.Timing] = {}
    base: Trained | None = None
    for name in chosen:
        row: Row = {
            "benchmark": "training",
            "configuration": configuration.name,
            "candidate": name,
            "data": data,
            "samples": len(pixels),
            "steps": steps,
            "epochs": epochs,
        }
        note = ""
        try:
            trained = TRAININGS[name](pixels, configuration, epochs + 1, device)
            base = base or trained
            check(name, trained, base)
        except Exception as error:
            note = f"failed: {passes.reason(error)}"
        else:
            timings[name] = timing(name, trained, base, steps)
            row |= summary(timings[name], trained, steps, len(pixels))
        release()
        row |= judge([target for target in ASKED.get(key, ()) if target.of == name], timings)
        yield {**row, "note": note}


def check(name: str, trained: Trained, base: Trained) -> None:
    """Refuse a training that does not reach the bound of the first one."""
    if not abs(trained.elbo - base.elbo) <= ALIKE * abs(base.elbo):
        raise AssertionError(
            f"{name}: its bound is {trained.elbo:.2f} nats, that of plain torch {base.elbo:.2f}"
        )


def timing(name: str, trained: Trained, base: Trained, steps: int) -> harness.Timing:
    """Seconds per step of each epoch but the first."""
    own, other = ([seconds / steps for seconds in one.seconds[1:]] for one in (trained, base))
    return harness.Timing(name, own, harness.ratios(other, own))


def summary(own: harness.Timing, trained: Trained, steps: int, samples: int) -> Row:
    low, middle, high = harness.percentiles(own.seconds)
    slow, ratio, fast = harness.percentiles(own.speedups)
    return {
        "step_us": round(1e6 * middle, 2),
        "step_us_p20": round(1e6 * low, 2),
        "step_us_p80": round(1e6 * high, 2),
        "epoch_seconds": round(middle * steps, 4),
        "images_per_second": round(samples / (middle * steps), 1),
        "first_epoch_seconds": round(trained.seconds[0], 3),
        "speedup": round(ratio, 4),
        "speedup_p20": round(slow, 4),
        "speedup_p80": round(fast, 4),
        "train_elbo": round(trained.elbo, 3),
    }
