"""The gradients of a batch of which each process has a share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvae.training.ranks import Ranks

__all__ = ["SharedGradients"]

ALIGNED = 64
"""Elements, of which each gradient begins at a multiple: kernels are compiled for addresses like that."""


class SharedGradients:
    """Adds up the gradients of all processes, and what else they have to know of a step, in one exchange.

    Parameters
    ----------
    ranks : Ranks
    parameters : sequence of Tensor
        Those that are trained, the same in all processes.
    """

    def __init__(self, ranks: Ranks, parameters: Sequence[Tensor]) -> None:
        self._ranks = ranks
        self._parameters = list(parameters)
        # Half precision is added up in float32.
        kinds = [torch.promote_types(parameter.dtype, torch.float32) for parameter in self._parameters]
        device = self._parameters[0].device
        self._flat = dict[torch.dtype, Tensor]()
        self._views = list[Tensor]()
        """Of each gradient, in the memory that is exchanged."""
        places = [ALIGNED * -(-parameter.numel() // ALIGNED) for parameter in self._parameters]
        for kind in dict.fromkeys([torch.float32, *kinds]):
            size = sum(place for place, own in zip(places, kinds, strict=True) if own is kind)
            signals = 1 + len(self._parameters) if kind is torch.float32 else 0
            self._flat[kind] = torch.zeros(size + signals, dtype=kind, device=device)
        at = dict.fromkeys(self._flat, 0)
        for parameter, place, kind in zip(self._parameters, places, kinds, strict=True):
            begin = at[kind]
            at[kind] += place
            # As autograd lays a gradient out: kernels go through it beside its parameter.
            strides = torch.empty_like(parameter, device="meta").stride()
            self._views.append(self._flat[kind].as_strided(parameter.shape, strides, begin))
        signals_of_all = self._flat[torch.float32][at[torch.float32] :]
        self._finite, self._used = signals_of_all[:1], signals_of_all[1:]
        self._are_used = dict[tuple[bool, ...], Tensor]()

    def add_up(
        self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> tuple[Tensor, list[Tensor | None]]:
        """Give what all processes have together.

        Parameters
        ----------
        outputs : sequence of Tensor
            What has to be finite.
        gradients : sequence of Tensor or None
            One for each parameter, of this process's share; an empty share has none.

        Returns
        -------
        finite : Tensor
            One float32 number, NaN where an output of any process is not finite.
        gradients : list of Tensor or None
            Their sums, in memory that the next call writes to again; None where no process has one.
        """
        there = tuple(gradient is not None for gradient in gradients)
        self._finite.zero_()
        for output in outputs:
            self._finite.add_((output.detach() * 0).sum(dtype=torch.float32))
        self._used.copy_(self._flags(there))
        own = list[Tensor]()
        for view, gradient in zip(self._views, gradients, strict=True):
            if gradient is None:
                own.append(torch.zeros_like(view))
            else:
                own.append(gradient if gradient.layout is torch.strided else gradient.to_dense())
        torch._foreach_copy_(self._views, own)  # on a device one kernel for many
        for flat in self._flat.values():
            self._ranks.add_up(flat)
        if not all(there):  # a wait for the device, by those alone that do not know
            there = tuple((self._used != 0).tolist())
        return self._finite, [
            view.to(parameter.dtype) if used else None
            for view, parameter, used in zip(self._views, self._parameters, there, strict=True)
        ]

    def _flags(self, there: tuple[bool, ...]) -> Tensor:
        """Which gradients there are, as numbers on the device, made once."""
        if there not in self._are_used:
            self._are_used[there] = self._used.new_tensor(there)
        return self._are_used[there]
