"""Adam in one kernel, with steps that can be called off on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["CautiousAdam"]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

LIKELIHOOD_RATE = 10
"""The likelihood's own parameters move this much faster than weights: Adam moves a parameter by about its
learning rate a step, and a log-variance has a long way to go from 0."""


class _State(NamedTuple):
    parameter: nn.Parameter
    mean: Tensor
    square: Tensor
    step: Tensor


class _Group(NamedTuple):
    """Parameters of one dtype that the fused kernel takes together."""

    states: list[_State]
    learning_rate: float
    weight_decay: float


class CautiousAdam:
    """torch's fused Adam, whose step does nothing where the loss or the gradient is not finite.

    The decision is a tensor on the device that the fused kernel reads (``found_inf``, as automatic mixed
    precision does), so no step waits for it. Weight decay is decoupled (AdamW; with 0 it is Adam) and leaves
    alone the likelihood's own parameters, such as the one learned variance of a Gaussian: pulling it to 1
    regularises nothing. Those take ten times the learning rate.

    Parameters
    ----------
    model : nn.Module
    learning_rate, weight_decay : float
    """

    def __init__(self, model: nn.Module, *, learning_rate: float, weight_decay: float) -> None:
        self._states = list[_State]()
        groups = dict[tuple[bool, torch.dtype], _Group]()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                zero = torch.zeros_like(parameter)
                step = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state = _State(parameter, zero, zero.clone(), step)
                own = name.startswith("likelihood.")
                rates = (LIKELIHOOD_RATE * learning_rate, 0.0) if own else (learning_rate, weight_decay)
                groups.setdefault((own, parameter.dtype), _Group([], *rates)).states.append(state)
                self._states.append(state)
        self._groups = list(groups.values())
        self._numbers = dict[tuple[float, torch.dtype, torch.device], Tensor]()

    def step(self, loss: Tensor, *, maximize: bool = False) -> Tensor:
        """Differentiate and update.

        Parameters
        ----------
        loss : Tensor
            A scalar, to be minimised.
        maximize : bool
            It is to be maximised instead.

        Returns
        -------
        Tensor
            1 if the step was skipped, else 0: a float32 scalar on the device.
        """
        for state in self._states:
            state.parameter.grad = None
        # Beginning with -1 is a negation less, forward and backward, and with a number that is there already.
        loss.backward(self._number(-1.0 if maximize else 1.0, loss))
        with torch.no_grad():
            skipped = self._found_inf(loss.detach(), _gradients(self._states))
            counted = 1 - skipped
            for states, learning_rate, weight_decay in self._groups:
                used = [state for state in states if state.parameter.grad is not None]
                if not used:
                    continue
                steps = [state.step for state in used]
                # With alpha: without, torch reads the number from the device and adds that.
                torch._foreach_add_(steps, counted, alpha=1)
                # The kernel itself: on small networks `torch.optim` takes as long around it as it takes.
                torch._fused_adamw_(
                    [state.parameter for state in used],
                    _gradients(used),
                    [state.mean for state in used],
                    [state.square for state in used],
                    [],
                    steps,
                    found_inf=skipped,
                    amsgrad=False,
                    beta1=BETA1,
                    beta2=BETA2,
                    lr=learning_rate,
                    weight_decay=weight_decay,
                    eps=EPSILON,
                    maximize=False,
                )
        return skipped

    def _found_inf(self, loss: Tensor, gradients: list[Tensor]) -> Tensor:
        """1 if the loss or a gradient is not finite, else 0, a float32 scalar on the device."""
        tensors = [loss, *gradients]
        plain = all(t.layout is torch.strided and t.dtype is torch.float32 for t in tensors)
        if plain and loss.device.type in {"cpu", "cuda"}:
            found = torch.zeros((), dtype=torch.float32, device=loss.device)
            # What torch's GradScaler does, one operation for all of them; it multiplies them by 1.
            torch._amp_foreach_non_finite_check_and_unscale_(tensors, found, self._number(1.0, found))
            return found
        norm = nn.utils.get_total_norm(gradients)
        return (~(loss.isfinite() & norm.isfinite())).to(torch.float32)

    def _number(self, value: float, like: Tensor) -> Tensor:
        """A scalar of the dtype and device of another, made once and only read."""
        key = value, like.dtype, like.device
        if key not in self._numbers:
            self._numbers[key] = torch.full((), value, dtype=like.dtype, device=like.device)
        return self._numbers[key]


def _gradients(states: Sequence[_State]) -> list[Tensor]:
    return [gradient for state in states if (gradient := state.parameter.grad) is not None]
