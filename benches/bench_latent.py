"""The latent step, from (mu, logvar) to z and the KL and back, four ways.

- eager torch: the textbook, as most public code has it;
- analytic backward: the same in plain torch with the gradient written out, which is what a person gets who
  optimises without a kernel;
- torch.compile: the compiler on the textbook;
- fastvae: ``fastvae.functional.reparametrize_kl``, called as anyone calls it.

Each draws its noise as it does in training, inside the clock. The gradients that come in are those of a loss
that continues after the latent step: a dense one for z, one weight per sample for the KL.

    python3 tasks.py bench              all, into benches/results/<processor>/ (some minutes)
    python3 tasks.py bench -- --quick   a look in a minute or two, printed only
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

import fastvae._core
import harness
import machine
import passes
import report
from fastvae import functional

Step: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]

SIZES = {
    "128x2": (128, 2),
    "128x32": (128, 32),
    "1024x128": (1024, 128),
    "64x16384": (64, 16384),
    "4096x4096": (4096, 4096),
}
QUICK_SIZES = ["128x2", "64x16384"]
MEMORY_PASSES = ["forward", "both"]
"""A backward alone has no peak of its own in training: what forward kept for it is there as well."""

MEMORY_ELEMENTS = 2**20
"""Below this many elements a peak is lost in the rounding of pages and allocator."""


# ------------------------------------------------------------------------------------------------ candidates


def eager(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    std = torch.exp(0.5 * logvar)
    eps = torch.randn_like(std)
    z = mu + eps * std
    kl = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp(), dim=-1)
    return z, kl


class AnalyticBackward(torch.autograd.Function):
    """The latent step with its gradient written out, temporaries reused where torch allows it."""

    @staticmethod
    def forward(ctx: Any, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        """Keep what the gradient needs: mu, the deviation and the scaled noise."""
        std = torch.exp(0.5 * logvar)
        noise = torch.randn_like(std).mul_(std)
        kl = (mu.square() + std.square()).sub_(logvar).sub_(1).sum(-1).mul_(0.5)
        ctx.save_for_backward(mu, std, noise)
        return mu + noise, kl

    @staticmethod
    def backward(ctx: Any, grad_z: Tensor, grad_kl: Tensor) -> tuple[Tensor, Tensor]:
        """Kingma and Welling 2014, equation 4 and appendix B, differentiated by hand."""
        mu, std, noise = ctx.saved_tensors
        weight = grad_kl.unsqueeze(-1)
        grad_mu = torch.addcmul(grad_z, weight, mu)
        grad_logvar = std.square().sub_(1).mul_(weight).addcmul_(grad_z, noise).mul_(0.5)
        return grad_mu, grad_logvar


def analytic(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    outputs: tuple[Tensor, Tensor] = AnalyticBackward.apply(mu, logvar)
    return outputs


def compiled() -> Step:
    return passes.compiled(eager)


def fused(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
    return functional.reparametrize_kl(mu, logvar)


STEPS: dict[str, Callable[[], Step]] = {
    "eager torch": lambda: eager,
    "analytic backward": lambda: analytic,
    "torch.compile": compiled,
    "fastvae": lambda: fused,
}


def inputs(rows: int, columns: int) -> tuple[Tensor, ...]:
    """Return mu, logvar, and the gradients that come in for z and the KL."""
    generator = torch.Generator().manual_seed(0)
    mu, logvar, grad_z = (torch.randn(rows, columns, generator=generator) for _ in range(3))
    return mu.requires_grad_(), logvar.requires_grad_(), grad_z, torch.rand(rows, generator=generator)


def candidate(name: str, step: Step, kind: str, tensors: Sequence[Tensor]) -> harness.Candidate:
    return passes.candidate(name, step, kind, tensors[:2], tensors[2:])


def check(name: str, step: Step) -> None:
    """Refuse to time a step that is wrong, against the formulas in float64 and the noise that it drew."""
    mu, logvar, grad_z, grad_kl = inputs(64, 96)
    z, kl = step(mu, logvar)
    got = torch.autograd.grad((z, kl), (mu, logvar), (grad_z, grad_kl))
    mean, log, grad, weight = (
        tensor.detach().double() for tensor in (mu, logvar, grad_z, grad_kl.unsqueeze(-1))
    )
    noise = z.detach().double() - mean
    for actual, wanted in (
        (kl, 0.5 * (log.exp() + mean.square() - 1 - log).sum(-1)),
        (got[0], grad + weight * mean),
        (got[1], 0.5 * (grad * noise + weight * (log.exp() - 1))),
    ):
        torch.testing.assert_close(
            actual.double(), wanted, rtol=1e-4, atol=1e-4, msg=lambda m: f"{name}: {m}"
        )
    eps = noise / (0.5 * log).exp()
    if not (abs(eps.mean()) < 0.1 and abs(eps.std() - 1) < 0.1):
        raise AssertionError(f"{name}: the noise has mean {eps.mean():.3f} and deviation {eps.std():.3f}")


def available() -> tuple[list[str], dict[str, str]]:
    """Try every candidate; return those that work, and for the others why not."""
    working, missing = [], {}
    for name, build in STEPS.items():
        try:
            check(name, build())
        except AssertionError:
            raise
        except Exception as error:  # whatever torch.compile throws where there is no C++ compiler
            missing[name] = passes.reason(error)
        else:
            working.append(name)
    return working, missing


# --------------------------------------------------------------------------------------------------- running


def peak_in_child(name: str, size: str, kind: str) -> int | None:
    """Measure a candidate's peak memory in a process of its own."""
    peak: int | None = harness.in_child(__file__, "--peak", name, size, kind)
    return peak


def run(
    sizes: Sequence[str], thread_counts: Sequence[int], seconds: float, rounds: int, memory: Sequence[str]
) -> list[dict[str, object]]:
    """Measure everything; one row for each candidate, pass, size and thread count."""
    source = machine.provenance(["torch", "fastvae"])
    working, missing = available()
    for name, why in missing.items():
        print(f"{name}: not available ({why})", flush=True)
    rows: list[dict[str, object]] = []
    for threads in thread_counts:
        torch.set_num_threads(threads)
        for size in sizes:
            tensors = inputs(*SIZES[size])
            steps = {name: STEPS[name]() for name in working}
            for kind in passes.PASSES:
                head: dict[str, object] = {
                    "benchmark": "latent",
                    "pass": kind,
                    "size": size,
                    "dtype": "float32",
                    "threads": threads,
                }
                timings = harness.measure(
                    [candidate(name, step, kind, tensors) for name, step in steps.items()],
                    seconds=seconds,
                    rounds=rounds,
                )
                for timing in timings:
                    row = {**head, **timing.row(), "peak_bytes": "", "note": ""}
                    last = threads == thread_counts[-1]
                    if last and kind in memory and tensors[0].numel() >= MEMORY_ELEMENTS:
                        peak = peak_in_child(timing.name, size, kind)
                        row["peak_bytes"] = "" if peak is None else peak
                    rows.append({**row, **source})
                    print(line(row), flush=True)
                for name, why in missing.items():
                    rows.append({**head, "candidate": name, "note": f"not available: {why}", **source})
    return rows


def line(row: dict[str, Any]) -> str:
    peak = f"  peak {row['peak_bytes'] / 2**20:7.1f} MiB" if row["peak_bytes"] != "" else ""
    name = f"{row['size']:>9} {row['pass']:<8} {row['threads']:>2} threads  {row['candidate']:<17}"
    return f"{name} {row['median_us']:>12.1f} us  {row['speedup']:6.2f}x{peak}"


# --------------------------------------------------------------------------------------------------- results


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Write the tables: times and ratios, with a column that says where fastvae is not the fastest."""
    text = [
        "# The latent step\n",
        report.source(rows[0]),
        "Microseconds per call (median); in brackets the speed over eager torch, below 1 where it is slower.",
        "The last column compares fastvae with the fastest of the others.\n",
    ]
    names = list(dict.fromkeys(row["candidate"] for row in rows))
    for threads in dict.fromkeys(row["threads"] for row in rows):
        text.append(f"## {report.count(threads, 'thread')}\n")
        text.append(
            report.markdown_table(
                ["pass, size", *names, "fastvae to the best other"], _time_rows(rows, threads, names)
            )
        )
    peaks = [row for row in rows if row.get("peak_bytes")]
    if peaks:
        text.append("## Peak memory\n")
        text.append(
            "MiB that a call adds at its highest, in brackets how many tensors of mu's size that is.\n"
        )
        text.append(report.markdown_table(["pass, size", *names], _memory_rows(peaks, names)))
    return "\n".join(text)


def _groups(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], dict[str, dict[str, Any]]]:
    groups: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["pass"], row["size"]), {})[row["candidate"]] = row
    return groups


def _time_rows(rows: Sequence[dict[str, Any]], threads: int, names: Sequence[str]) -> list[list[str]]:
    lines = []
    for (kind, size), group in _groups([row for row in rows if row["threads"] == threads]).items():
        cells = [
            "not available" if row.get("note") else f"{row['median_us']:.1f} ({row['speedup']:.2f})"
            for row in (group[name] for name in names)
        ]
        others = [
            row["median_us"] for name, row in group.items() if name != "fastvae" and not row.get("note")
        ]
        ratio = min(others) / group["fastvae"]["median_us"]
        lines.append([f"{kind}, {size}", *cells, f"{ratio:.2f} {report.verdict(ratio)}"])
    return lines


def _memory_rows(peaks: Sequence[dict[str, Any]], names: Sequence[str]) -> list[list[str]]:
    lines = []
    for (kind, size), group in _groups(peaks).items():
        tensor = 4 * SIZES[size][0] * SIZES[size][1]
        sizes = [group[name]["peak_bytes"] if name in group else None for name in names]
        cells = ["" if peak is None else f"{peak / 2**20:.1f} ({peak / tensor:.1f})" for peak in sizes]
        lines.append([f"{kind}, {size}", *cells])
    return lines


def picture(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the speedups over eager torch, gains above the line and losses below it."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    names = [name for name in dict.fromkeys(row["candidate"] for row in rows) if name != "eager torch"]
    thread_counts = list(dict.fromkeys(row["threads"] for row in rows))
    figure = report.new_figure(12, 1 + 3 * len(thread_counts))
    axes = figure.subplots(len(thread_counts), len(passes.PASSES), sharey=True, squeeze=False)
    for axis_row, threads in zip(axes, thread_counts, strict=True):
        for axis, kind in zip(axis_row, passes.PASSES, strict=True):
            bars: dict[str, dict[str, tuple[float, ...]]] = {name: {} for name in names}
            for row in rows:
                measured = row["candidate"] in bars and not row.get("note")
                if measured and (row["pass"], row["threads"]) == (kind, threads):
                    bars[row["candidate"]][row["size"]] = report.spread(row)
            report.speed_bars(axis, sizes, bars)
            axis.set_title(f"{kind}, {report.count(threads, 'thread')}", fontsize="medium")
        axis_row[0].set_ylabel("speed, eager torch = 1x")
    axes[0][0].legend(fontsize="small")
    figure.suptitle(f"The latent step on {rows[0]['cpu']}, torch {rows[0]['torch']}, float32")
    report.write_svg(path, figure)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few sizes and rounds, printed only")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, metavar="SIZE", help=f"of {', '.join(SIZES)}")
    parser.add_argument(
        "--threads", nargs="+", type=int, metavar="N", help="thread counts (default: one and all)"
    )
    parser.add_argument("--output-dir", type=Path, help="default: benches/results/<processor>")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if not str(fastvae._core.__file__).endswith((".so", ".pyd", ".dylib")):
        parser.error("the Rust kernels are not built: run this as `python3 tasks.py bench`")
    if options.peak:
        name, size, kind = options.peak
        print(json.dumps(harness.peak_bytes(candidate(name, STEPS[name](), kind, inputs(*SIZES[size])))))
        return 0
    rows = run(
        options.sizes or (QUICK_SIZES if options.quick else list(SIZES)),
        options.threads or sorted({1, torch.get_num_threads()}),
        seconds=0.3 if options.quick else 4.0,
        rounds=7 if options.quick else 41,
        memory=["both"] if options.quick else MEMORY_PASSES,
    )
    folder = options.output_dir
    if folder is None and not options.quick:
        folder = report.RESULTS / machine.processor().folder
    if folder is None:
        print("\n" + tables(rows))
        return 0
    report.write_csv(folder / "latent.csv", rows)
    report.write_text(folder / "latent.md", tables(rows))
    picture(rows, folder / "latent.svg")
    print(f"\n{folder}: latent.csv, latent.md, latent.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
