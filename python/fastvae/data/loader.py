"""A user's own DataLoader, or a data set without random access."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from fastvae.data.base import CPU, Data, scan_batch_size
from fastvae.data.binarize import AS_THEY_ARE, Binarize
from fastvae.data.items import as_float, check_scale, read_item
from fastvae.data.random_state import IsolatedRandom, seed_global_generators


class LoaderData(Data):
    """The batches of a DataLoader as they come, or an iterable data set cut into batches.

    The order is the source's own: the ``order`` of :meth:`batches` is ignored and rows are counted in the
    order of arrival. Its shuffling is made reproducible by the ``seed`` of the pass, through the global
    random generators; a generator or seed that the loader was given stays in charge. 8-bit batches are pixels
    and are divided by 255. The number of samples is found by one pass.

    Parameters
    ----------
    source : DataLoader or IterableDataset
        Gives tensors, or tuples that begin with one.
    name : str
        How error texts call it.

    Raises
    ------
    TypeError, ValueError
        If the first batch holds no samples.
    """

    can_split = False

    def __init__(self, source: DataLoader[Any] | IterableDataset[Any], *, name: str = "data") -> None:
        self._source = source
        first = next(self._arrivals(1, 0, name), None)
        if first is None:
            raise ValueError(f"{name}: the {type(source).__name__} gives no samples")
        if first.ndim < 2 or not first[0].numel():
            raise ValueError(
                f"{name}: expected batches of samples, shape (B, ...), from the {type(source).__name__}, "
                f"got shape {tuple(first.shape)}"
            )
        super().__init__(
            tuple(first.shape[1:]), name=type(source).__name__, pixels=first.dtype == torch.uint8
        )

    def __len__(self) -> int:
        return self._summary.samples

    @property
    def generator(self) -> torch.Generator | None:
        """See :attr:`Data.generator`."""
        own = self._source.generator if isinstance(self._source, DataLoader) else None
        return own if isinstance(own, torch.Generator) else None

    def batch_size(self, wanted: int) -> int:
        """See :meth:`Data.batch_size`; a DataLoader decides on its own batches, which need not be alike."""
        own = self._source.batch_size if isinstance(self._source, DataLoader) else None
        return wanted if own is None else own

    def batch_count(self, batch_size: int) -> int:
        """See :meth:`Data.batch_count`; a DataLoader decides on its own batches."""
        if isinstance(self._source, DataLoader):
            return self._summary.batches
        return super().batch_count(batch_size)

    def batches(
        self,
        batch_size: int,
        *,
        order: Tensor | None,  # noqa: ARG002  the source has its own
        device: torch.device,
        seed: int = 0,
        binarize: Binarize = AS_THEY_ARE,
        numbers: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See :meth:`Data.batches`."""
        start = 0
        for values in self._arrivals(batch_size, seed, self.name):
            if values.shape[1:] != self.shape or (values.dtype == torch.uint8) != self.pixels:
                raise ValueError(
                    f"{self.name}: all batches must be alike; the first has samples of shape {self.shape}, "
                    f"the one from row {start} is {values.dtype} of shape {tuple(values.shape)}"
                )
            rows = torch.arange(start, start + len(values), device=device)
            if numbers is not None:
                rows = numbers[start : start + len(values)].to(device)
            yield binarize(as_float(values.to(device, copy=True)), rows), rows
            start += len(values)
        if not start:
            raise ValueError(
                f"{self.name}: gave samples once and none the next time; each iter() of it must start anew"
            )

    def take(self, rows: Tensor) -> Tensor:
        """See :meth:`Data.take`; rows as they arrive with seed 0."""
        wanted = rows.tolist()
        missing, found = set(wanted), dict[int, Tensor]()
        for x, visited in self.batches(scan_batch_size(self.shape), order=None, device=CPU):
            for sample, row in zip(x, visited.tolist(), strict=True):
                if row in missing:
                    found[row] = sample.clone()
                    missing.remove(row)
            if not missing:
                return torch.stack([found[row] for row in wanted]) if wanted else x[:0]
        raise IndexError(f"{self.name}: rows must lie in [0, {len(self)}), got {min(missing)}")

    def split(self, fraction: float, seed: int) -> tuple[Data, Data]:  # noqa: ARG002
        """Refuse: rows that arrive in an order of their own cannot be told apart."""
        raise ValueError(
            f"a {self.name} cannot be split into training and validation samples, because it picks its own "
            "rows; give another one as validation, or validation=None"
        )

    def value_range(self) -> tuple[float, float]:
        """See :meth:`Data.value_range`."""
        return check_scale(self, super().value_range())

    def _arrivals(self, batch_size: int, seed: int, name: str) -> Iterator[Tensor]:
        """Yield the values of each batch, drawn with random states of the pass's own."""
        isolated = IsolatedRandom()
        with isolated.active():
            seed_global_generators(seed)
            source = self._source
            if isinstance(source, DataLoader):
                iterator = iter(source)
            else:
                with torch.device("cpu"):  # where torch draws a seed
                    iterator = iter(DataLoader(source, batch_size))
        number = 0
        while True:
            with isolated.active():
                batch = next(iterator, None)
            if batch is None:
                return
            yield read_item(batch, f"{name}: batch {number}").values
            number += 1
