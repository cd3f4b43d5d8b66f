"""Processes that train one model together, on one machine: images per second, and the bound reached.

- plain DDP: a loop as tutorials have it, ``DistributedDataParallel``, ``DistributedSampler``,
  ``DataLoader``, default Adam, the loss read in each step;
- tuned DDP: the same with the pixels kept as bytes and gathered by index, one loss, the fused Adam, nothing
  read;
- fastvae: ``fastvae.train`` in as many processes;
- one process: ``fastvae.train`` in one, on all threads that these have together.

All train the same network (784-H...-codes-...H-784, ReLU) with batches of the same size in all processes
together, Adam at 1e-3 and the Bernoulli likelihood of gray pixels. Processes exchange by gloo, which goes
through the network's layers on one machine too. What is timed is a whole epoch; the first of a training, in
which things are loaded and connections made, is not counted. The candidates take turns, each in processes of
its own, and figures are medians over the rounds, each of which has a seed of its own. The bounds of all in a
round must agree within 5 %.

    python benches/bench_ranks.py             all, into benches/results/<processor>/ranks.csv and .md
    python benches/bench_ranks.py --quick     few samples, one network, printed only
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler

import harness
import machine
import report
from bench_training import RATE, Configuration, synthetic, trained_by_fastvae
from plain import PlainVAE

SAMPLES = 60_000
EPOCHS = 3
CLOSE = 0.05
"""How far bounds may be from their median, relative to it."""

PLAIN, TUNED, TOGETHER, ONE = "plain DDP", "tuned DDP", "fastvae", "one process"

CONFIGURATIONS = {
    "400-20-batch-128": Configuration((400,), 20, 128),
    "400-20-batch-1024": Configuration((400,), 20, 1024),
    "1000-1000-50-batch-512": Configuration((1000, 1000), 50, 512),
}
QUICK = ["400-20-batch-1024"]


def train_plain(pixels: np.ndarray, configuration: Configuration, seed: int) -> tuple[list[float], float]:
    torch.manual_seed(seed)
    dist.init_process_group("gloo")
    dataset = TensorDataset(torch.from_numpy(pixels).float() / 255)
    sampler = DistributedSampler[Any](dataset, seed=seed)
    loader = DataLoader(
        dataset, batch_size=configuration.batch_size // dist.get_world_size(), sampler=sampler
    )
    model = DistributedDataParallel(PlainVAE(configuration.hidden, configuration.codes))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    torch.manual_seed(seed + dist.get_rank())

    def epoch(number: int) -> float:
        sampler.set_epoch(number)
        total = 0.0
        for (x,) in loader:
            recon, kl = model(x)
            loss = (kl - recon).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(x)
        return -total / len(sampler)

    return epochs(epoch)


class Loss(torch.nn.Module):
    """The whole step in one forward, which DistributedDataParallel needs."""

    def __init__(self, model: PlainVAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.loss(x)


def train_tuned(pixels: np.ndarray, configuration: Configuration, seed: int) -> tuple[list[float], float]:
    torch.manual_seed(seed)
    dist.init_process_group("gloo")
    images, size, rank = torch.from_numpy(pixels), dist.get_world_size(), dist.get_rank()
    model = DistributedDataParallel(
        Loss(PlainVAE(configuration.hidden, configuration.codes)), gradient_as_bucket_view=True
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    order = torch.Generator()
    torch.manual_seed(seed + rank)

    def epoch(number: int) -> float:
        own = torch.randperm(len(images), generator=order.manual_seed(seed + number))[rank::size]
        total = torch.zeros((), dtype=torch.float64)
        for rows in own.split(configuration.batch_size // size):
            loss = model(images[rows].float().div_(255))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total.add_(loss.detach(), alpha=len(rows))
        return -float(total) / len(own)

    return epochs(epoch)


def epochs(epoch: Callable[[int], float]) -> tuple[list[float], float]:
    """The seconds of each epoch but the first, and the bound of the last one, over all processes."""
    seconds, bound = [], torch.zeros(1, dtype=torch.float64)
    for number in range(EPOCHS):
        dist.barrier()
        start = time.perf_counter()
        bound[0] = epoch(number)
        dist.barrier()
        seconds.append(time.perf_counter() - start)
    dist.all_reduce(bound)
    bound /= dist.get_world_size()
    return seconds[1:], float(bound)


def train_fastvae(pixels: np.ndarray, configuration: Configuration, seed: int) -> tuple[list[float], float]:
    result = trained_by_fastvae(pixels, configuration, seed, epochs=EPOCHS)
    bound = result.history[-1]["elbo"]
    assert bound is not None
    return [float(record["seconds"] or 0) for record in result.history[1:]], float(bound)


TRAININGS = {PLAIN: train_plain, TUNED: train_tuned, TOGETHER: train_fastvae, ONE: train_fastvae}


def run(
    chosen: Sequence[str], *, samples: int, rounds: int, processes: int, threads: int
) -> list[dict[str, Any]]:
    """Train every candidate, in turns; one row for each candidate and configuration."""
    source = machine.provenance(["torch", "fastvae"])
    shuffle = random.Random(0).shuffle  # noqa: S311
    rows = []
    for key in chosen:
        seconds: dict[str, list[float]] = {name: [] for name in TRAININGS}
        bounds: dict[str, list[float]] = {name: [] for name in TRAININGS}
        for seed in range(rounds):
            order = list(TRAININGS)
            shuffle(order)
            for name in order:
                done = once(name, key, samples, seed, 1 if name == ONE else processes, threads)
                seconds[name].append(statistics.median(done["seconds"]))
                bounds[name].append(done["elbo"])
            middle = statistics.median(bounds[name][-1] for name in TRAININGS)
            for name in TRAININGS:
                if not abs(bounds[name][-1] - middle) <= CLOSE * abs(middle):
                    raise RuntimeError(
                        f"{key}: {name} reached {bounds[name][-1]:.2f}, the others {middle:.2f}"
                    )
        for name, own in seconds.items():
            low, mid, high = harness.percentiles(own)
            slow, ratio, fast = harness.percentiles(harness.ratios(seconds[PLAIN], own))
            row = {
                "benchmark": "ranks",
                "configuration": CONFIGURATIONS[key].name,
                "candidate": name,
                "processes": 1 if name == ONE else processes,
                "threads_of_each": threads if name == ONE else threads // processes,
                "samples": samples,
                "images_per_second": round(samples / mid, 1),
                "seconds": round(mid, 4),
                "seconds_p20": round(low, 4),
                "seconds_p80": round(high, 4),
                "speedup": round(ratio, 4),
                "speedup_p20": round(slow, 4),
                "speedup_p80": round(fast, 4),
                "rounds": rounds,
                "elbo": round(statistics.median(bounds[name]), 3),
            }
            print(
                f"{row['configuration']:<32} {name:<12} {row['images_per_second']:>9.0f} images/s "
                f"{ratio:6.2f}x  ELBO {row['elbo']:.2f}",
                flush=True,
            )
            rows.append({**row, **source})
    return rows


def once(name: str, key: str, samples: int, seed: int, processes: int, threads: int) -> Any:
    """Train in processes that do nothing else, and say how it went."""
    arguments = [__file__, "--once", name, key, str(samples), str(seed), str(threads // processes)]
    if processes > 1:
        arguments = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), *arguments]
        return harness.in_child("-m", *arguments, variables={"OMP_NUM_THREADS": str(threads // processes)})
    return harness.in_child(*arguments)


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Write a table for each configuration."""
    first = rows[0]
    text = [
        "# Processes that train together\n",
        report.source(first),
        f"An epoch of {first['samples']} synthetic images of 784 gray pixels, Bernoulli likelihood, Adam;",
        f"gloo on one machine; medians over {report.count(first['rounds'], 'round')}, each from another",
        "seed. The speed is that over plain DDP. The bound, in nats, is the mean over the last epoch as",
        "training saw it.\n",
    ]
    for configuration in dict.fromkeys(row["configuration"] for row in rows):
        text.append(f"## {configuration}\n")
        header = ("", "processes", "threads of each", "images per second", "speed", "ELBO in training")
        text.append(
            report.markdown_table(
                header,
                (
                    (
                        row["candidate"],
                        row["processes"],
                        row["threads_of_each"],
                        f"{row['images_per_second']:.0f}",
                        f"{row['speedup']:.2f} ({row['speedup_p20']:.2f} to {row['speedup_p80']:.2f})",
                        f"{row['elbo']:.2f}",
                    )
                    for row in rows
                    if row["configuration"] == configuration
                ),
            )
        )
    return "\n".join(text)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few samples, one network, printed only")
    parser.add_argument("--samples", type=int, metavar="N", help=f"default: {SAMPLES}")
    parser.add_argument("--rounds", type=int, metavar="N", help="default: 5")
    parser.add_argument("--processes", type=int, default=2, metavar="N")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N", help="of all")
    parser.add_argument(
        "--only", nargs="+", choices=CONFIGURATIONS, metavar="NAME", help=f"of {', '.join(CONFIGURATIONS)}"
    )
    parser.add_argument("--output-dir", type=Path, help="default: benches/results/<processor>")
    parser.add_argument("--once", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.once:
        name, key, samples, seed, threads = options.once
        torch.set_num_threads(int(threads))
        seconds, elbo = TRAININGS[name](synthetic(int(samples), seed=1), CONFIGURATIONS[key], int(seed))
        gc.collect()  # a model in DistributedDataParallel keeps the group, whose threads have to end
        if dist.is_initialized():
            dist.destroy_process_group()
        if os.environ.get("RANK", "0") == "0":
            print(json.dumps({"seconds": seconds, "elbo": elbo}))
        return 0
    for name in ("samples", "rounds"):
        given = getattr(options, name)
        if given is not None and given < 1:
            parser.error(f"--{name} must be at least 1, got {given}")
    if options.processes < 2 or options.threads % options.processes:
        parser.error(
            f"--processes must be at least 2 and divide --threads, got {options.processes} and "
            f"{options.threads}"
        )
    rows = run(
        options.only or (QUICK if options.quick else list(CONFIGURATIONS)),
        samples=options.samples or (4_096 if options.quick else SAMPLES),
        rounds=options.rounds or (3 if options.quick else 5),
        processes=options.processes,
        threads=options.threads,
    )
    output = options.output_dir
    if output is None and not (options.quick or options.only or options.samples):
        output = report.RESULTS / machine.processor().folder
    if output is None:
        print("\n" + tables(rows))
        return 0
    report.write_csv(output / "ranks.csv", rows)
    report.write_text(output / "ranks.md", tables(rows))
    print(f"\n{output}: ranks.csv, ranks.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
