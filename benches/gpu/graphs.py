"""Work inside a captured graph: what the device takes, whatever the processor takes to start it."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor

import harness

Results: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True)
class Captured:
    """A graph of recorded work.

    Attributes
    ----------
    replay : callable
        Does the work once more.
    results : tuple of Tensor
        Where each replay leaves what the work gives.
    work : callable
        Kept, since a replay reads the tensors that it was recorded with, wherever they were.
    """

    replay: Callable[[], None]
    results: Results
    work: Callable[[], Results]


def capture(work: Callable[[], Results], stream: torch.cuda.Stream | None = None) -> Captured:
    """Record work into a CUDA graph, after the warm-up on a stream of its own that capture wants.

    A backward goes by the stream of its forward: where that was before, name it.
    """
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # A kernel that the collector unloads in the middle of a capture would break it.
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        with torch.cuda.graph(graph, stream=stream):
            results = work()
    finally:
        if collecting:
            gc.enable()
    return Captured(graph.replay, results, work)


def in_a_graph(make: Callable[[str], harness.Candidate]) -> Callable[[str], harness.Candidate]:
    """A candidate whose call is recorded once, and replayed."""

    def recorded(name: str) -> harness.Candidate:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            candidate = make(name)
        torch.cuda.current_stream().wait_stream(stream)
        work = cast("Callable[[], Results]", functools.partial(candidate.call, None))
        graph = capture(work, stream)
        return harness.Candidate(name, lambda _: graph.replay())

    return recorded
