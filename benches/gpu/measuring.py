"""How a comparison is measured on a CUDA device.

Times are those of ``triton.testing.do_bench``: events on the device around each call, the device's cache
cleared before it. The candidates take turns: a round is one ``do_bench`` of each, in an order that changes
from round to round, and gives a median and the 20th and 80th percentile. A row has the medians of these over
the rounds; a speedup is the median of the ratios of the medians within the rounds.

A copy on the device that moves as many bytes as the work has to is measured beside it, in the same rounds.
The fraction of its bandwidth that a candidate reaches is then the copy's time over its own.

While the cache is cleared, the processor runs ahead: a call of many small kernels looks shorter than it is to
a program that does nothing else. ``loop_us`` is the time per call of many in a row, up to the end of the
last.
"""

from __future__ import annotations

import functools
import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

import harness
import machine
from comparison import Comparison, Row, Target, UnavailableError, build, judge

COPY = "copy"
QUANTILES = (0.2, 0.5, 0.8)
LOOP_SECONDS = 0.05

Bench: TypeAlias = Callable[[Callable[[], object]], Sequence[float]]
"""Gives the quantiles of a call's time in milliseconds."""


def cuda() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device())


def do_bench(call: Callable[[], object]) -> Sequence[float]:
    # Only CUDA builds of torch bring it.
    from triton.testing import do_bench as measured  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

    quantiles: Sequence[float] = measured(call, warmup=25, rep=100, quantiles=list(QUANTILES))
    return quantiles


@dataclass(frozen=True)
class Bandwidth(Target):
    """What is asked of a candidate beside the copy that moves as many bytes: ``times`` is the fraction."""

    over: str = COPY

    def text(self) -> str:
        return f"at least {100 * self.times:.0f} % of the copy's bandwidth"


@dataclass(frozen=True)
class Work(Comparison):
    """One line of the table.

    Attributes
    ----------
    dtype : str
    moved : int
        Bytes that have to be read and written: each input once, each result once. 0 where the time is not one
        of moving bytes.
    needs : int
        Bytes of device memory that all candidates take together, roughly.
    """

    dtype: str = "float32"
    moved: int = 0
    needs: int = 0

    def lacks(self, free: int) -> str:
        """Say why it does not fit into that many bytes; nothing where it does."""
        if self.needs <= free:
            return ""
        return f"skipped: needs some {self.needs / 2**30:.0f} GiB, and {free / 2**30:.0f} GiB are free"


def copy(moved: int) -> Callable[[str], harness.Candidate]:
    """A copy on the device that reads and writes a number of bytes together."""

    def make(name: str) -> harness.Candidate:
        source = torch.zeros(moved // 2, dtype=torch.uint8, device=cuda())
        target = torch.empty_like(source)
        return harness.Candidate(name, lambda _: target.copy_(source))

    return make


@dataclass(frozen=True)
class Timed:
    """The rounds of one candidate: the quantiles of each in milliseconds, and microseconds in a loop."""

    rounds: Sequence[Sequence[float]]
    loop_us: float

    @property
    def quantiles(self) -> list[float]:
        """The medians over the rounds, in seconds."""
        return [statistics.median(values) / 1e3 for values in zip(*self.rounds, strict=True)]

    @property
    def medians(self) -> list[float]:
        """Of each round, in seconds."""
        return [middle / 1e3 for _, middle, _ in self.rounds]


def time_each(
    candidates: Sequence[harness.Candidate], rounds: int, bench: Bench
) -> tuple[dict[str, Timed], dict[str, str]]:
    """Time candidates in turns; for those that ran out of memory, say so."""
    measured: dict[str, list[Sequence[float]]] = {candidate.name: [] for candidate in candidates}
    missing: dict[str, str] = {}
    # A seed: which candidate follows which is then no source of difference between two runs.
    shuffle = random.Random(0).shuffle  # noqa: S311
    order = list(candidates)
    for _ in range(rounds):
        shuffle(order)
        for candidate in order:
            if candidate.name not in missing:
                try:
                    measured[candidate.name].append(bench(functools.partial(candidate.call, None)))
                except torch.cuda.OutOfMemoryError:
                    missing[candidate.name] = "not available: out of memory"
    working = [candidate for candidate in candidates if candidate.name not in missing]
    return {one.name: Timed(measured[one.name], in_a_loop(one)) for one in working}, missing


def in_a_loop(candidate: harness.Candidate) -> float:
    """Microseconds per call of many in a row, with nothing between them."""

    def seconds(calls: int) -> float:
        synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            candidate.call(None)
        synchronize()
        return time.perf_counter() - start

    calls = min(1000, max(1, int(LOOP_SECONDS / max(seconds(3) / 3, 1e-7))))
    return 1e6 * min(seconds(calls) for _ in range(3)) / calls


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(work: Work, rounds: int) -> list[Row]:
    """Build, check and time the candidates; one row for each.

    Raises
    ------
    AssertionError
        For a candidate that is wrong.
    """
    built, missing = build(work)
    timed, too_large = time_each(built, rounds, do_bench)
    return rows(work, timed, {**missing, **too_large})


def release() -> None:
    """Give back the memory of candidates that are gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def rows(work: Work, timed: Mapping[str, Timed], missing: Mapping[str, str]) -> list[Row]:
    """Write a row for each candidate: its times, the bytes that it moved, what was asked of it."""
    base = next((timed[name].medians for name in work.candidates if name in timed), [])
    timings = {
        name: harness.Timing(name, one.medians, harness.ratios(base, one.medians))
        for name, one in timed.items()
    }
    targets = work.targets(machine.processor())
    written = []
    for name in work.candidates:
        row: Row = {
            "benchmark": "gpu",
            "comparison": work.name,
            "title": work.title,
            "pass": work.kind,
            "dtype": work.dtype,
            "candidate": name,
        }
        if name in timed:
            row |= _times(timed[name], timings[name])
            if work.moved:
                row |= bandwidth(work.moved, timed[name], timed.get(COPY))
        row |= judge([target for target in targets if target.of == name], timings)
        written.append({**row, "note": missing.get(name, "")})
    return written


def _times(own: Timed, timing: harness.Timing) -> Row:
    low, middle, high = own.quantiles
    slow, ratio, fast = harness.percentiles(timing.speedups)
    return {
        "median_us": round(middle * 1e6, 3),
        "p20_us": round(low * 1e6, 3),
        "p80_us": round(high * 1e6, 3),
        "speedup": round(ratio, 4),
        "speedup_p20": round(slow, 4),
        "speedup_p80": round(fast, 4),
        "rounds": len(own.rounds),
        "loop_us": round(own.loop_us, 3),
    }


def bandwidth(moved: int, own: Timed, copied: Timed | None) -> Row:
    """The bytes that have to move, how many do in a second, and the fraction of what a copy moves."""
    row: Row = {
        "bytes": moved,
        "gb_per_s": round(moved / own.quantiles[1] / 1e9, 1),
    }
    if copied is not None:
        row["copy_fraction"] = round(statistics.median(harness.ratios(copied.medians, own.medians)), 4)
    return row


def compare(
    name: str, pairs: Sequence[tuple[str, Tensor, Tensor]], *, relative: float, absolute: float
) -> None:
    """Refuse results that are not what the formulas in float64 give."""
    for what, actual, wanted in pairs:
        torch.testing.assert_close(
            actual.double(),
            wanted,
            rtol=relative,
            atol=absolute,
            msg=functools.partial("{}, {}: {}".format, name, what),
        )


def in_memory(make: Callable[[str], harness.Candidate]) -> Callable[[str], harness.Candidate]:
    """A candidate that may need more memory than the device has."""

    def guarded(name: str) -> harness.Candidate:
        try:
            return make(name)
        except torch.cuda.OutOfMemoryError as error:
            raise UnavailableError("out of memory") from error

    return guarded
