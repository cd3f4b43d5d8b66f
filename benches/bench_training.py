"""One epoch of training: images per second, memory and the bound reached, beside other ways to train.

- plain torch: a loop as people write it, ``TensorDataset``, ``DataLoader(shuffle=True)``, default Adam;
- tuned torch: the same with the pixels kept as bytes and gathered by index, one loss, the fused Adam;
- pythae: its ``TrainingPipeline`` with the same networks, the training pipeline of a published package;
- fastvae: ``fastvae.train``.

All train the same network (784-H...-codes-...H-784, ReLU) for the same number of steps of the same size,
with Adam at 1e-3 and the Bernoulli likelihood of gray pixels: of the ways to treat pixels the one that all of
them can do without changes. What is timed is the whole way from an array of bytes in memory to a trained
model, after a training on a few rows that loads what is loaded lazily. Each run is a process of its own; the
candidates take turns, and figures are medians over the rounds. Each round has a seed of its own, the same for
all candidates: the bounds that a network reaches in one epoch depend on it, so they have their lowest and
highest beside them.

    python3 tasks.py bench-training                 all, with pythae installed
    python benches/bench_training.py --quick        few samples, printed only
    python benches/bench_training.py --data FOLDER  MNIST: the folder has its IDX files
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fastvae
import harness
import machine
import report
from comparison import Target, judge
from fastvae.data.idx import read_idx
from plain import PIXELS, PlainVAE, dense, held_out_elbo

RATE = 1e-3
SEED = 0
"""Of the noise that models are evaluated with, and of the first round; the next ones count on from it."""
SAMPLES = 60_000
HELD_OUT = 10_000
DRAWS = 2
WARM_UP = 512
"""Rows of the training before the one that is measured."""

PLAIN, TUNED, PYTHAE, FASTVAE = "plain torch", "tuned torch", "pythae", "fastvae"


@dataclass(frozen=True)
class Configuration:
    """A network, its batches, and what is asked of fastvae there."""

    hidden: tuple[int, ...]
    codes: int
    batch_size: int
    targets: tuple[Target, ...] = ()

    @property
    def name(self) -> str:
        return f"{'-'.join(map(str, (PIXELS, *self.hidden, self.codes)))}, batch {self.batch_size}"


NEVER_SLOWER = Target(1, TUNED)
THRICE = (Target(3, PLAIN), Target(3, PYTHAE), NEVER_SLOWER)
CONFIGURATIONS = {
    "200-200-50-batch-20": Configuration((200, 200), 50, 20, THRICE),
    "200-200-50-batch-100": Configuration((200, 200), 50, 100, THRICE),
    "400-20-batch-128": Configuration((400,), 20, 128, (NEVER_SLOWER,)),
}
QUICK = ["400-20-batch-128"]


@dataclass(frozen=True)
class Trained:
    """What a training gives: the mean bound of its epoch in nats, and the networks."""

    train_elbo: float
    encoder: Callable[[Tensor], Tensor]
    """To mean and log-variance, side by side."""
    decoder: Callable[[Tensor], Tensor]
    """To logits."""


Train: TypeAlias = Callable[[np.ndarray, Configuration, int], Trained]
"""Of pixels and a network, from a seed."""


# ------------------------------------------------------------------------------------------------ candidates


def train_plain(pixels: np.ndarray, configuration: Configuration, seed: int) -> Trained:
    torch.manual_seed(seed)
    images = torch.from_numpy(pixels).float() / 255
    loader = DataLoader(TensorDataset(images), batch_size=configuration.batch_size, shuffle=True)
    model = PlainVAE(configuration.hidden, configuration.codes)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    total = 0.0
    for (x,) in loader:
        recon, kl = model(x)
        loss = (kl - recon).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item() * len(x)
    return Trained(-total / len(images), model.encoder, model.decoder)


def train_tuned(pixels: np.ndarray, configuration: Configuration, seed: int) -> Trained:
    torch.manual_seed(seed)
    images = torch.from_numpy(pixels)
    model = PlainVAE(configuration.hidden, configuration.codes)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    total = torch.zeros((), dtype=torch.float64)
    for rows in torch.randperm(len(images)).split(configuration.batch_size):
        x = images[rows].float().div_(255)
        loss = model.loss(x)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total.add_(loss.detach(), alpha=len(x))
    return Trained(-float(total) / len(images), model.encoder, model.decoder)


def train_pythae(pixels: np.ndarray, configuration: Configuration, seed: int) -> Trained:
    # Their pipeline, with networks of the same size in place of its own; it trains and saves a model at the
    # end, as it always does, here into a folder that is thrown away.
    from pythae.models import VAE, VAEConfig  # noqa: PLC0415
    from pythae.models.base.base_utils import ModelOutput  # noqa: PLC0415
    from pythae.models.nn import BaseDecoder, BaseEncoder  # noqa: PLC0415
    from pythae.pipelines import TrainingPipeline  # noqa: PLC0415
    from pythae.trainers import BaseTrainerConfig  # noqa: PLC0415
    from pythae.trainers.training_callbacks import TrainingCallback  # noqa: PLC0415

    hidden, codes = configuration.hidden, configuration.codes

    class Encoder(BaseEncoder):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*dense([PIXELS, *hidden, 2 * codes]))

        def forward(self, x: Tensor) -> Any:
            mu, logvar = self.layers(x).chunk(2, dim=-1)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(*dense([codes, *reversed(hidden), PIXELS]))

        def forward(self, z: Tensor) -> Any:
            return ModelOutput(reconstruction=self.layers(z).sigmoid())

    losses: list[float] = []

    class Losses(TrainingCallback):  # type: ignore[misc, unused-ignore]
        def on_log(self, _config: object, logs: dict[str, float], **_: object) -> None:
            losses.append(logs["train_epoch_loss"])

    torch.manual_seed(seed)
    config = VAEConfig(input_dim=(PIXELS,), latent_dim=codes, reconstruction_loss="bce")
    model = VAE(config, encoder=Encoder(), decoder=Decoder())
    with tempfile.TemporaryDirectory() as folder, silence():
        trainer = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=1,
            learning_rate=RATE,
            per_device_train_batch_size=configuration.batch_size,
            optimizer_cls="Adam",
            seed=seed,
            no_cuda=True,
        )
        pipeline = TrainingPipeline(training_config=trainer, model=model)
        pipeline(train_data=pixels.astype(np.float32) / 255, callbacks=[Losses()])
    best = pipeline.model
    return Trained(-losses[-1], best.encoder.layers, best.decoder.layers)


def trained_by_fastvae(
    pixels: np.ndarray, configuration: Configuration, seed: int, *, epochs: int
) -> fastvae.TrainedVAE:
    return fastvae.train(
        pixels,
        latent_dim=configuration.codes,
        hidden_dims=configuration.hidden,
        likelihood="bernoulli",
        epochs=epochs,
        batch_size=configuration.batch_size,
        learning_rate=RATE,
        validation=None,
        seed=seed,
        device="cpu",
        progress=False,
    )


def train_fastvae(pixels: np.ndarray, configuration: Configuration, seed: int) -> Trained:
    result = trained_by_fastvae(pixels, configuration, seed, epochs=1)
    elbo = result.history[-1]["elbo"]
    assert elbo is not None
    return Trained(float(elbo), result.model.encoder, result.model.decoder)


TRAININGS: dict[str, Train] = {
    PLAIN: train_plain,
    TUNED: train_tuned,
    PYTHAE: train_pythae,
    FASTVAE: train_fastvae,
}


@contextlib.contextmanager
def silence() -> Any:
    """Keep a package's progress bars and logs off the screen, and its log level as it was."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(level)


def missing(name: str) -> str:
    """Say why a candidate cannot be measured; nothing where it can."""
    if name == PYTHAE and importlib.util.find_spec(PYTHAE) is None:
        return 'not installed: pip install "fastvae[peers]"'
    return ""


# ------------------------------------------------------------------------------------------------------ data


def load(folder: Path | None, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the pixels to train on and those that are held out: uint8, ``(N, 784)``."""
    if folder is None:
        return synthetic(samples, seed=1), synthetic(max(samples // 6, 100), seed=2)
    parts = []
    for part in ("train", "t10k"):
        files = sorted(folder.glob(f"{part}-images*"))
        if not files:
            raise FileNotFoundError(
                f"{folder} has no {part}-images-idx3-ubyte; name a folder with MNIST's files"
            )
        parts.append(read_idx(files[0]).reshape(-1, PIXELS))
    return parts[0][:samples], parts[1][:HELD_OUT]


def synthetic(samples: int, *, seed: int) -> np.ndarray:
    """Draw images with something to learn: ten factors behind 784 gray levels, most of them dark.

    The factors' weights are the same for every seed.
    """
    weights = np.random.default_rng(0).normal(size=(10, PIXELS)).astype(np.float32)
    factors = np.random.default_rng(seed).normal(size=(samples, 10)).astype(np.float32)
    return np.rint(255 / (1 + np.exp(3 - factors @ weights))).astype(np.uint8)


# --------------------------------------------------------------------------------------------------- running


def train_once(
    name: str, configuration: Configuration, folder: Path | None, samples: int, seed: int
) -> dict[str, Any]:
    """Train in this process, which does nothing else, and say how it went."""
    pixels, held_out = load(folder, samples)
    train = TRAININGS[name]
    train(pixels[:WARM_UP], configuration, seed)
    seconds = 0.0

    def timed() -> Trained:
        nonlocal seconds
        start = time.perf_counter()
        trained = train(pixels, configuration, seed)
        seconds = time.perf_counter() - start
        return trained

    trained, peak = harness.with_peak(timed)
    images = torch.from_numpy(held_out).double() / 255
    elbo = held_out_elbo(trained.encoder, trained.decoder, images, draws=DRAWS, seed=SEED)
    return {"seconds": seconds, "peak_bytes": peak, "train_elbo": trained.train_elbo, "held_out_elbo": elbo}


def run(
    chosen: Sequence[str], *, folder: Path | None, samples: int, rounds: int, threads: int
) -> list[dict[str, Any]]:
    """Train every candidate, in turns; one row for each candidate and configuration."""
    source = machine.provenance(["torch", "fastvae"])
    rows = []
    names = [name for name in TRAININGS if not missing(name)]
    versions = {name: version(name) for name in TRAININGS}
    for key in chosen:
        configuration = CONFIGURATIONS[key]
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
        # A seed: which candidate follows which is then no source of difference between two runs.
        shuffle = random.Random(0).shuffle  # noqa: S311
        for made in range(rounds):
            order = list(names)
            shuffle(order)
            for name in order:
                arguments = [name, key, str(folder or ""), str(samples), str(threads), str(SEED + made)]
                runs[name].append(harness.in_child(__file__, "--once", *arguments))
        for name in TRAININGS:
            row: dict[str, Any] = {
                "benchmark": "training",
                "configuration": configuration.name,
                "candidate": name,
                "data": "synthetic" if folder is None else "MNIST",
                "samples": samples,
                "threads": threads,
                **(summary(runs, name, samples) if name in runs else {}),
                **judge([target for target in configuration.targets if target.of == name], timings(runs)),
                "version": versions[name],
                "note": missing(name),
            }
            print(line(row), flush=True)
            rows.append({**row, **source})
    return rows


def timings(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, harness.Timing]:
    """The seconds of each candidate, round by round, with its speed over plain torch."""
    seconds = {name: [run["seconds"] for run in own] for name, own in runs.items()}
    return {
        name: harness.Timing(name, own, harness.ratios(seconds[PLAIN], own)) for name, own in seconds.items()
    }


def summary(runs: dict[str, list[dict[str, Any]]], name: str, samples: int) -> dict[str, Any]:
    """The medians over the rounds, with the spread of times, of speeds over plain torch and of bounds."""
    own = {key: [run[key] for run in runs[name]] for key in runs[name][0]}
    low, middle, high = harness.percentiles(own["seconds"])
    slow, ratio, fast = harness.percentiles(timings(runs)[name].speedups)
    peak = None if None in own["peak_bytes"] else harness.percentiles(own["peak_bytes"])[1]
    return {
        "images_per_second": round(samples / middle, 1),
        "seconds": round(middle, 3),
        "seconds_p20": round(low, 3),
        "seconds_p80": round(high, 3),
        "speedup": round(ratio, 4),
        "speedup_p20": round(slow, 4),
        "speedup_p80": round(fast, 4),
        "rounds": len(own["seconds"]),
        "peak_bytes": "" if peak is None else int(peak),
        **bounds("train_elbo", own["train_elbo"]),
        **bounds("held_out_elbo", own["held_out_elbo"]),
    }


def bounds(name: str, values: Sequence[float]) -> dict[str, float]:
    """The median over the rounds, whose seeds differ, the lowest and the highest."""
    middle = harness.percentiles(values)[1]
    return {
        name: round(middle, 3),
        f"{name}_lowest": round(min(values), 3),
        f"{name}_highest": round(max(values), 3),
    }


def version(name: str) -> str:
    """That of the package a candidate is of; nothing where it is not installed."""
    if missing(name):
        return ""
    return machine.version(name if name in {PYTHAE, FASTVAE} else "torch")


def line(row: dict[str, Any]) -> str:
    name = f"{row['configuration']:<32} {row['candidate']:<12}"
    if row["note"]:
        return f"{name} {row['note']}"
    peak = f"{row['peak_bytes'] / 2**20:7.1f} MiB" if row["peak_bytes"] != "" else ""
    return (
        f"{name} {row['images_per_second']:>9.0f} images/s {row['speedup']:6.2f}x {peak}  "
        f"ELBO {spread_of(row, 'train_elbo')} in training, {spread_of(row, 'held_out_elbo')} held out"
        + (f"  {row['target']}: {row['measured']}, {row['reached']}" if row["target"] else "")
    )


def spread_of(row: dict[str, Any], name: str) -> str:
    """A bound's median, and from where to where it went over the rounds."""
    return f"{row[name]:.2f} ({row[f'{name}_lowest']:.2f} to {row[f'{name}_highest']:.2f})"


# --------------------------------------------------------------------------------------------------- results


HEADER = (
    "",
    "images per second",
    "speed",
    "seconds",
    "MiB",
    "ELBO in training",
    "ELBO held out",
    "asked",
    "measured",
    "reached",
)


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Write a table for each configuration."""
    first = rows[0]
    text = [
        "# One epoch of training\n",
        report.source(first),
        f"{first['samples']} images of {PIXELS} gray pixels ({first['data']}), Bernoulli likelihood, Adam;",
        f"{report.count(first['threads'], 'thread')}; medians over {report.count(first['rounds'], 'round')},",
        "each from another seed. The speed is that over plain torch, the memory what the training adds at",
        "its highest to the array it is given. The bounds are in nats, in brackets the lowest and highest",
        "of the rounds: the mean over the epoch as training saw it, and that of held-out images in float64.",
        "What is asked is compared with the median of the ratios within the rounds.\n",
    ]
    for configuration in dict.fromkeys(row["configuration"] for row in rows):
        text.append(f"## {configuration}\n")
        text.append(
            report.markdown_table(
                HEADER,
                (_cells(row) for row in rows if row["configuration"] == configuration),
            )
        )
    return "\n".join(text)


def _cells(row: dict[str, Any]) -> list[str]:
    name = f"{row['candidate']} {row['version']}" if row["candidate"] == PYTHAE else row["candidate"]
    if row["note"]:
        return [name.strip(), row["note"], *[""] * (len(HEADER) - 2)]
    return [
        name,
        f"{row['images_per_second']:.0f}",
        f"{row['speedup']:.2f}",
        f"{row['seconds']:.2f}",
        f"{row['peak_bytes'] / 2**20:.1f}" if row["peak_bytes"] != "" else "",
        spread_of(row, "train_elbo"),
        spread_of(row, "held_out_elbo"),
        row["target"],
        row["measured"],
        row["reached"],
    ]


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw each candidate's speed over plain torch."""
    bars: dict[str, dict[str, tuple[float, ...]]] = {}
    for row in rows:
        if row["candidate"] != PLAIN and not row["note"]:
            bars.setdefault(row["candidate"], {})[row["configuration"]] = report.spread(row)
    figure = report.new_figure(9, 4)
    axis = figure.subplots()
    report.speed_bars(axis, list(dict.fromkeys(row["configuration"] for row in rows)), bars)
    axis.set_ylabel("speed, plain torch = 1x")
    axis.legend(fontsize="small")
    figure.suptitle(f"One epoch on {rows[0]['cpu']}, torch {rows[0]['torch']}", fontsize="medium")
    report.write_svg(path, figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few samples, one network, printed only")
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="MNIST's IDX files (default: synthetic)")
    parser.add_argument("--samples", type=int, metavar="N", help=f"default: {SAMPLES}")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 5")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument(
        "--only", nargs="+", choices=CONFIGURATIONS, metavar="NAME", help=f"of {', '.join(CONFIGURATIONS)}"
    )
    parser.add_argument("--output-dir", type=Path, help="default: benches/results/<processor>")
    parser.add_argument("--once", nargs=6, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.once:
        name, key, folder, samples, threads, seed = options.once
        torch.set_num_threads(int(threads))
        data = Path(folder) if folder else None
        print(json.dumps(train_once(name, CONFIGURATIONS[key], data, int(samples), int(seed))))
        return 0
    for name in ("samples", "rounds", "threads"):
        given = getattr(options, name)
        if given is not None and given < 1:
            parser.error(f"--{name} must be at least 1, got {given}")
    rows = run(
        options.only or (QUICK if options.quick else list(CONFIGURATIONS)),
        folder=options.data,
        samples=options.samples or (2_000 if options.quick else SAMPLES),
        rounds=options.rounds or (3 if options.quick else 5),
        threads=options.threads,
    )
    partial = options.quick or options.only or options.samples
    output = options.output_dir
    if output is None and not partial:
        output = report.RESULTS / machine.processor().folder
    if output is None:
        print("\n" + tables(rows))
        return 0
    report.write_csv(output / "training.csv", rows)
    report.write_text(output / "training.md", tables(rows))
    picture(rows, output / "training.svg")
    print(f"\n{output}: training.csv, training.md, training.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
