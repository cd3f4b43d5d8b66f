"""A torch Dataset read sample by sample, as batches are needed."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fastvae import noise
from fastvae.data.base import Data
from fastvae.data.binarize import AS_THEY_ARE, Binarize
from fastvae.data.items import Sample, as_float, check_scale, read_item
from fastvae.data.random_state import IsolatedRandom, seed_global_generators


class StreamData(Data):
    """A map-style data set that is too large to keep.

    8-bit items are pixels and are divided by 255. What is random in an item (augmentation) depends on the
    seed of the pass and on the row alone, not on the number of workers.

    Parameters
    ----------
    items : Dataset
        Gives samples of one shape.
    first : Tensor
        The first sample, which all others must resemble.
    workers : int
        Processes that read items; 0 reads in this one.
    name, labels
        See :class:`~fastvae.data.Data`.
    """

    def __init__(
        self, items: Dataset[Any], first: Tensor, *, name: str, workers: int = 0, labels: Tensor | None = None
    ) -> None:
        super().__init__(tuple(first.shape), name=name, labels=labels, pixels=first.dtype == torch.uint8)
        self._items = items
        self._first = first
        self._workers = workers

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]  # open_dataset has checked it

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
        """See :meth:`Data.batches`."""
        rows = range(len(self)) if order is None else order.tolist()
        called = (torch.tensor(rows, dtype=torch.int64, device="cpu") if numbers is None else numbers).to(
            device
        )
        start = 0
        for batch in read_samples(
            self._items,
            rows,
            name=self.name,
            like=self._first,
            batch_size=batch_size,
            workers=self._workers,
            seed=seed,
        ):
            visited = called[start : start + len(batch.values)]
            yield binarize(as_float(batch.values.to(device)), visited), visited
            start += len(visited)

    def value_range(self) -> tuple[float, float]:
        """See :meth:`Data.value_range`."""
        return check_scale(self, super().value_range())


class ItemBatch(NamedTuple):
    """Samples of a data set, uint8, bool or float32, shape ``(B, *shape)``, and the class of each."""

    values: Tensor
    labels: list[int | None]


def read_samples(
    items: Dataset[Any],
    rows: Sequence[int],
    *,
    name: str,
    like: Tensor | None = None,
    batch_size: int = 256,
    workers: int = 0,
    seed: int = 0,
) -> Iterator[ItemBatch]:
    """Read rows of a data set in the given order, a batch at a time.

    The global random generators are seeded for each row from ``seed`` and the row, and left as they were.

    Parameters
    ----------
    items : Dataset
    rows : sequence of int
    name : str
        For error texts.
    like : Tensor, optional
        What all samples must have the shape and type of.
    batch_size : int
    workers : int
        Processes that read; 0 reads in this one.
    seed : int

    Raises
    ------
    TypeError, ValueError
        For items that are no samples, or differ from ``like``.
    """
    loader = DataLoader[Any](
        _SeededItems(items, seed, name, like),
        batch_size=batch_size,
        sampler=rows,
        num_workers=workers,
        collate_fn=_as_it_is,
        generator=torch.Generator("cpu").manual_seed(seed),  # else it draws from the caller's
    )
    with torch.device("cpu"):  # torch draws a seed on the default device, with a generator of the CPU
        batches = iter(loader)
    for batch in batches:
        if isinstance(batch, Exception):
            raise batch
        yield batch


class _SeededItems(Dataset[Any]):
    """A data set whose randomness is a function of the seed and the row."""

    def __init__(self, items: Dataset[Any], seed: int, name: str, like: Tensor | None) -> None:
        self._items = items
        self._seed = seed
        self._name = name
        self._like = like

    def __len__(self) -> int:
        return len(self._items)  # type: ignore[arg-type]

    def __getitems__(self, rows: list[int]) -> ItemBatch | Exception:
        try:
            with IsolatedRandom().active():
                samples = [self._read(row) for row in rows]
            return ItemBatch(torch.stack([s.values for s in samples]), [s.label for s in samples])
        except (TypeError, ValueError) as error:
            if get_worker_info() is None:
                raise
            # A worker's exception reaches the user as the text of a traceback: pass on the error itself.
            error.add_note("".join(traceback.format_exception(error)))
            return error

    def _read(self, row: int) -> Sample:
        seed_global_generators(noise.fold_in(self._seed, row))
        sample = read_item(self._items[row], f"{self._name}: item {row}")
        like = self._like
        if like is not None and (sample.values.shape != like.shape or sample.values.dtype != like.dtype):
            raise ValueError(
                f"{self._name}: all items must be alike; item 0 is {like.dtype} of shape "
                f"{tuple(like.shape)}, item {row} is {sample.values.dtype} of shape "
                f"{tuple(sample.values.shape)}"
            )
        return sample


def _as_it_is(batch: Any) -> Any:
    """Collate nothing: the data set stacks its samples itself, in the worker."""
    return batch
