"""Adam on the CPU in one call: on small networks what is around torch's takes as long as it does."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.layout import address
from fastvae.training.fused_adam import check_gradient, check_parameter, flat, is_plain, plain_output

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
        float32, contiguous, on the CPU. They are updated in place and have to stay that way.
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

    def step(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
        """Update what has a gradient.

        Parameters
        ----------
        outputs : sequence of Tensor
            What has to be finite too.
        gradients : sequence of Tensor or None
            One for each parameter.

        Returns
        -------
        Tensor
            1 if the step was skipped, else 0: a float32 scalar.
        """
        own = [gradients[number] for number in self._members]
        moved = self._adam.step(self._parameters, own, list(outputs))
        if moved is None:
            moved = self._step_with_copies(outputs, own)
        return torch.full((), 0.0 if moved else 1.0, dtype=torch.float32, device=CPU)

    def _step_with_copies(self, outputs: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> bool:
        """The same of tensors that are not plain: of what is read there are copies that are."""
        for parameter, number in zip(self._parameters, self._members, strict=True):
            check_parameter(parameter, self._sizes[number], CPU)
            address(parameter)
        copies = [
            None if gradient is None else _copy(gradient, parameter)
            for parameter, gradient in zip(self._parameters, gradients, strict=True)
        ]
        looked_at = [plain_output(output).clone() for output in outputs if output.numel()]
        moved = self._adam.step(self._parameters, copies, looked_at)
        if moved is None:
            raise ValueError(
                "a parameter that is trained came to share its memory with another one, or to begin between "
                "two float32 numbers: it must keep memory of its own"
            )
        return moved


def _copy(gradient: Tensor, parameter: Tensor) -> Tensor:
    gradient = flat(gradient)
    check_gradient(gradient, parameter)
    address(gradient)
    return gradient.clone()
