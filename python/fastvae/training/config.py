"""Everything that decides a run, checked, in plain values that a file can hold."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, SupportsIndex, TypeAlias, TypeVar

from fastvae.models import ModelSpec
from fastvae.training.randomness import as_seed

__all__ = [
    "BINARIZE",
    "COMPILE",
    "PRECISION",
    "Compile",
    "DataInfo",
    "RunConfig",
    "Settings",
    "as_count",
    "as_hidden_dims",
]

BINARIZE = ("none", "dynamic", "threshold")
PRECISION = ("float32", "bfloat16")
COMPILE = ("auto", "graph", "inductor")
T = TypeVar("T")
Compile: TypeAlias = Literal["auto", "graph", "inductor", False]


@dataclass(frozen=True)
class Settings:
    """How a model is trained; see :func:`fastvae.train` for each.

    Raises
    ------
    TypeError, ValueError
        For a value of the wrong kind or out of range.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    beta: float
    warmup: float
    binarize: str
    seed: int
    # Older runs do not name the fields from here on.
    free_bits: float = 0.0
    precision: str = "float32"
    compile: Compile = "auto"
    cycles: int = 1
    capacity: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "cycles"):
            self._set(name, as_count(name, getattr(self, name)))
        self._set("learning_rate", _as_number("learning_rate", self.learning_rate, above=0))
        for name in ("weight_decay", "beta", "warmup", "free_bits", "capacity"):
            self._set(name, _as_number(name, getattr(self, name), least=0))
        self._set("seed", as_seed(self.seed))
        if self.warmup > 1:
            raise ValueError(
                f"warmup must lie between 0 and 1, a fraction of all steps, got {self.warmup}; "
                f"for the first n epochs write n / epochs"
            )
        if self.cycles > 1 and not self.warmup:
            raise ValueError(
                f"cycles={self.cycles} repeats the warm-up, and there is none: write warmup= beside it, such "
                "as 0.5, or leave it out"
            )
        if not self.beta and (self.capacity or self.cycles > 1):
            name = "capacity" if self.capacity else "cycles"
            raise ValueError(f"with beta=0 the KL has no weight, so {name} has no effect: leave it out")
        if self.capacity and self.free_bits:
            raise ValueError(
                "capacity and free_bits each say how much the codes may carry: leave one of them out"
            )
        if self.capacity and self.cycles > 1:
            raise ValueError(
                "cycles is of the weight of the KL, which capacity leaves as it is: leave one of them out"
            )
        if self.binarize not in BINARIZE:
            raise ValueError(
                f"binarize must be one of {', '.join(map(repr, BINARIZE))}, got {self.binarize!r}"
            )
        if self.precision not in PRECISION:
            raise ValueError(
                f"precision must be one of {', '.join(map(repr, PRECISION))}, got {self.precision!r}"
            )
        # Not `in`: 0 is no False here.
        if self.compile is not False and not (isinstance(self.compile, str) and self.compile in COMPILE):
            raise ValueError(
                f"compile must be one of {', '.join(map(repr, COMPILE))}, or False, got {self.compile!r}"
            )

    def _set(self, name: str, value: float) -> None:
        """Keep a number as Python's own, which JSON can hold, whatever kind was given."""
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class DataInfo:
    """The data of a run.

    Attributes
    ----------
    name : str
        Where it came from.
    samples, validation_samples : int
        Samples trained on, and held out.
    feature_names : tuple of str or None
        Columns of a data frame.
    pixels : bool
        Whether 8-bit values were divided by 255.
    """

    name: str
    samples: int
    validation_samples: int
    feature_names: tuple[str, ...] | None
    pixels: bool


@dataclass(frozen=True)
class RunConfig:
    """A run without its weights and its history: what ``config.json`` holds.

    Attributes
    ----------
    model : ModelSpec
    training : Settings
    data : DataInfo
    interrupted : bool
        Whether training was ended before its time.
    """

    model: ModelSpec
    training: Settings
    data: DataInfo
    interrupted: bool = False

    @classmethod
    def of_json(cls, content: Mapping[str, Any]) -> RunConfig:
        """Give a config that was written as JSON, where there may be more.

        Raises
        ------
        KeyError, TypeError, ValueError
            If it is none.
        """
        return cls(
            model=_section(ModelSpec, content["model"]),
            training=_section(Settings, content["training"]),
            data=_section(DataInfo, content["data"]),
            interrupted=bool(content["interrupted"]),
        )


def as_count(name: str, value: SupportsIndex) -> int:
    """Give a positive integer, or raise."""
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, got {value!r}") from None
    if isinstance(value, bool) or count < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return count


def as_hidden_dims(value: SupportsIndex | Iterable[int] | None) -> tuple[int, ...] | None:
    """Give the hidden sizes as a tuple; one number is one layer."""
    if value is None:
        return None
    sizes = tuple(value) if isinstance(value, Iterable) else (value,)
    if not sizes:
        raise ValueError(
            "hidden_dims must name at least one layer, such as (400,); leave it out for the default"
        )
    return tuple(as_count("hidden_dims", size) for size in sizes)


def _section(kind: type[T], values: object) -> T:
    """Build a config dataclass from JSON, with the lists that stand for its tuples turned back."""
    if not isinstance(values, dict):
        raise TypeError(f"expected an object for {kind.__name__}, got {type(values).__name__}")
    return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in values.items()})


def _as_number(name: str, value: object, *, least: float = -math.inf, above: float = -math.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    number = float(value)
    if not math.isfinite(number) or number < least or number <= above:
        bound = f"of at least {least:g}" if math.isfinite(least) else f"above {above:g}"
        raise ValueError(f"{name} must be a finite number {bound}, got {value!r}")
    return number
