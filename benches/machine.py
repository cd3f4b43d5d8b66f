"""Where a result comes from: the processor by a name that tells, the versions, the date, the load."""

from __future__ import annotations

import datetime as dt
import importlib.metadata
import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ZEN_MODELS = (
    (0x17, 0x00, 0x2F, "Zen"),
    (0x17, 0x30, 0xAF, "Zen 2"),
    (0x19, 0x00, 0x0F, "Zen 3"),
    (0x19, 0x20, 0x5F, "Zen 3"),
    (0x19, 0x10, 0x1F, "Zen 4"),
    (0x19, 0x60, 0xAF, "Zen 4"),
    (0x1A, 0x00, 0x2F, "Zen 5"),
    (0x1A, 0x40, 0x4F, "Zen 5"),
    (0x1A, 0x60, 0x7F, "Zen 5"),
)
"""Family, first and last model of AMD's cores, as Linux has them (arch/x86/kernel/cpu/amd.c)."""

SIMD_NAMES = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "portable kernels"}


@dataclass(frozen=True)
class Processor:
    """A processor, as well as the system knows it.

    Attributes
    ----------
    brand : str
        What it calls itself, which in a virtual machine may be as little as ``AMD EPYC``.
    vendor : {"AMD", "Intel", ""}
    family, model, stepping : int or None
        The numbers of an x86 processor.
    simd : str
        The widest instruction set that fastvae has kernels for.
    """

    brand: str
    vendor: str = ""
    family: int | None = None
    model: int | None = None
    stepping: int | None = None
    simd: str = ""

    @property
    def generation(self) -> str:
        """The name of the core where it is known, such as ``Zen 4``, else nothing."""
        if self.vendor != "AMD" or self.family is None or self.model is None:
            return ""
        for family, first, last, name in ZEN_MODELS:
            if self.family == family and first <= self.model <= last:
                return name
        return ""

    @property
    def name(self) -> str:
        """Everything: ``AMD EPYC (Zen 4: family 25 model 17 stepping 1, AVX-512)``."""
        numbers = ""
        if self.family is not None:
            numbers = f"family {self.family} model {self.model} stepping {self.stepping}"
        core = f"{self.generation}: {numbers}" if self.generation else numbers
        details = ", ".join(filter(None, (core, self.simd)))
        return f"{self.brand} ({details})" if details else self.brand

    @property
    def folder(self) -> str:
        """The name of its folder of results: the brand, and the core or its numbers."""
        core = self.generation.replace(" ", "")
        if not core and self.family is not None:
            core = f"family{self.family}-model{self.model}"
        return "-".join(filter(None, (slug(self.brand), core.lower())))


def slug(name: str) -> str:
    """Make a name fit for a folder: ``Intel(R) Xeon(R)`` becomes ``intel-xeon``."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm)\)|\bcpu\b|@.*", " ", name.lower())).strip("-")


@cache
def processor() -> Processor:
    """Ask the system what it runs on."""
    from fastvae import _core  # noqa: PLC0415 (a child that measures memory may have no use for it)

    simd = SIMD_NAMES.get(_core.levels()[-1], _core.levels()[-1])
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        return read_cpuinfo(cpuinfo.read_text(), simd)
    brand = _output("sysctl", "-n", "machdep.cpu.brand_string")  # of macOS; nothing elsewhere
    return Processor(brand or platform.processor() or platform.machine() or "unknown", simd=simd)


def read_cpuinfo(text: str, simd: str = "") -> Processor:
    """Read what Linux's ``/proc/cpuinfo`` says of the first processor."""
    fields = dict(re.findall(r"^([a-z_ ]+?)\s*: (.*)$", text, re.MULTILINE)[::-1])

    def number(name: str) -> int | None:
        return int(fields[name]) if fields.get(name, "").isdigit() else None

    return Processor(
        brand=fields.get("model name", "").strip() or platform.machine() or "unknown",
        vendor={"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}.get(fields.get("vendor_id", ""), ""),
        family=number("cpu family"),
        model=number("model"),
        stepping=number("stepping"),
        simd=simd,
    )


def provenance(packages: Iterable[str]) -> dict[str, object]:
    """Describe the run: date, machine, load, versions; the columns that every row ends with.

    ``FASTVAE_COMMIT`` says what the files are where they lie without their repository.
    """
    from fastvae import _core  # noqa: PLC0415

    try:
        load: float | str = round(os.getloadavg()[0], 2)
    except (AttributeError, OSError):
        load = ""
    return {
        "date": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cpu": processor().name,
        "simd": _core.simd_level(),
        "cores": os.cpu_count(),
        "load": load,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "commit": os.environ.get("FASTVAE_COMMIT") or _commit(),
    }


def _commit() -> str:
    root = Path(__file__).resolve().parent
    changed = _output("git", "-C", str(root), "status", "--porcelain", "--untracked-files=no")
    commit = _output("git", "-C", str(root), "rev-parse", "--short=12", "HEAD")
    return f"{commit}+changes" if commit and changed else commit


def version(package: str) -> str:
    """That of an installed package."""
    # A package's own word first: the package index does not say whether torch is the CPU or a CUDA build.
    own = getattr(sys.modules.get(package), "__version__", None)
    return str(own or importlib.metadata.version(package))


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
