"""Adam on the CPU in one call: on small networks what Python does around torch's shows in a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.layout import address
from fastvae.training.averages import Averages, flat_averages
from fastvae.training.fused_adam import check_gradient, flat, is_plain, plain_output

__all__ = ["NativeAdam", "takes"]

CPU = torch.device("cpu")


def takes(parameters: Sequence[Tensor]) -> bool:
    """Whether :class:`NativeAdam` can train these: plain float32 on the CPU, each with memory of its own."""
    some = [parameter for parameter in parameters if parameter.numel()]
    return bool(some) and all(is_plain(parameter, CPU) for parameter in some) and _core.Adam.takes(some)


class NativeAdam:
    """AdamW whose step does nothing where an output or a gradient is not finite, in Rust.

    The first pass looks at every number, the second updates. Nothing is added up across elements, so a step
    has the same bits with any number of threads. They are those of
    :class:`~fastvae.training.fused_adam.FusedAdam`.

    Parameters
    ----------
    parameters : sequence of Tensor
        float32, contiguous, on the CPU. They are updated in place. Should one get other strides later, it is
        updated by way of a copy.
    rates : sequence of (float, float)
        The learning rate and the weight decay of each.
    beta1, beta2, eps : float
        Of Adam. The betas are rounded to float32, in which the averages are kept, and the corrections for
        their beginning are those of the rounded ones.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        rates: Sequence[tuple[float, float]],
        *,
        beta1: float,
        beta2: float,
        eps: float,
    ) -> None:
        self._sizes = [parameter.numel() for parameter in parameters]
        # An empty one has nothing to move.
        self._members = [number for number, size in enumerate(self._sizes) if size]
        self._parameters = [parameters[number] for number in self._members]
        self._adam = _core.Adam(
            (beta1, beta2), eps, [(self._sizes[number], *rates[number]) for number in self._members]
        )

    def step(
        self,
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        *,
        finite: bool = False,
        kept: bool = False,
    ) -> Tensor:
        """Update what has a gradient.

        Parameters
        ----------
        outputs : sequence of Tensor
            What has to be finite too.
        gradients : sequence of Tensor or None
            One for each parameter.
        finite : bool
            Whether it is known that all gradients are finite.
        kept : bool
            Whether the gradients are the same tensors in each step: then they are looked at closely once.

        Returns
        -------
        Tensor
            1 if the step was skipped, else 0: a float32 scalar.
        """
        own = [gradients[number] for number in self._members]
        moved = self._adam.step(self._parameters, own, list(outputs), finite, kept)
        if moved is None:
            moved = self._step_with_copies(outputs, own)
        return torch.full((), 0.0 if moved else 1.0, dtype=torch.float32, device=CPU)

    def averages(self) -> list[Averages]:
        """Copy what is kept of each parameter, as numbers one after the other."""
        kept = [flat_averages(size) for size in self._sizes]
        own = [kept[number] for number in self._members]
        powers = self._adam.averages([each.mean for each in own] + [each.square for each in own])
        for each, reached in zip(own, powers, strict=True):
            each.powers.copy_(torch.tensor(reached, dtype=torch.float64, device=CPU))
        return kept

    def restore(self, kept: Sequence[Averages]) -> None:
        """Go on from what was kept of each parameter."""
        own = [kept[number] for number in self._members]
        self._adam.restore(
            [flat(each.mean) for each in own] + [flat(each.square) for each in own],
            [each.powers.tolist() for each in own],
        )

    def _step_with_copies(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> bool:
        """The same where a tensor is not plain, of which there is a copy then that is."""
        own, read = list[Tensor](), list[Tensor | None]()
        for parameter, number, gradient in zip(self._parameters, self._members, gradients, strict=True):
            if gradient is None:
                own.append(parameter)
                read.append(None)
                continue
            _check(parameter, self._sizes[number])
            check_gradient(gradient, parameter)
            own.append(_plain(parameter, flat))
            read.append(_plain(gradient, flat))
        looked_at = [_plain(output, plain_output) for output in outputs if output.numel()]
        moved = self._adam.step(own, read, looked_at)
        if moved is None:
            # Something that is read is in the memory of a parameter.
            read = [None if gradient is None else gradient.clone() for gradient in read]
            moved = self._adam.step(own, read, [output.clone() for output in looked_at])
        if moved is None:
            raise ValueError(
                "a parameter that is trained came to share its memory with another one: each must keep "
                "its own"
            )
        if moved:
            for parameter, copy in zip(self._parameters, own, strict=True):
                if copy is not parameter:
                    parameter.detach().copy_(copy.view(parameter.shape))
        return moved


def _check(parameter: Tensor, size: int) -> None:
    """Refuse a parameter that is no longer what a training began with, but for its strides."""
    plain = parameter.dtype is torch.float32 and parameter.layout is torch.strided
    if not plain or parameter.device != CPU or parameter.numel() != size:
        raise ValueError(
            f"a parameter that is trained became {parameter.dtype} of {tuple(parameter.shape)} on "
            f"{parameter.device}: it must stay {size} float32 numbers on {CPU}"
        )


def _plain(tensor: Tensor, to_floats: Callable[[Tensor], Tensor]) -> Tensor:
    """A tensor that can be read where it is, or a copy that can."""
    if _core.Adam.takes([tensor]):
        return tensor
    floats = to_floats(tensor)
    address(floats)
    return floats.flatten().clone()
