"""The figures on a CUDA device: kernels beside eager torch, ``torch.compile`` and a copy, and whole epochs.

Each candidate is called as a person calls it and held to the formulas in float64 before it is timed. What is
compared is in ``gpu/``, a file for each kind of work; ``gpu/measuring.py`` says how.

    python benches/bench_gpu.py                     all, into benches/results/<device>/ (some minutes)
    python benches/bench_gpu.py --quick             a look in a minute or two, printed only
    python benches/bench_gpu.py --part trainings --data FOLDER
    python benches/bench_gpu.py --only forward-16M-float32 bernoulli

It goes on after a comparison that fails, writes what it has after each, and its exit code then is 1.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import torch

import device
import passes
import report
from bench_training import CONFIGURATIONS, PLAIN, load
from comparison import COMPILED, EAGER, FASTVAE, Row
from gpu import COMPARISONS, measuring, training
from gpu.measuring import COPY, Work
from plain import PIXELS

PARTS = ("kernels", "trainings")
SAMPLES = 60_000
Write: TypeAlias = Callable[[Sequence[Row]], None]


# --------------------------------------------------------------------------------------------------- kernels


def run_kernels(chosen: Sequence[Work], rounds: int) -> Iterator[list[Row]]:
    """Measure comparisons; the rows of each, of which one that fails has some that say why."""
    for work in chosen:
        measuring.release()
        lacking = work.lacks(torch.cuda.mem_get_info()[0])
        if lacking:
            own = measuring.rows(work, {}, dict.fromkeys(work.candidates, lacking))
        else:
            try:
                own = measuring.measure(work, rounds)
            except Exception as error:
                traceback.print_exc()
                why = f"failed: {passes.reason(error)}"
                own = measuring.rows(work, {}, dict.fromkeys(work.candidates, why))
        for row in own:
            print(kernel_line(row), flush=True)
        yield own


def kernel_line(row: Row) -> str:
    name = f"{row['comparison']:<26} {row['candidate']:<24}"
    if row["note"]:
        return f"{name} {row['note']}"
    fraction = f" {100 * row['copy_fraction']:4.0f} %" if "copy_fraction" in row else ""
    target = f"  {row['target']}: {row['measured']}, {row['reached']}" if row["target"] else ""
    times = f"{row['median_us']:>10.1f} us ({row['loop_us']:.1f} in a loop)"
    return f"{name} {times} {row['speedup']:7.2f}x{fraction}{target}"


def kernel_tables(rows: Sequence[Row]) -> str:
    """Write a table for each set of candidates, and what was reached of what was asked."""
    text = [
        "# The kernels on a CUDA device\n",
        device.source(rows[0]),
        "Microseconds per call: the median of `triton.testing.do_bench`, over the rounds; in brackets how",
        "many times as fast as the first column, below 1 where it is slower. The copy moves, on the device,",
        "as many bytes as the work has to; GB/s and the fraction of the copy's bandwidth are fastvae's. In a",
        "loop is fastvae's time per call of many in a row, with what the processor takes to start one.\n",
    ]
    groups: dict[tuple[str, ...], list[list[Row]]] = {}
    for name in dict.fromkeys(row["comparison"] for row in rows):
        own = [row for row in rows if row["comparison"] == name]
        groups.setdefault(tuple(row["candidate"] for row in own), []).append(own)
    for names, members in groups.items():
        header = ["", *names, "GB/s", "of the copy", "in a loop", "asked", "measured", ""]
        text.append(report.markdown_table(header, [_kernel_cells(own) for own in members]))
    text.append(_notes((f"{row['title']}; {row['pass']}, {row['dtype']}", row) for row in rows))
    return "\n".join(text)


def _kernel_cells(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    ours = next((row for row in reversed(rows) if row["candidate"].startswith(FASTVAE)), first)
    return [
        f"{first['title']}; {first['pass']}, {first['dtype']}",
        *(_kernel_time(row) for row in rows),
        f"{ours['gb_per_s']:.0f}" if "gb_per_s" in ours else "",
        f"{100 * ours['copy_fraction']:.0f} %" if "copy_fraction" in ours else "",
        f"{ours['loop_us']:.1f}" if "loop_us" in ours else "",
        *(
            ", ".join(filter(None, (row[column] for row in rows)))
            for column in ("target", "measured", "reached")
        ),
    ]


def _kernel_time(row: Row) -> str:
    if row["note"]:
        return "not available"
    speed = "" if row["candidate"] == COPY else f" ({row['speedup']:.2f})"
    return f"{row['median_us']:.1f}{speed}"


def _notes(rows: Iterator[tuple[str, Row]]) -> str:
    lines = dict.fromkeys(
        f"- {title}, {row['candidate']}: {row['note']}" for title, row in rows if row["note"]
    )
    return "\n".join(lines) + "\n" if lines else ""


# ------------------------------------------------------------------------------------------------- trainings


def run_trainings(
    chosen: Sequence[str], *, ways: Sequence[str], folder: Path | None, samples: int, epochs: int
) -> Iterator[list[Row]]:
    """Train the networks in each of the ways; a row for each, as it is made."""
    pixels, _ = load(folder, samples)
    data = "synthetic" if folder is None else "MNIST"
    for key in chosen:
        for row in training.measure(
            key, pixels, epochs=epochs, chosen=ways, data=data, device=measuring.cuda()
        ):
            print(training_line(row), flush=True)
            yield [row]


def training_line(row: Row) -> str:
    name = f"{row['configuration']:<32} {row['candidate']:<28}"
    if row["note"]:
        return f"{name} {row['note']}"
    target = f"  {row['target']}: {row['measured']}, {row['reached']}" if row["target"] else ""
    return (
        f"{name} {row['step_us']:>8.1f} us a step, {row['epoch_seconds']:7.3f} s an epoch "
        f"{row['speedup']:6.2f}x  ELBO {row['train_elbo']:.2f}{target}"
    )


def training_tables(rows: Sequence[Row]) -> str:
    """Write a table for each configuration."""
    first = rows[0]
    text = [
        "# Epochs of training on a CUDA device\n",
        device.source(first),
        f"{first['samples']} images of {PIXELS} gray pixels ({first['data']}), Bernoulli likelihood, Adam;",
        f"medians over {report.count(first['epochs'], 'epoch')} after a first one that is not counted, which",
        "compiles and captures. The speed is that over plain torch; the bound, in nats, the mean over the",
        "last epoch.\n",
    ]
    header = [
        *("", "us a step", "seconds an epoch", "images per second", "speed", "first epoch", "ELBO"),
        *("asked", "measured", ""),
    ]
    for configuration in dict.fromkeys(row["configuration"] for row in rows):
        own = [row for row in rows if row["configuration"] == configuration]
        text.append(f"## {configuration}\n")
        text.append(report.markdown_table(header, map(_training_cells, own)))
        text.append(_notes((configuration, row) for row in own))
    return "\n".join(text)


def _training_cells(row: Row) -> list[str]:
    judged = [row["target"], row["measured"], row["reached"]]
    if row["note"]:
        return [row["candidate"], *("not available", "", "", "", "", ""), *judged]
    return [
        row["candidate"],
        f"{row['step_us']:.1f}",
        f"{row['epoch_seconds']:.3f}",
        f"{row['images_per_second']:.0f}",
        f"{row['speedup']:.2f}",
        f"{row['first_epoch_seconds']:.1f}",
        f"{row['train_elbo']:.2f}",
        *judged,
    ]


# --------------------------------------------------------------------------------------------------- results


def picture(rows: Sequence[Row], path: Path, *, ticks: str, base: str) -> None:
    """Draw each candidate's speed over the first one."""
    bars: dict[str, dict[str, tuple[float, ...]]] = {}
    labels = list(dict.fromkeys(_label(row[ticks]) for row in rows))
    for row in rows:
        if row["candidate"] not in {base, COPY} and not row["note"]:
            bars.setdefault(row["candidate"], {})[_label(row[ticks])] = report.spread(row)
    figure = report.new_figure(4 + len(labels), 5)
    axis = figure.subplots()
    report.speed_bars(axis, labels, bars)
    axis.set_ylabel(f"speed, {base} = 1x")
    if bars:
        axis.legend(fontsize="small")
    figure.suptitle(
        f"{rows[0]['gpu']}, torch {rows[0]['torch']}, Triton {rows[0]['triton']}", fontsize="medium"
    )
    report.write_svg(path, figure)


def _label(name: str) -> str:
    return name.replace("-", "\n").replace(", ", "\n")


def write_kernels(folder: Path, rows: Sequence[Row]) -> None:
    report.write_csv(folder / "kernels.csv", rows)
    report.write_text(folder / "kernels.md", kernel_tables(rows))
    _draw(lambda: picture(rows, folder / "kernels.svg", ticks="comparison", base=EAGER))


def write_trainings(folder: Path, rows: Sequence[Row]) -> None:
    report.write_csv(folder / "training.csv", rows)
    report.write_text(folder / "training.md", training_tables(rows))
    _draw(lambda: picture(rows, folder / "training.svg", ticks="configuration", base=PLAIN))


def _draw(draw: Callable[[], None]) -> None:
    try:
        draw()
    except ModuleNotFoundError as error:
        print(f"no picture: {error.name} is not installed")


def failed(row: Row) -> bool:
    """Whether a row says that something of this project is broken; a compiler may break by itself."""
    return row["note"].startswith("failed") and COMPILED not in row["candidate"]


def collect(parts: Iterator[list[Row]], source: Row, write: Write | None) -> list[Row]:
    """Gather rows, and write all that there are after each part: a run that is cut off leaves what it has."""
    rows: list[Row] = []
    for part in parts:
        rows += [{**row, **source} for row in part]
        if write is not None:
            write(rows)
    return rows


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*COMPARISONS, *training.ASKED]
    default = os.environ.get("FASTVAE_MNIST")
    parser.add_argument("--quick", action="store_true", help="few rounds and no large size, printed only")
    parser.add_argument(
        "--part", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument(
        "--data",
        type=Path,
        default=Path(default) if default else None,
        metavar="FOLDER",
        help="MNIST's IDX files (default: FASTVAE_MNIST, else synthetic)",
    )
    parser.add_argument("--samples", type=int, metavar="N", help=f"to train on; default: {SAMPLES}")
    parser.add_argument("--rounds", type=int, metavar="N", help="of the kernels; default: 3")
    parser.add_argument("--epochs", type=int, metavar="N", help="that are measured; default: 2")
    parser.add_argument("--output-dir", type=Path, help="default: benches/results/<device>")
    options = parser.parse_args(argv)
    for name in ("samples", "rounds", "epochs"):
        given = getattr(options, name)
        if given is not None and given < 1:
            parser.error(f"--{name} must be at least 1, got {given}")
    trains = "trainings" in options.part and not options.only
    if trains and options.data is not None and not any(options.data.glob("train-images*")):
        parser.error(f"{options.data} has no train-images-idx3-ubyte; name a folder with MNIST's files")
    wrong = device.problem()
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return device.MISSING
    return run(options)


def run(options: argparse.Namespace) -> int:
    """Measure what was asked for and write it down."""
    here = device.current()
    source = device.provenance(here, ["torch", "triton", "fastvae"])
    partial = options.quick or options.only or options.samples
    folder = options.output_dir
    if folder is None and not partial:
        folder = report.RESULTS / here.folder
    quick, wanted = options.quick, options.only or [*COMPARISONS, *training.ASKED]
    rows: list[Row] = []
    works = [
        COMPARISONS[name]
        for name in wanted
        if name in COMPARISONS and (options.only or COMPARISONS[name].quick or not quick)
    ]
    if "kernels" in options.part and works:
        write: Write | None = None if folder is None else lambda rows: write_kernels(folder, rows)
        own = collect(run_kernels(works, options.rounds or (2 if quick else 3)), source, write)
        rows += own
        if folder is None:
            print("\n" + kernel_tables(own))
    networks = [name for name in wanted if name in CONFIGURATIONS]
    if "trainings" in options.part and networks:
        write = None if folder is None else lambda rows: write_trainings(folder, rows)
        trainings = run_trainings(
            networks,
            ways=training.QUICK if quick else list(training.TRAININGS),
            folder=options.data,
            samples=options.samples or (10_000 if quick else SAMPLES),
            epochs=options.epochs or (1 if quick else 2),
        )
        own = collect(trainings, source, write)
        rows += own
        if folder is None:
            print("\n" + training_tables(own))
    if folder is not None:
        print(f"\n{folder}: what was measured is written there")
    return int(any(failed(row) for row in rows))


if __name__ == "__main__":
    sys.exit(main())
