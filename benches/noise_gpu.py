"""The noise of a CUDA device beside that of the CPU's kernels, bit for bit.

Normals and uniforms of narrow and wide rows, of row numbers beyond 2^32, of several seeds and draws; and the
seeds and orders that are derived from a seed. The exit code is 1 where a single bit differs.

    python benches/noise_gpu.py                  10^8 draws of each, some seconds
    python benches/noise_gpu.py --draws 1000000
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

import device as cuda
from fastvae import noise

DRAWS = 10**8
CHUNK = 2**22
"""Draws that are compared at a time."""

WIDTHS = (1, 3, 64, 1000, 4099)
"""Columns of a row: part of a block, whole blocks, more than a program takes at once."""

FIRST_ROWS = (0, 2**32 - 1000, 2**62)
TAGS = 2**20


class Part(NamedTuple):
    """Some consecutive rows of one stream."""

    rows: int
    columns: int
    seed: int
    draw: int
    row_offset: int


def parts(draws: int) -> Iterator[Part]:
    """Cut a number of draws into parts, with every width and every first row among them."""
    number = 0
    for place, width in enumerate(WIDTHS):
        left = draws // len(WIDTHS) + (draws % len(WIDTHS) if place == 0 else 0)
        while left:
            # The last row of a width may be a short one of its own.
            columns = min(width, left)
            rows = min(left // columns, max(1, CHUNK // columns))
            seed = noise.fold_in(20, number)
            yield Part(rows, columns, seed, number % 3, FIRST_ROWS[number % 3] + number)
            left -= rows * columns
            number += 1


@dataclass
class Difference:
    """How two sets of numbers differ."""

    draws: int = 0
    differing: int = 0
    bits: int = 0
    ulps: int = 0

    def add(self, one: Tensor, other: Tensor) -> None:
        """Compare float32 numbers by their bits, or integers."""
        self.draws += one.numel()
        if one.dtype is torch.float32:
            one, other = one.view(torch.int32), other.view(torch.int32)
        apart = one != other
        self.differing += int(apart.sum())
        one, other = one[apart], other[apart]
        self.bits += sum(int(((one ^ other) >> bit & 1).sum()) for bit in range(8 * one.itemsize))
        if one.numel() and one.dtype is torch.int32:
            self.ulps = max(self.ulps, int((ordered(one) - ordered(other)).abs().max()))


def ordered(bits: Tensor) -> Tensor:
    """Integers in the order of the floats that have these bits: neighbours are one apart, 0 is -0."""
    wide = bits.long()
    return torch.where(wide < 0, -(wide & 0x7FFF_FFFF), wide)


def matrices(make: Callable[..., Tensor], draws: int, device: torch.device) -> Difference:
    """Compare normals or uniforms."""
    difference = Difference()
    for part in parts(draws):
        rows, columns, seed, draw, row_offset = part
        own, other = (
            make((rows, columns), seed, draw=draw, row_offset=row_offset, device=place)
            for place in (torch.device("cpu"), device)
        )
        difference.add(own, other.cpu())
    return difference


def integers(make: Callable[[torch.device], Tensor], device: torch.device) -> Difference:
    difference = Difference()
    difference.add(make(torch.device("cpu")), make(device).cpu())
    return difference


def seeds(device: torch.device) -> Tensor:
    tags = torch.arange(-TAGS // 2, TAGS // 2, device=device)
    return noise.fold_in(torch.full((), -3, dtype=torch.int64, device=device), tags)


def compare(draws: int, device: torch.device) -> dict[str, Difference]:
    """Compare all that there is."""
    return {
        "normals": matrices(noise.normal, draws, device),
        "uniforms": matrices(noise.uniform, draws, device),
        "seeds": integers(seeds, device),
        "orders": integers(lambda place: noise.permutation(TAGS, 5, draw=2, device=place), device),
    }


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draws", type=int, default=DRAWS, metavar="N", help=f"of each; default: {DRAWS}")
    options = parser.parse_args(argv)
    if options.draws < 1:
        parser.error(f"--draws must be at least 1, got {options.draws}")
    wrong = cuda.problem()
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return cuda.MISSING
    start = time.perf_counter()
    found = compare(options.draws, torch.device("cuda", torch.cuda.current_device()))
    print(f"{cuda.current().name} beside the CPU, {time.perf_counter() - start:.1f} s")
    for name, one in found.items():
        how = f"{one.differing} differ, in {one.bits} bits, by {one.ulps} ulps at most"
        print(f"{name:<10} {one.draws:>11} draws: {how}")
    return int(any(one.differing for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
