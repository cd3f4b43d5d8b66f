"""The numbers of a run, gathered on the device and read once in a while."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastvae.models import FlooredTerms, Terms
from fastvae.ops.cuda import TILE, compiles_for, has_triton, kernels, launch, on
from fastvae.training.ranks import ALONE, Ranks

__all__ = ["RECORD_KEYS", "EpochTotals", "Means", "Record", "finite", "is_record"]

Record: TypeAlias = dict[str, float | int | None]
"""One epoch: ``epoch`` (from 1); ``elbo``, ``recon`` and ``kl``, in nats per sample at beta = 1, averaged
over the epoch without its skipped steps; ``beta``, the weight of the KL at its end; ``val_elbo``,
``val_recon`` and ``val_kl``, None without validation; ``images_per_second``; ``seconds``;
``skipped_steps``."""


RECORD_KEYS = frozenset(
    (
        "epoch", "elbo", "recon", "kl", "beta", "val_elbo", "val_recon", "val_kl",
        "images_per_second", "seconds", "skipped_steps",
    )
)  # fmt: skip


def is_record(value: object) -> bool:
    """Whether this is one, as it comes out of a file."""
    return (
        isinstance(value, dict)
        and value.keys() == RECORD_KEYS
        and all(each is None or isinstance(each, int | float) for each in value.values())
    )


def finite(record: Record) -> Record:
    """A record as JSON can hold it: null for what is infinite or undefined."""
    return {key: value if value is None or math.isfinite(value) else None for key, value in record.items()}


class Means(NamedTuple):
    """Averages over the samples seen so far."""

    recon: float
    kl: float
    samples: int
    skipped_steps: int


MOST_PENDING = 32
"""How many batches wait to be added together."""


class EpochTotals:
    """Sums over the steps of an epoch; adding to them never waits for the device.

    Parameters
    ----------
    device : torch.device
        Where the steps run.
    """

    def __init__(self, device: torch.device) -> None:
        # MPS has no float64; a float32 sum of an epoch is still good to five digits.
        self._dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(4, dtype=self._dtype, device=device)
        self._pending = list[tuple[Tensor, Tensor]]()
        self._sizes = dict[int, Tensor]()
        self.steps = 0

    def reset(self) -> None:
        """Begin another epoch, in the same memory."""
        self._sums.zero_()
        self._pending.clear()
        self.steps = 0

    def accumulate(self, terms: Terms, skipped: Tensor) -> None:
        """Add a batch on the device alone: what repeats this also counts ``steps``."""
        device = self._sums.device
        if device.type == "cuda" and has_triton() and compiles_for(device.index):
            with on(device):
                add_in_one_launch(self._sums, terms, skipped)
        else:
            self._sums += _kept(torch.cat((self._sums_of(terms), self._size(len(terms.recon)))), skipped)

    def add(self, terms: Terms | FlooredTerms, skipped: Tensor) -> None:
        """Add a batch, or only count it where its step was skipped (a scalar, 1 or 0)."""
        # Copied, as whoever made them may use their memory again. The rest waits: on small networks each
        # operation takes as long as a layer.
        self._pending.append((_side_by_side(terms), skipped))
        self.steps += 1
        if len(self._pending) == MOST_PENDING:
            self._sums += self._pending_sums()
            self._pending.clear()

    def _sums_of(self, terms: Terms | FlooredTerms) -> Tensor:
        """The recon and the KL of a batch."""
        return _side_by_side(terms).sum(-1, dtype=self._dtype)

    def _pending_sums(self) -> Tensor:
        """The recon, the KL, the number of samples and that of steps among what waits."""
        sums = torch.zeros_like(self._sums)
        for samples, batches in itertools.groupby(self._pending, key=lambda batch: batch[0].shape[1]):
            terms, skipped = (torch.stack(each) for each in zip(*batches, strict=True))
            of_batches = terms.sum(-1, dtype=self._dtype)
            steps = torch.cat((of_batches, self._size(samples).expand_as(of_batches)), 1)
            sums += _kept(steps, skipped.unsqueeze(1)).sum(0)
        return sums

    def _size(self, samples: int) -> Tensor:
        """The number of samples and of steps in a batch, on the device."""
        if samples not in self._sizes:
            self._sizes[samples] = self._sums.new_tensor([samples, 1])
        return self._sizes[samples]

    def read(self, ranks: Ranks = ALONE) -> Means:
        """Wait for the device and give the averages; NaN where every step was skipped.

        Of several ``ranks`` those over the samples of all, whose steps are the same.
        """
        # What waits goes on waiting: the order of the sum must not depend on who looks when.
        sums = self._sums + self._pending_sums()
        ranks.add_up(sums[:3])
        recon, kl, samples, kept = sums.tolist()
        # Ctrl-C may come when the device has a step that the host has not counted yet.
        skipped = max(self.steps - int(kept), 0)
        if samples == 0:
            return Means(math.nan, math.nan, 0, skipped)
        return Means(recon / samples, kl / samples, int(samples), skipped)


def add_in_one_launch(sums: Tensor, terms: Terms, skipped: Tensor) -> None:
    """Add a batch to the recon, the KL, the samples and the steps, in Triton: small operations take as long.

    Parameters
    ----------
    sums : Tensor
        Four float64 numbers on the device.
    terms : Terms
        ``(B,)`` each.
    skipped : Tensor
        Nothing is added where it is not 0.
    """
    recon, kl = (term.detach().resolve_neg() for term in (terms.recon, terms.kl))
    if recon.dim() != 1 or recon.shape != kl.shape:
        raise ValueError(f"recon and kl must be (B,), got {tuple(recon.shape)} and {tuple(kl.shape)}")
    launch(
        kernels("totals").add,
        (1,),
        recon,
        kl,
        skipped,
        sums,
        len(recon),
        recon.stride(0),
        kl.stride(0),
        BLOCK=TILE,
    )


def _side_by_side(terms: Terms | FlooredTerms) -> Tensor:
    """The recon and the KL of each sample of a batch, ``(2, B)``, in memory of their own."""
    return torch.stack((terms.recon.detach(), terms.kl.detach()))


def _kept(steps: Tensor, skipped: Tensor) -> Tensor:
    """Zeros in place of what was skipped; not a product, as that may be infinite."""
    return torch.where(skipped == 0, steps, 0.0)
