"""Adam in few kernels, with steps that can be called off on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import compress
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fastvae.training import fused_adam, native_adam
from fastvae.training.averages import Averages
from fastvae.training.ranks import ALONE, Ranks
from fastvae.training.shared_gradients import SharedGradients

__all__ = ["CautiousAdam"]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8

LIKELIHOOD_RATE = 10
"""The likelihood's own parameters move this much faster than weights: Adam moves a parameter by about its
learning rate a step, and a log-variance has a long way to go from 0."""

MANY = 2**20
"""Steps after which beta2^t is 0 in float64."""


class _Group(NamedTuple):
    """Parameters of one dtype that the fused kernel takes together, and what Adam keeps of each."""

    names: list[str]
    parameters: list[Tensor]
    means: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]
    learning_rate: float
    weight_decay: float

    def used(self, gradients: Sequence[Tensor | None]) -> _Group:
        """Those that have a gradient; nearly always all of them."""
        if all(gradient is not None for gradient in gradients):
            return self
        have = [gradient is not None for gradient in gradients]
        return self._replace(
            names=list(compress(self.names, have)),
            parameters=list(compress(self.parameters, have)),
            means=list(compress(self.means, have)),
            squares=list(compress(self.squares, have)),
            steps=list(compress(self.steps, have)),
        )

    def averages(self) -> Iterator[tuple[str, Averages]]:
        """Copy what is kept of each parameter, with its name."""
        for name, mean, square, steps in zip(self.names, self.means, self.squares, self.steps, strict=True):
            powers = [beta ** float(steps) for beta in (BETA1, BETA2)]
            yield (
                name,
                Averages(
                    mean.to("cpu", copy=True, memory_format=torch.contiguous_format),
                    square.to("cpu", copy=True, memory_format=torch.contiguous_format),
                    torch.tensor(powers, dtype=torch.float64, device="cpu"),
                ),
            )

    def restore(self, kept: Mapping[str, Averages]) -> None:
        """Go on from what was kept of each parameter."""
        for name, mean, square, steps in zip(self.names, self.means, self.squares, self.steps, strict=True):
            mean.copy_(kept[name].mean)
            square.copy_(kept[name].square)
            power = float(kept[name].powers[1])
            steps.fill_(round(math.log(power) / math.log(BETA2)) if power else MANY)


class CautiousAdam:
    """Adam, whose step does nothing where a term of the loss or a gradient is not finite.

    The decision is a number on the device, which the kernel that updates reads, so no step waits for it. The
    kernels are those of :class:`~fastvae.training.native_adam.NativeAdam` (on the CPU) or
    :class:`~fastvae.training.fused_adam.FusedAdam` (on CUDA) where one takes the parameters, else torch's own
    (there it is ``found_inf``, as in automatic mixed precision). Weight decay is
    decoupled (AdamW; with 0 it is Adam) and leaves alone the likelihood's own parameters, such as the one
    learned variance of a Gaussian: pulling it to 1 regularises nothing. Those take ten times the learning
    rate.

    Parameters
    ----------
    model : nn.Module
    learning_rate, weight_decay : float
    ranks : Ranks
        The processes whose gradients are added up before an update, which is the same in all then.

    Attributes
    ----------
    shared : SharedGradients, optional
        Adds up the gradients of several processes.
    """

    def __init__(
        self, model: nn.Module, *, learning_rate: float, weight_decay: float, ranks: Ranks = ALONE
    ) -> None:
        self._parameters, rates = list[Tensor](), list[tuple[float, float]]()
        self._names = list[str]()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                own = name.startswith("likelihood.")
                self._parameters.append(parameter)
                self._names.append(name)
                rates.append((LIKELIHOOD_RATE * learning_rate, 0.0) if own else (learning_rate, weight_decay))
        self.shared = SharedGradients(ranks, self._parameters) if ranks.size > 1 else None
        self._own = _own(self._parameters, rates)
        self._groups = [] if self._own else _groups(self._names, self._parameters, rates)
        self._numbers = dict[tuple[float, torch.dtype, torch.device], Tensor]()

    def step(
        self,
        outputs: Sequence[Tensor],
        slopes: Sequence[Tensor] | None = None,
        before_update: Callable[[], None] | None = None,
    ) -> Tensor:
        """Differentiate and update.

        Parameters
        ----------
        outputs : sequence of Tensor
            What the loss is a function of, or the loss itself, a scalar. It is to be minimised. At least one
            requires grad; a process that has no share of a batch has none.
        slopes : sequence of Tensor, optional
            The derivative of the loss with respect to each output. Without, their sum is the loss.
        before_update : callable, optional
            Called when there are gradients.

        Returns
        -------
        Tensor
            1 if the step was skipped, else 0: a float32 scalar on the device.
        """
        for parameter in self._parameters:
            parameter.grad = None
        roots = [output.requires_grad for output in outputs]
        if outputs:
            # In this thread: for a device autograd has its own, and waking that takes longer than a layer.
            with torch.autograd.set_multithreading_enabled(False):
                torch.autograd.backward(
                    list(compress(outputs, roots)), None if slopes is None else list(compress(slopes, roots))
                )
        if before_update is not None:
            before_update()
        with torch.no_grad():
            if self.shared is not None:
                finite, gradients = self.shared.add_up(outputs, [each.grad for each in self._parameters])
                for parameter, gradient in zip(self._parameters, gradients, strict=True):
                    parameter.grad = gradient
                outputs = [finite]
            if self._own is not None:
                return self._own.step(outputs, [parameter.grad for parameter in self._parameters])
            return self._update_by_torch(outputs)

    @property
    def native(self) -> native_adam.NativeAdam | None:
        """The kernels on the CPU, where they take the parameters: who has gradients calls them."""
        return self._own if isinstance(self._own, native_adam.NativeAdam) else None

    def averages(self) -> dict[str, Averages]:
        """Copy what is kept of each parameter that is trained, by its name."""
        if self._own is None:
            return {name: kept for group in self._groups for name, kept in group.averages()}
        kept = zip(self._names, self._parameters, self._own.averages(), strict=True)
        return {
            name: Averages(mean.view(parameter.shape), square.view(parameter.shape), powers)
            for name, parameter, (mean, square, powers) in kept
        }

    def restore(self, kept: Mapping[str, Averages]) -> None:
        """Go on from what :meth:`averages` gave of these parameters, on any device."""
        if self._own is None:
            for group in self._groups:
                group.restore(kept)
        else:
            self._own.restore([kept[name] for name in self._names])

    def _update_by_torch(self, outputs: Sequence[Tensor]) -> Tensor:
        """Update by the gradients that parameters have."""
        gradients = [[parameter.grad for parameter in group.parameters] for group in self._groups]
        there = [gradient for of_group in gradients for gradient in of_group if gradient is not None]
        skipped = self._found_inf([_plain(output) for output in outputs], there)
        counted = 1 - skipped
        for group, of_group in zip(self._groups, gradients, strict=True):
            used = group.used(of_group)
            if not used.parameters:
                continue
            # With alpha: without, torch reads the number from the device and adds that.
            torch._foreach_add_(used.steps, counted, alpha=1)
            # The kernel itself: on small networks `torch.optim` takes as long around it as it takes.
            torch._fused_adamw_(
                used.parameters,
                [gradient for gradient in of_group if gradient is not None],
                used.means,
                used.squares,
                [],
                used.steps,
                found_inf=skipped,
                amsgrad=False,
                beta1=BETA1,
                beta2=BETA2,
                lr=used.learning_rate,
                weight_decay=used.weight_decay,
                eps=EPSILON,
                maximize=False,
            )
        return skipped

    def _found_inf(self, outputs: list[Tensor], gradients: list[Tensor]) -> Tensor:
        """1 if an output or a gradient is not finite, else 0, a float32 scalar on the device."""
        tensors = outputs + gradients
        device = tensors[0].device
        plain = all(t.dtype is torch.float32 and t.layout is torch.strided for t in tensors)
        if plain and device.type in {"cpu", "cuda"}:
            found = torch.zeros((), dtype=torch.float32, device=device)
            # What torch's GradScaler does, one operation for all of them; it multiplies them by 1.
            torch._amp_foreach_non_finite_check_and_unscale_(tensors, found, self._number(1.0, found))
            return found
        finite = nn.utils.get_total_norm(gradients).isfinite()
        for output in outputs:
            finite = finite & output.isfinite().all()
        return (~finite).to(torch.float32)

    def _number(self, value: float, like: Tensor) -> Tensor:
        """A scalar of the dtype and device of another, made once and only read."""
        key = value, like.dtype, like.device
        if key not in self._numbers:
            self._numbers[key] = torch.full((), value, dtype=like.dtype, device=like.device)
        return self._numbers[key]


def _own(
    parameters: Sequence[Tensor], rates: Sequence[tuple[float, float]]
) -> fused_adam.FusedAdam | native_adam.NativeAdam | None:
    """The kernels of fastvae that take the parameters, if any do."""
    constants = {"beta1": BETA1, "beta2": BETA2, "eps": EPSILON}
    if fused_adam.takes(parameters):
        return fused_adam.FusedAdam(parameters, rates, **constants)
    if native_adam.takes(parameters):
        return native_adam.NativeAdam(parameters, rates, **constants)
    return None


def _groups(
    names: Sequence[str], parameters: Sequence[Tensor], rates: Sequence[tuple[float, float]]
) -> list[_Group]:
    """The parameters by what the fused kernel takes together, at the beginning of a training."""
    groups = dict[tuple[float, float, torch.dtype], _Group]()
    for name, parameter, (learning_rate, weight_decay) in zip(names, parameters, rates, strict=True):
        key = learning_rate, weight_decay, parameter.dtype
        group = groups.setdefault(key, _Group([], [], [], [], [], learning_rate, weight_decay))
        group.names.append(name)
        group.parameters.append(parameter)
        group.means.append(torch.zeros_like(parameter))
        group.squares.append(torch.zeros_like(parameter))
        group.steps.append(torch.zeros((), dtype=torch.float32, device=parameter.device))
    return list(groups.values())


def _plain(output: Tensor) -> Tensor:
    """An output in a form that may be looked at with the gradients: which writes the same numbers back."""
    half = output.dtype in {torch.bfloat16, torch.float16}
    return output.detach().to(torch.float32 if half else output.dtype).contiguous()
