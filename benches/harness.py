"""The one way this project measures: fair times and peak memory.

Times. The candidates of one comparison are measured in turns: each round takes one sample of every
candidate, in an order that changes from round to round. A sample is as many calls as fill
``SAMPLE_SECONDS`` (one call at least), found by calibration after a warm-up, and what a call needs
beforehand is prepared outside the clock. A row has the median and the 20th and 80th percentile over the
rounds. A ratio is taken within each round, between samples that saw the same machine, and its median is
reported: a machine that slows down in the middle of a run moves both sides of it.

Memory. The peak is measured in a child process per candidate, from the operating system's count of
resident memory: what the call adds, at its highest, to what was resident before it. So memory is counted
whoever allocates it (torch, Rust, a compiled kernel), results included, inputs not.

What is measured becomes rows that end with ``machine.provenance`` and are written by ``report``.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

SAMPLE_SECONDS = 0.002
"""Shortest time of one sample: ten thousand times what reading the clock costs."""


@dataclass(frozen=True)
class Candidate:
    """One way of doing the work.

    Attributes
    ----------
    name : str
        As it appears in the results.
    call : callable
        The timed work; it takes what ``prepare`` returned.
    prepare : callable
        What each call needs beforehand and must not be timed, such as the graph that a backward consumes.
    """

    name: str
    call: Callable[[Any], object]
    prepare: Callable[[], Any] = field(default=lambda: None)


@dataclass(frozen=True)
class Timing:
    """What was measured of one candidate: seconds per call, and its speedup over the first candidate."""

    name: str
    seconds: Sequence[float]
    speedups: Sequence[float]
    calls: int = 1

    def row(self) -> dict[str, object]:
        """Give the columns of a result row: microseconds, and how many times faster than the first one."""
        low, middle, high = percentiles(self.seconds)
        slow, ratio, fast = percentiles(self.speedups)
        return {
            "candidate": self.name,
            "median_us": round(middle * 1e6, 3),
            "p20_us": round(low * 1e6, 3),
            "p80_us": round(high * 1e6, 3),
            "speedup": round(ratio, 4),
            "speedup_p20": round(slow, 4),
            "speedup_p80": round(fast, 4),
            "samples": len(self.seconds),
            "calls_per_sample": self.calls,
        }


def percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the 20th, 50th and 80th percentile, interpolated linearly between the values."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return cuts[1], cuts[4], cuts[7]


def measure(
    candidates: Sequence[Candidate],
    *,
    seconds: float = 2.0,
    rounds: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Timing]:
    """Time candidates against the first of them.

    Parameters
    ----------
    candidates : sequence of Candidate
        The first is what the others are compared with.
    seconds : float
        Time that all samples together should take. Fewer rounds are made where calls are too long for it, but
        five at least.
    rounds : int
        Most rounds to make.
    clock : callable
        Seconds from any origin.

    Returns
    -------
    list of Timing
        In the order of the candidates.

    Raises
    ------
    ValueError
        Without candidates, or for two of one name.
    """
    names = [candidate.name for candidate in candidates]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"candidates need names of their own, got {names}")
    calls = [_calibrate(candidate, clock) for candidate in candidates]
    samples: list[list[float]] = [[] for _ in candidates]
    # A seed: which candidate follows which is then no source of difference between two runs.
    shuffle = random.Random(0).shuffle  # noqa: S311
    order = list(range(len(candidates)))
    spent = 0.0
    collecting = gc.isenabled()
    gc.disable()
    # What is there by now stays: looking through all of torch would take longer than most samples.
    gc.collect()
    gc.freeze()
    try:
        for made in range(rounds):
            if made >= 5 and spent * (made + 1) / made > seconds:
                break
            shuffle(order)
            for index in order:
                elapsed = _sample(candidates[index], calls[index], clock)
                samples[index].append(elapsed / calls[index])
                spent += elapsed
            gc.collect()
    finally:
        gc.unfreeze()
        if collecting:
            gc.enable()
    return [
        Timing(name, own, ratios(samples[0], own), count)
        for name, own, count in zip(names, samples, calls, strict=True)
    ]


def ratios(base: Sequence[float], other: Sequence[float]) -> list[float]:
    """How many times faster the other is than the base, in each round."""
    return [slow / fast for slow, fast in zip(base, other, strict=True)]


def _sample(candidate: Candidate, calls: int, clock: Callable[[], float]) -> float:
    """Time a number of calls, each with its own preparation made before the clock starts."""
    prepared = [candidate.prepare() for _ in range(calls)]
    call = candidate.call
    start = clock()
    for argument in prepared:
        call(argument)
    return clock() - start


def _calibrate(candidate: Candidate, clock: Callable[[], float]) -> int:
    """Warm up, and find how many calls make a sample long enough.

    The first call may compile, allocate or start threads, and says nothing about the others.
    """
    _sample(candidate, 1, clock)
    calls = 1
    while True:
        elapsed = min(_sample(candidate, calls, clock) for _ in range(3))
        if elapsed >= SAMPLE_SECONDS or calls >= 4096:
            return calls
        calls = min(4096, max(calls + 1, int(1.2 * calls * SAMPLE_SECONDS / max(elapsed, 1e-7))))


# ---------------------------------------------------------------------------------------------------- memory


def peak_bytes(candidate: Candidate) -> int | None:
    """Measure what a call adds at its highest to this process's resident memory.

    To be called in a process that does nothing else. A call is made and dropped before, so that neither
    lazily loaded libraries nor a compiler count.

    Returns
    -------
    int or None
        See :func:`with_peak`.
    """
    if not _reset_peak():
        return None
    candidate.call(candidate.prepare())
    argument = candidate.prepare()
    return with_peak(lambda: candidate.call(argument))[1]


def with_peak(call: Callable[[], T]) -> tuple[T, int | None]:
    """Make a call and measure what it adds at its highest to this process's resident memory.

    Returns
    -------
    result
        What the call gives.
    bytes : int or None
        To within some pages and the allocator's rounding. None where the system has no peak that can be reset
        (only Linux has): a peak since the start of the process would be that of importing torch.
    """
    gc.collect()
    if not _reset_peak():
        return call(), None
    _give_memory_back()
    _reset_peak()
    before = _status_bytes("VmRSS")
    result = call()
    return result, max(0, _status_bytes("VmHWM") - before)


def _give_memory_back() -> None:
    """Make glibc return what was freed, or the call would refill it and seem to need less."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _reset_peak() -> bool:
    """Make Linux forget the highest resident memory so far; False where that cannot be done."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if match is None:
        raise OSError(f"/proc/self/status has no {name}")
    return int(match[1]) * 1024


# ------------------------------------------------------------------------------------------------- processes


def in_child(script: str, *arguments: str, variables: Mapping[str, str] | None = None) -> Any:
    """Run a bench's file in a process of its own and return what it prints as JSON in its last line.

    Its other lines are printed here.

    Parameters
    ----------
    script : str
        The file.
    arguments : str
    variables : mapping
        Environment variables to set for it.

    Raises
    ------
    RuntimeError
        If it fails; with the end of what it wrote to its error stream.
    """
    done = subprocess.run(
        [sys.executable, script, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **(variables or {})},
        check=False,
    )
    *lines, last = done.stdout.splitlines() or [""]
    for line in lines:
        print(line, flush=True)
    if done.returncode:
        raise RuntimeError(
            f"{Path(script).name} {' '.join(arguments)} failed with exit code {done.returncode}:\n"
            f"{done.stderr[-2000:]}"
        )
    return json.loads(last)
