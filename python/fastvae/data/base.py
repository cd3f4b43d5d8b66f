"""What every source of samples offers."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from fastvae import noise
from fastvae.data.binarize import AS_THEY_ARE, Binarize
from fastvae.functional import gather_batch

SCAN_VALUES = 2**20
"""How many values a pass over a whole data set looks at together: 4 MiB of float32."""

CPU = torch.device("cpu")


class Resident(NamedTuple):
    """Samples on the device of a model, from which a batch is gathered there.

    Attributes
    ----------
    values : Tensor
        uint8 or float32, ``(N, *shape)``.
    data_max : float or None
        What values are divided by.
    rows : Tensor or None
        Which of the values are the samples, where they are not all of them.
    """

    values: Tensor
    data_max: float | None
    rows: Tensor | None = None

    def gather(self, samples: Tensor, *, binarize: str, seed: Tensor) -> Tensor:
        """Give samples by their number as a model sees them; all that differs between calls is in tensors."""
        index = samples if self.rows is None else self.rows.index_select(0, samples)
        gathered = Binarize(binarize).gathered
        return gather_batch(
            self.values, index, data_max=self.data_max, binarize=gathered, seed=seed, rows=samples
        )


class Data(abc.ABC):
    """A finite set of samples of one shape.

    Attributes
    ----------
    shape : tuple of int
        Of one sample: ``(5,)``, ``(8, 8)``, ``(1, 28, 28)``.
    name : str
        What it is, for messages: ``"digits"``, ``"array"``, a path.
    labels : Tensor or None
        int64, shape ``(len(self),)``, where the source has classes. Only pictures use them.
    feature_names : list of str or None
        The columns of a data frame.
    pixels : bool
        Whether 8-bit values were divided by 255.
    can_split : bool
        Whether :meth:`split` works: not for a DataLoader, which picks its own rows.
    test : Data or None
        The held-out set that came with the source, such as the test files of MNIST.
    """

    can_split = True

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        name: str,
        labels: Tensor | None = None,
        feature_names: list[str] | None = None,
        pixels: bool = False,
        test: Data | None = None,
    ) -> None:
        self.shape = shape
        self.name = name
        self.labels = labels
        self.feature_names = feature_names
        self.pixels = pixels
        self.test = test

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}: {len(self)} samples of shape {self.shape}>"

    @abc.abstractmethod
    def __len__(self) -> int:
        """How many samples there are."""

    @abc.abstractmethod
    def batches(
        self,
        batch_size: int,
        *,
        order: Tensor | None,
        device: torch.device,
        seed: int = 0,
        binarize: Binarize = AS_THEY_ARE,
        numbers: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the samples once.

        Parameters
        ----------
        batch_size : int
            Samples per batch; the last batch may be smaller.
        order : int64 tensor or None
            The rows to visit, in this order: a permutation of ``range(len(self))`` for an epoch, or any other
            choice of rows. None is all rows in their natural order.
        device : torch.device
            Where the batches shall be.
        seed : int
            Governs what is random inside the source itself: the transforms of a torch Dataset, the shuffling
            of a DataLoader.
        binarize : Binarize
            What becomes of gray pixels. Drawn ones depend on its seed and on the row alone.
        numbers : int64 tensor or None
            What the visited samples are called, one number each, in place of their index in this data set:
            for a data set that is a part of another.

        Yields
        ------
        x : Tensor
            float32, shape ``(B, *shape)``, on ``device``: a tensor of its own for each batch, yours to keep
            and to write to, and never a view of what the source keeps.
        rows : Tensor
            int64, shape ``(B,)``, on ``device``: the index of each sample in this data set, or its number.
        """

    @property
    def generator(self) -> torch.Generator | None:
        """What draws the order where the source has a generator of its own, which no seed reaches."""
        return None

    def resident_on(self, device: torch.device) -> Resident | None:  # noqa: ARG002
        """Give the samples as they lie on a device; None for a source that is read as batches are needed."""
        return None

    def placement(self, device: torch.device) -> str:
        """Say where the samples are when a model on ``device`` is trained on them."""
        return f"data read batch by batch and moved to {device}"

    def batch_size(self, wanted: int) -> int:
        """Give how many samples a batch has where so many are wanted."""
        return wanted

    def batch_count(self, batch_size: int) -> int:
        """How many batches one pass over all samples has."""
        return math.ceil(len(self) / batch_size)

    def take(self, rows: Tensor) -> Tensor:
        """Give a few samples by their index, as float32 on the CPU.

        Parameters
        ----------
        rows : Tensor
            int64, shape ``(n,)``.

        Returns
        -------
        Tensor
            Shape ``(n, *shape)``.

        Raises
        ------
        IndexError
            For a row that does not exist.
        """
        if not len(rows):
            return torch.empty((0, *self.shape), dtype=torch.float32, device=CPU)
        low, high = int(rows.min()), int(rows.max())
        if low < 0 or high >= len(self):
            raise IndexError(
                f"{self.name}: rows must lie in [0, {len(self)}), got {low if low < 0 else high}"
            )
        step = scan_batch_size(self.shape)
        return torch.cat([x for x, _ in self.batches(step, order=rows.cpu(), device=CPU)])

    def split(self, fraction: float, seed: int) -> tuple[Data, Data]:
        """Divide the samples at random into two disjoint sets.

        Parameters
        ----------
        fraction : float
            The share of the second set, in (0, 1); at least one sample is on either side.
        seed : int
            Of the random order (``fastvae.noise.permutation``).

        Returns
        -------
        rest, held_out : Data
            Each in the natural order of its rows.

        Raises
        ------
        ValueError
            For a fraction outside (0, 1), fewer than two samples, or a source that cannot be split.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"the held-out fraction must lie between 0 and 1, got {fraction}")
        if len(self) < 2:
            raise ValueError(f"{self.name}: one sample cannot be divided in two sets; go without validation")
        held_out = min(max(round(fraction * len(self)), 1), len(self) - 1)
        order = noise.permutation(len(self), seed)
        return Subset(self, order[held_out:].sort().values), Subset(self, order[:held_out].sort().values)

    def value_range(self) -> tuple[float, float]:
        """Find the smallest and the largest value, as a model sees them.

        Raises
        ------
        ValueError
            If there are values that are NaN or infinite; the text names their rows.
        """
        summary = self._summary
        if summary.bad_rows:
            raise ValueError(self._explain_bad(summary))
        return summary.low, summary.high

    def is_binary(self) -> bool:
        """Whether every value is 0 or 1."""
        return self._summary.binary

    @cached_property
    def _summary(self) -> Summary:
        """What one pass over all samples tells; made when first asked for."""
        return self.summarize(None)

    def know(self, summary: Summary) -> None:
        """Take what a pass over all samples tells from somebody who made it."""
        self.__dict__["_summary"] = summary

    def summarize(self, order: Tensor | None) -> Summary:
        """Look at all samples, or at those of some rows."""
        low, high, binary = math.inf, -math.inf, True
        samples = batches = 0
        bad_count, bad_rows = 0, list[int]()
        bad_features = torch.zeros(self.shape, dtype=torch.bool, device=CPU)
        for x, rows in self.batches(scan_batch_size(self.shape), order=order, device=CPU):
            if not len(x):
                continue
            # NaN is the smallest and the largest of what it is among: one pass, where all is well.
            lowest, highest = (float(extreme) for extreme in torch.aminmax(x))
            if not (math.isfinite(lowest) and math.isfinite(highest)):
                finite = x.isfinite()
                bad = ~finite.flatten(1).all(1)
                bad_count += int(bad.sum())
                bad_rows += rows[bad][: 5 - len(bad_rows)].tolist()
                bad_features |= ~finite.all(0)
            low, high = min(low, lowest), max(high, highest)
            binary = binary and bool(((x == 0) | (x == 1)).all())
            samples += len(x)
            batches += 1
        return Summary(samples, batches, low, high, binary, bad_count, bad_rows, bad_features)

    def _explain_bad(self, summary: Summary) -> str:
        rows = ", ".join(str(row) for row in summary.bad_rows)
        more = ", ..." if summary.bad_count > len(summary.bad_rows) else ""
        text = (
            f"{self.name}: {summary.bad_count} of {len(self)} samples hold NaN or infinite values "
            f"(row {rows}{more}, counted from 0)"
        )
        if self.feature_names:
            columns = [repr(self.feature_names[i]) for i in summary.bad_features.nonzero().flatten().tolist()]
            text += f", in column {', '.join(columns[:5])}{', ...' if len(columns) > 5 else ''}"
        return f"{text}; remove these samples or fill in the values"


class Subset(Data):
    """Some rows of another data set, without copying them.

    Parameters
    ----------
    source : Data
    rows : Tensor
        int64: which rows of the source, in this order.
    """

    def __init__(self, source: Data, rows: Tensor) -> None:
        super().__init__(
            source.shape,
            name=source.name,
            labels=None if source.labels is None else source.labels[rows],
            feature_names=source.feature_names,
            pixels=source.pixels,
        )
        self.source = source
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def resident_on(self, device: torch.device) -> Resident | None:
        """See :meth:`Data.resident_on`."""
        whole = self.source.resident_on(device)
        if whole is None:
            return None
        rows = self.rows.to(device)
        return whole._replace(rows=rows if whole.rows is None else whole.rows.index_select(0, rows))

    def placement(self, device: torch.device) -> str:
        """See :meth:`Data.placement`."""
        return self.source.placement(device)

    def batches(
        self,
        batch_size: int,
        *,
        order: Tensor | None,
        device: torch.device,
        seed: int = 0,
        binarize: Binarize = AS_THEY_ARE,
        numbers: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See :meth:`Data.batches`; rows count within this subset."""
        visited = torch.arange(len(self), device=CPU) if order is None else order.cpu()
        return self.source.batches(
            batch_size,
            order=self.rows[visited],
            device=device,
            seed=seed,
            binarize=binarize,
            numbers=visited if numbers is None else numbers,
        )


class Summary(NamedTuple):
    """What a pass over samples tells."""

    samples: int
    batches: int
    low: float
    high: float
    binary: bool
    bad_count: int
    """Samples with numbers that are not finite."""
    bad_rows: list[int]
    """The first of them."""
    bad_features: Tensor

    @classmethod
    def of(cls, parts: Sequence[Summary]) -> Summary:
        """What passes over neighbouring parts tell of the whole."""
        return cls(
            samples=sum(part.samples for part in parts),
            batches=sum(part.batches for part in parts),
            low=min(part.low for part in parts),
            high=max(part.high for part in parts),
            binary=all(part.binary for part in parts),
            bad_count=sum(part.bad_count for part in parts),
            bad_rows=[row for part in parts for row in part.bad_rows][:5],
            bad_features=torch.stack([part.bad_features for part in parts]).any(0),
        )


def scan_batch_size(shape: tuple[int, ...]) -> int:
    """Choose a batch size for passes over a whole data set: few calls, little memory."""
    return max(1, SCAN_VALUES // math.prod(shape))
