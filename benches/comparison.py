"""A comparison: the same work done in several ways, measured in one run, with what is asked of fastvae.

A comparison is data; :func:`measure` turns it into rows. Its candidates are built one after the other, each
checked against float64 before it is given back: one that is wrong stops the run with an ``AssertionError``,
one that cannot be had (no compiler, too few cores) is a row that says why.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

import harness
import passes
from machine import Processor

FASTVAE, EAGER, COMPILED = "fastvae", "eager torch", "torch.compile"

Row: TypeAlias = dict[str, Any]
Build: TypeAlias = Callable[[str], harness.Candidate]
"""Gives a candidate of the given name, checked."""


class UnavailableError(Exception):
    """A candidate that this machine or this installation does not have."""


@dataclass(frozen=True)
class Target:
    """What is asked of a candidate beside another one of the same run.

    Attributes
    ----------
    times : float
        How many times as fast it shall be at least; or, where ``cost`` is set, how many times the other's
        time it may take at most.
    over : str
        The other candidate.
    of : str
        The candidate itself.
    cost : bool
    """

    times: float
    over: str = EAGER
    of: str = FASTVAE
    cost: bool = False

    def text(self) -> str:
        if self.cost:
            return f"at most {self.times:g} times {self.over}"
        return f"at least {self.times:g}x {self.over}"

    def measured(self, timings: Mapping[str, harness.Timing]) -> float | None:
        """The median of the ratios within the rounds; None where one of the two was not measured."""
        if self.of not in timings or self.over not in timings:
            return None
        own, other = timings[self.of].seconds, timings[self.over].seconds
        return statistics.median(harness.ratios(own, other) if self.cost else harness.ratios(other, own))

    def reached(self, ratio: float) -> bool:
        return ratio <= self.times if self.cost else ratio >= self.times


def no_targets(_: Processor) -> Sequence[Target]:
    return ()


@dataclass(frozen=True)
class Comparison:
    """One line of the table.

    Attributes
    ----------
    name : str
        By which it is chosen on the command line.
    title : str
        What is done, with its sizes.
    kind : str
        ``forward``, ``forward and backward``, ...
    candidates : mapping
        How each is built; the first is what speeds refer to.
    targets : callable
        What is asked on a processor.
    threads : int, optional
        All that torch takes unless given; 0 where the candidates choose.
    variables : mapping
        Environment variables that have to be set before fastvae is imported.
    quick : bool
        Whether it is small enough for a look.
    """

    name: str
    title: str
    kind: str
    candidates: Mapping[str, Build]
    targets: Callable[[Processor], Sequence[Target]] = no_targets
    threads: int | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    quick: bool = True


def measure(
    comparison: Comparison, processor: Processor, *, threads: int, seconds: float, rounds: int
) -> list[Row]:
    """Build, check and time the candidates; one row for each.

    Parameters
    ----------
    comparison : Comparison
    processor : Processor
        On which the targets may depend.
    threads : int
        Of torch and fastvae, where the comparison has no number of its own.
    seconds, rounds
        As :func:`harness.measure`.

    Raises
    ------
    AssertionError
        For a candidate that is wrong.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(comparison.threads or threads)
    try:
        built, missing = build(comparison)
        timings = harness.measure(built, seconds=seconds, rounds=rounds) if built else []
    finally:
        torch.set_num_threads(before)
    by_name = {timing.name: timing for timing in timings}
    rows = []
    for name in comparison.candidates:
        row: Row = {
            "benchmark": "kernels",
            "comparison": comparison.name,
            "title": comparison.title,
            "pass": comparison.kind,
            "dtype": "float32",
            "threads": "" if comparison.threads == 0 else comparison.threads or threads,
            "candidate": name,
        }
        if name in by_name:
            row |= by_name[name].row()
        row |= judge([t for t in comparison.targets(processor) if t.of == name], by_name)
        rows.append({**row, "note": missing.get(name, "")})
    return rows


def build(comparison: Comparison) -> tuple[list[harness.Candidate], dict[str, str]]:
    """Build the candidates; for those that cannot be had, say why not."""
    built, missing = [], {}
    for name, make in comparison.candidates.items():
        try:
            built.append(make(name))
        except AssertionError:
            raise
        except Exception as error:
            # Whatever torch.compile throws where it has no C++ compiler, or stumbles over the code. Nothing
            # else may hide a candidate.
            if COMPILED not in name and not isinstance(error, UnavailableError):
                raise
            missing[name] = f"not available: {passes.reason(error)}"
    return built, missing


def judge(targets: Sequence[Target], timings: Mapping[str, harness.Timing]) -> Row:
    """The columns that say what was asked and whether it was reached."""
    ratios = [target.measured(timings) for target in targets]
    return {
        "target": "; ".join(target.text() for target in targets),
        "measured": "; ".join("" if ratio is None else f"{ratio:.2f}" for ratio in ratios),
        "reached": "; ".join(_verdicts(targets, ratios)),
    }


def _verdicts(targets: Sequence[Target], ratios: Sequence[float | None]) -> Iterator[str]:
    for target, ratio in zip(targets, ratios, strict=True):
        if ratio is None:
            yield "not measured"
        else:
            yield "reached" if target.reached(ratio) else "not reached"
