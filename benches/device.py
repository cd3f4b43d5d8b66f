"""The CUDA device of a run: what it calls itself, and what every row that was measured on it ends with.

python benches/device.py            what is there, for people
python benches/device.py --folder   the name of its folder of results, for scripts
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

import machine
import report

MISSING = 2
"""The exit code where there is nothing to measure on."""


@dataclass(frozen=True)
class Device:
    """A CUDA device, as the driver and torch know it.

    Attributes
    ----------
    name : str
        ``NVIDIA H200``.
    memory : int
        All of it, in bytes.
    capability : str
        ``9.0``.
    driver : str
        Its version; nothing where the system has no ``nvidia-smi``.
    cuda : str
        The version of CUDA that torch was built for.
    """

    name: str
    memory: int
    capability: str
    driver: str
    cuda: str

    @property
    def folder(self) -> str:
        """The name of its folder of results: ``nvidia-h200``."""
        return machine.slug(self.name)

    @property
    def columns(self) -> dict[str, object]:
        """What a row says of it."""
        return {
            "gpu": self.name,
            "gpu_memory_gib": round(self.memory / 2**30, 1),
            "capability": self.capability,
            "driver": self.driver,
            "cuda": self.cuda,
        }


def problem() -> str:
    """Say why nothing can be measured on a CUDA device here; nothing where it can."""
    if not torch.cuda.is_available():
        build = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        return (
            f"no CUDA device: torch {torch.__version__} ({build}) finds none; run this on a machine that has "
            "one, with a CUDA build of torch (https://pytorch.org/get-started)"
        )
    if importlib.util.find_spec("triton") is None:
        return "triton is missing, which torch's CUDA builds for Linux bring: pip install triton"
    return ""


def current() -> Device:
    """Ask torch and the driver what the current device is."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Device(
        name=properties.name,
        memory=properties.total_memory,
        capability=f"{properties.major}.{properties.minor}",
        driver=_driver(),
        cuda=str(torch.version.cuda),
    )


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return ""
    # A line for each device, all of one driver.
    return next(iter(printed.splitlines()), "").strip()


def provenance(device: Device, packages: Iterable[str]) -> dict[str, object]:
    """Describe the run: the device, and all that :func:`machine.provenance` says."""
    return {**device.columns, **machine.provenance(packages)}


def source(row: Mapping[str, Any]) -> str:
    """Say in a few words where a row comes from: the device, and all that :func:`report.source` says."""
    driver = f", driver {row['driver']}" if row["driver"] else ""
    return (
        f"{row['gpu']} ({row['gpu_memory_gib']} GiB, capability {row['capability']}{driver}, CUDA "
        f"{row['cuda']}, Triton {row['triton']}); {report.source(row)}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", action="store_true", help="print the name of the folder of results only")
    options = parser.parse_args(argv)
    wrong = problem()
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        return MISSING
    device = current()
    if options.folder:
        print(device.folder)
        return 0
    for name, value in provenance(device, ["torch", "triton", "fastvae"]).items():
        print(f"{name:<16} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
