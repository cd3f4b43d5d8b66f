"""The one way this project measures: fair times, peak memory, and rows that say where they come from.

Times. The candidates of one comparison are measured in turns: each round takes one sample of every
candidate, in an order that changes from round to round. A sample is as many calls as fill
``SAMPLE_SECONDS`` (one call at least), found by calibration after a warm-up, and what a call needs
beforehand is prepared outside the clock. A row has the median and the 20th and 80th percentile over the
rounds. A ratio is taken within each round, between samples that saw the same machine, and its median is
reported: a machine that slows down in the middle of a run moves both sides of it.

Memory. The peak is measured in a child process per candidate, from the operating system's count of
resident memory: what the call adds, at its highest, to what was resident before it. So memory is counted
whoever allocates it (torch, Rust, a compiled kernel), results included, inputs not.

Every row carries the date, the machine, the versions and the load that the machine had when the run
began.
"""

from __future__ import annotations

import contextlib
import csv
import ctypes
import datetime as dt
import gc
import importlib.metadata
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SAMPLE_SECONDS = 0.002
"""Shortest time of one sample: ten thousand times what reading the clock costs."""

LOST = 1 / 1.02
"""A speedup below this is a loss, one above its inverse a gain; between them the two are called even."""


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
    calls: int

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
    first = samples[0]
    return [
        Timing(name, own, [base / time_ for base, time_ in zip(first, own, strict=True)], count)
        for name, own, count in zip(names, samples, calls, strict=True)
    ]


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
        Bytes, to within some pages and the allocator's rounding. None where the system has no peak that can
        be reset (only Linux has): a peak since the start of the process would be that of importing torch.
    """
    if not _reset_peak():
        return None
    candidate.call(candidate.prepare())
    argument = candidate.prepare()
    gc.collect()
    _give_memory_back()
    _reset_peak()
    before = _status_bytes("VmRSS")
    kept = candidate.call(argument)
    peak = _status_bytes("VmHWM")
    del kept
    return max(0, peak - before)


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


# --------------------------------------------------------------------------------------------------- machine


def cpu_model() -> str:
    """Name the processor, as well as the system knows it."""
    if sys.platform == "linux":
        match = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    if sys.platform == "darwin":
        named = _output("sysctl", "-n", "machdep.cpu.brand_string")
        if named:
            return named
    return platform.processor() or platform.machine() or "unknown"


def slug(name: str) -> str:
    """Make a name fit for a folder: ``Intel(R) Xeon(R)`` becomes ``intel-xeon``."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|\bcpu\b|@.*", " ", name.lower())).strip("-")


def provenance(packages: Iterable[str]) -> dict[str, object]:
    """Describe the run: date, machine, load, versions; the columns that every row ends with."""
    try:
        load: float | str = round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        load = ""
    root = Path(__file__).resolve().parent
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    commit = _output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "load": load,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in packages},
        "commit": f"{commit}+changes" if commit and changed else commit,
    }


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


# --------------------------------------------------------------------------------------------------- results


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, which takes the file's place when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        temporary.replace(path)


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Write rows as CSV; the columns are those of all rows, in the order they first appear."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


def verdict(speedup: float) -> str:
    """Say in a word whether a ratio is a gain; a loss is said as loudly."""
    if speedup < LOST:
        return "slower"
    return "faster" if speedup > 1 / LOST else "even"


def write_text(path: Path, text: str) -> None:
    """Write a text file, complete or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lay out a table: the first column is text, the others are aligned as numbers."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
