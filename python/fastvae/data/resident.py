"""Samples kept whole in memory."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastvae.data.base import Data, Resident
from fastvae.data.binarize import AS_THEY_ARE, Binarize
from fastvae.functional import gather_batch
from fastvae.ops.noise.seed import as_int64

PIXEL_MAX = 255.0


class ResidentData(Data):
    """One tensor of samples, gathered a batch at a time.

    The tensor moves to the device of the model once, where it takes no more than half of the memory that is
    free; otherwise batches are gathered on the host and moved one by one.

    Parameters
    ----------
    values : Tensor
        uint8 or float32, shape ``(N, *shape)``, at least one sample; kept, never written to.
    pixels : bool
        Divide by 255.
    name, labels, feature_names, test
        See :class:`~fastvae.data.Data`.
    """

    def __init__(
        self,
        values: Tensor,
        *,
        name: str,
        pixels: bool = False,
        labels: Tensor | None = None,
        feature_names: list[str] | None = None,
        test: Data | None = None,
    ) -> None:
        super().__init__(
            tuple(values.shape[1:]),
            name=name,
            labels=labels,
            feature_names=feature_names,
            pixels=pixels,
            test=test,
        )
        self._values = values
        self._resident = values

    def __len__(self) -> int:
        return len(self._values)

    def resident_on(self, device: torch.device) -> Resident | None:
        """See :meth:`Data.resident_on`."""
        values = self._on(device)
        return Resident(values, self._data_max) if values.device == device else None

    def placement(self, device: torch.device) -> str:
        """See :meth:`Data.placement`."""
        size = _size(self._values.nbytes)
        if self.resident_on(device) is not None:
            return f"data resident on {device} ({size})"
        free, _ = torch.cuda.mem_get_info(device)
        return (
            f"data on the host and batches moved to {device}, as its {size} are more than half of the "
            f"{_size(free)} free there"
        )

    def batches(
        self,
        batch_size: int,
        *,
        order: Tensor | None,
        device: torch.device,
        seed: int = 0,  # noqa: ARG002  nothing is random here
        binarize: Binarize = AS_THEY_ARE,
        numbers: Tensor | None = None,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """See :meth:`Data.batches`."""
        values = self._on(device)
        visited = (torch.arange(len(self), device="cpu") if order is None else order).to(values.device)
        called = visited if numbers is None else numbers
        key = torch.tensor(as_int64(binarize.seed), device=device)
        for index, rows in zip(visited.split(batch_size), called.to(device).split(batch_size), strict=True):
            if values.device == device:
                part, positions = values, index
            else:  # what crosses over is no more than the batch, in its own dtype
                part = values.index_select(0, index).to(device)
                positions = torch.arange(len(index), device=device)
            x = gather_batch(
                part,
                positions,
                data_max=self._data_max,
                binarize=binarize.gathered,
                seed=key,
                rows=rows,
            )
            yield x, rows

    @property
    def _data_max(self) -> float | None:
        return PIXEL_MAX if self.pixels else None

    def _on(self, device: torch.device) -> Tensor:
        """Keep the values where they are gathered: on the device if they fit there."""
        if self._resident.device != device and _fits(self._values, device):
            self._resident = self._values.to(device)
        return self._resident if self._resident.device == device else self._values


def _fits(values: Tensor, device: torch.device) -> bool:
    if device.type != "cuda":
        return True
    free, _ = torch.cuda.mem_get_info(device)
    return values.nbytes <= free // 2


def _size(count: int) -> str:
    """A number of bytes in the largest unit of which there is one."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.3g} {name}"
    return f"{count} bytes"
