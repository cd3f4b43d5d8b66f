"""The table of figures: each kernel beside eager torch and ``torch.compile``, with what is asked of it.

Float32 on the CPU, forward and backward unless the row says otherwise, each candidate called as a person
calls it and checked against float64 before it is timed. What is compared is in ``kernels/``, a file for each
kind of work.

    python3 tasks.py bench                              all benches, into benches/results/<processor>/
    python benches/bench_kernels.py --quick             a look in a minute or two, printed only
    python benches/bench_kernels.py --only gather step
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import fastvae._core
import harness
import machine
import report
from comparison import Comparison, Row, measure
from kernels import COMPARISONS

OWN_PANEL = ("threads", "step")
"""Comparisons that begin with something else than eager torch."""


def run(chosen: Sequence[Comparison], *, threads: int, quick: bool) -> list[Row]:
    """Measure comparisons, each in a process of its own; one row for each candidate.

    What was measured before must not matter, and it does: an allocator that has seen large blocks keeps more
    memory, which saves eager torch, with its many temporaries, most.
    """
    source = machine.provenance(["torch", "fastvae"])
    at_the_start = {column: source[column] for column in ("date", "load")}
    rows: list[Row] = []
    for comparison in chosen:
        arguments = ["--rows", comparison.name, "--threads", str(threads), *(["--quick"] if quick else [])]
        own: list[Row] = harness.in_child(__file__, *arguments, variables=comparison.variables)
        rows += [row | at_the_start for row in own]
    return rows


def measured(comparison: Comparison, *, threads: int, quick: bool) -> list[Row]:
    """Measure a comparison in this process."""
    source = machine.provenance(["torch", "fastvae"])
    rows = measure(
        comparison,
        machine.processor(),
        threads=threads,
        seconds=0.3 if quick else 4.0,
        rounds=7 if quick else 41,
    )
    rows = [{**row, **source} for row in rows]
    for row in rows:
        print(line(row), flush=True)
    return rows


def line(row: Row) -> str:
    name = f"{row['comparison']:<26} {row['candidate']:<26}"
    if row["note"]:
        return f"{name} {row['note']}"
    target = f"  {row['target']}: {row['measured']}, {row['reached']}" if row["target"] else ""
    return f"{name} {row['median_us']:>12.1f} us {row['speedup']:7.2f}x{target}"


# --------------------------------------------------------------------------------------------------- results


def tables(rows: Sequence[Row]) -> str:
    """Write a table for each set of candidates, and what was reached of what was asked."""
    text = [
        "# The kernels\n",
        report.source(rows[0]),
        "Microseconds per call (median); in brackets how many times as fast as the first column, below 1",
        "where it is slower. float32; a ratio is the median of the ratios within the rounds of one run.\n",
    ]
    groups: dict[tuple[str, ...], list[list[Row]]] = {}
    for name in dict.fromkeys(row["comparison"] for row in rows):
        own = [row for row in rows if row["comparison"] == name]
        groups.setdefault(tuple(row["candidate"] for row in own), []).append(own)
    for names, members in groups.items():
        header = ["", *names, "asked", "measured", ""]
        text.append(report.markdown_table(header, [_cells(own) for own in members]))
    missing = dict.fromkeys(
        f"- {row['title']}, {row['candidate']}: {row['note']}" for row in rows if row["note"]
    )
    if missing:
        text.append("\n".join(missing) + "\n")
    return "\n".join(text)


def _cells(rows: Sequence[Row]) -> list[str]:
    first = rows[0]
    threads = f", {report.count(first['threads'], 'thread')}" if first["threads"] else ""
    cells = [
        "not available" if row["note"] else f"{row['median_us']:.1f} ({row['speedup']:.2f})" for row in rows
    ]
    judged = [
        ", ".join(filter(None, (row[column] for row in rows))) for column in ("target", "measured", "reached")
    ]
    return [f"{first['title']}; {first['pass']}{threads}", *cells, *judged]


def picture(rows: Sequence[Row], path: Path) -> None:
    """Draw each candidate's speed over the first of its comparison."""
    first = {row["comparison"]: row["candidate"] for row in reversed(rows)}
    standard = [row for row in rows if row["comparison"] not in OWN_PANEL]
    panels = [("speed, eager torch = 1x", standard)]
    panels += [
        (f"{name}: {first.get(name)} = 1x", [row for row in rows if row["comparison"] == name])
        for name in OWN_PANEL
    ]
    panels = [(label, own) for label, own in panels if any(not row["note"] for row in own)]
    figure = report.new_figure(13, 1 + 3 * len(panels))
    for axis, (label, own) in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        ticks = {row["comparison"]: row["comparison"].replace("-", "\n") for row in own}
        bars: dict[str, dict[str, tuple[float, ...]]] = {}
        for row in own:
            if row["candidate"] != first[row["comparison"]] and not row["note"]:
                bars.setdefault(row["candidate"], {})[ticks[row["comparison"]]] = report.spread(row)
        report.speed_bars(axis, list(ticks.values()), bars)
        axis.set_ylabel(label, fontsize="small")
        axis.legend(fontsize="small")
    figure.suptitle(f"Kernels on {rows[0]['cpu']}, torch {rows[0]['torch']}, float32")
    report.write_svg(path, figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds and no large size, printed only")
    parser.add_argument(
        "--only", nargs="+", choices=COMPARISONS, metavar="NAME", help=f"of {', '.join(COMPARISONS)}"
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), metavar="N")
    parser.add_argument("--output-dir", type=Path, help="default: benches/results/<processor>")
    parser.add_argument("--rows", choices=COMPARISONS, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not str(fastvae._core.__file__).endswith((".so", ".pyd", ".dylib")):
        parser.error("the Rust kernels are not built: run this as `python3 tasks.py bench`")
    if options.rows:
        own = measured(COMPARISONS[options.rows], threads=options.threads, quick=options.quick)
        print(json.dumps(own))
        return 0
    if os.environ.get("FASTVAE_SIMD"):
        print(f"FASTVAE_SIMD is set: the kernels run at level {fastvae._core.simd_level()}")
    names = options.only or [
        name for name, comparison in COMPARISONS.items() if comparison.quick or not options.quick
    ]
    rows = run([COMPARISONS[name] for name in names], threads=options.threads, quick=options.quick)
    folder = options.output_dir
    if folder is None and not (options.quick or options.only):
        folder = report.RESULTS / machine.processor().folder
    if folder is None:
        print("\n" + tables(rows))
        return 0
    report.write_csv(folder / "kernels.csv", rows)
    report.write_text(folder / "kernels.md", tables(rows))
    picture(rows, folder / "kernels.svg")
    print(f"\n{folder}: kernels.csv, kernels.md, kernels.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
