"""Adam on CUDA in two launches, for steps that take as long as their launches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvae.ops.cuda import cdiv, compiles_for, has_triton, kernels, launch, next_power_of_two, on
from fastvae.ops.layout import address
from fastvae.training.averages import Averages, flat_averages

__all__ = ["FusedAdam", "are_apart", "check_gradient", "flat", "is_plain", "plain_output", "takes"]

CHUNK = 1024
"""Elements that a program takes: eight for each of its threads."""

MOST_TENSORS = 64
"""What one launch takes: whether each has a gradient goes by a bit of one number."""

MOST_FLAGS = 1024
"""Programs that look for what is not finite, about as many as run at a time; each of those that update reads
what all of them found."""

FEWEST_FLAGS = 32
"""Of a launch, however many there are."""

ALIGNMENT = 16
"""Bytes that a thread reads together."""


def takes(parameters: Sequence[Tensor]) -> bool:
    """Whether :class:`FusedAdam` can train these: plain float32 on one CUDA device, with Triton there.

    Each has memory of its own: programs that update the same numbers would do so in any order.
    """
    if not parameters or not has_triton():
        return False
    device = parameters[0].device
    return (
        device.type == "cuda"
        and all(is_plain(parameter, device) for parameter in parameters)
        and any(parameter.numel() for parameter in parameters)
        and are_apart(parameters)
        and compiles_for(device.index)
    )


def are_apart(tensors: Sequence[Tensor]) -> bool:
    """Whether no two contiguous tensors share memory."""
    spans = sorted((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.numel())
    return all(end <= start for (_, end), (start, _) in pairwise(spans))


def is_plain(tensor: Tensor, device: torch.device) -> bool:
    """Whether a tensor is contiguous float32 numbers on the device."""
    return (
        tensor.dtype is torch.float32
        and tensor.layout is torch.strided
        and tensor.device == device
        and tensor.is_contiguous()
    )


class _Pack(NamedTuple):
    """The tensors of one launch, and what Adam keeps of them."""

    members: list[int]
    """Their numbers among all parameters."""
    chunk_table: Tensor
    """A column for each chunk, see ``ops/triton/adam.py``."""
    counts: Tensor
    factors: Tensor
    means: Tensor
    squares: Tensor
    flags: Tensor
    """Of this launch's programs."""
    steps: int
    """Chunks that one of them looks at."""


class FusedAdam:
    """AdamW whose step does nothing where an output or a gradient is not finite, in Triton.

    The first launch looks at every number, the second updates. With more than 64 tensors there are several of
    each, and all look before one updates. Nothing is added up across elements, so a step has the same bits
    however it is launched. It can be captured: what it counts is counted on the device.

    Parameters
    ----------
    parameters : sequence of Tensor
        float32, contiguous, on one device. They are updated in place and have to stay that way.
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
        self._parameters = list(parameters)
        self._sizes = [parameter.numel() for parameter in parameters]
        self._device = parameters[0].device
        # Rounded by Triton itself they would be so in the averages only.
        beta1, beta2 = torch.tensor([beta1, beta2], dtype=torch.float32, device="cpu").tolist()
        self._constants: dict[str, Any] = {
            "BETA1": beta1,
            "BETA2": beta2,
            "SLOTS": MOST_TENSORS,
            "CHUNK": CHUNK,
        }
        self._eps = eps

        some = [number for number, size in enumerate(self._sizes) if size]
        packs = [some[start : start + MOST_TENSORS] for start in range(0, len(some), MOST_TENSORS)]
        most = max(MOST_FLAGS // len(packs), FEWEST_FLAGS)
        cuts = [self._cut(members, most) for members in packs]
        flags = sum(programs for _, programs, _ in cuts)
        # What no program writes stays 0.
        self._flags = torch.zeros(next_power_of_two(flags), dtype=torch.int8, device=self._device)
        self._packs = list[_Pack]()
        at = 0
        for members, (chunk_table, programs, steps) in zip(packs, cuts, strict=True):
            counts = torch.ones(6, MOST_TENSORS, dtype=torch.float64, device="cpu")
            for slot, number in enumerate(members):
                learning_rate, weight_decay = rates[number]
                counts[4, slot], counts[5, slot] = learning_rate, learning_rate * weight_decay
            means, squares = torch.zeros(
                2, chunk_table.shape[1] * CHUNK, dtype=torch.float32, device=self._device
            )
            self._packs.append(
                _Pack(
                    members=members,
                    chunk_table=chunk_table.to(self._device),
                    counts=counts.to(self._device),
                    factors=torch.zeros(3, MOST_TENSORS, dtype=torch.float32, device=self._device),
                    means=means,
                    squares=squares,
                    flags=self._flags[at : at + programs],
                    steps=steps,
                )
            )
            at += programs

    def _cut(self, members: Sequence[int], most: int) -> tuple[Tensor, int, int]:
        """The table of the chunks, the flags that looking at them takes, and the chunks of each program."""
        sizes = torch.tensor([self._sizes[number] for number in members], device="cpu")
        chunks = -(-sizes // CHUNK)
        owner = torch.arange(len(members), device="cpu").repeat_interleave(chunks)
        number = torch.arange(len(owner), device="cpu") - (chunks.cumsum(0) - chunks)[owner]
        count = (sizes[owner] - number * CHUNK).clamp(max=CHUNK)
        steps = cdiv(len(owner), most - 1)
        # And one for the outputs.
        return torch.stack((owner, number, count)).to(torch.int32), cdiv(len(owner), steps) + 1, steps

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
            1 if the step was skipped, else 0: a float32 scalar on the device.
        """
        for parameter, size in zip(self._parameters, self._sizes, strict=True):
            _check_parameter(parameter, size, self._device)
        first, second = self._outputs(outputs)
        skipped = torch.empty((), dtype=torch.float32, device=self._device)
        # A copy has to live until its kernel is launched; the allocator keeps the order from there.
        packed = [self._packed(pack, gradients) for pack in self._packs]
        module = kernels("adam")
        with on(self._device) if self._device.type == "cuda" else nullcontext():
            for number, (pack, (_, there, present)) in enumerate(zip(self._packs, packed, strict=True)):
                launch(
                    module.check,
                    (len(pack.flags) + 1,),
                    there,
                    first,
                    second,
                    pack.chunk_table,
                    pack.counts,
                    pack.factors,
                    pack.flags,
                    0 if number else first.numel(),
                    0 if number else second.numel(),
                    pack.chunk_table.shape[1],
                    present,
                    pack.steps,
                    EPS=self._eps,
                    **self._constants,
                )
            for pack, (trained, there, present) in zip(self._packs, packed, strict=True):
                launch(
                    module.update,
                    (pack.chunk_table.shape[1],),
                    trained,
                    there,
                    pack.means,
                    pack.squares,
                    pack.chunk_table,
                    pack.counts,
                    pack.factors,
                    self._flags,
                    skipped,
                    pack.chunk_table.shape[1],
                    present,
                    FLAGS=len(self._flags),
                    **self._constants,
                )
        # As any operation does that writes to them: a backward that kept the old values has to fail.
        torch.autograd.graph.increment_version(
            [p for p, gradient in zip(self._parameters, gradients, strict=True) if gradient is not None]
        )
        return skipped

    def averages(self) -> list[Averages]:
        """Copy what is kept of each parameter, as numbers one after the other."""
        kept = [flat_averages(size) for size in self._sizes]
        for slot, pack, number, part in self._parts():
            kept[number].mean.copy_(pack.means[part])
            kept[number].square.copy_(pack.squares[part])
            kept[number].powers.copy_(pack.counts[:2, slot])
        return kept

    def restore(self, kept: Sequence[Averages]) -> None:
        """Go on from what was kept of each parameter."""
        for slot, pack, number, part in self._parts():
            pack.means[part] = kept[number].mean.flatten().to(self._device)
            pack.squares[part] = kept[number].square.flatten().to(self._device)
            pack.counts[:2, slot] = kept[number].powers.to(self._device)

    def _parts(self) -> Iterator[tuple[int, _Pack, int, slice]]:
        """For each parameter its slot, its pack, its number, and where its averages are in the pack's."""
        for pack in self._packs:
            start = 0
            for slot, number in enumerate(pack.members):
                yield slot, pack, number, slice(start, start + self._sizes[number])
                start += cdiv(self._sizes[number], CHUNK) * CHUNK

    def _packed(
        self, pack: _Pack, gradients: Sequence[Tensor | None]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...], int]:
        """The parameters and the gradients of a launch, and a bit for each that there is."""
        parameters = tuple(self._parameters[number] for number in pack.members)
        there, present = list[Tensor](), 0
        for slot, (number, parameter) in enumerate(zip(pack.members, parameters, strict=True)):
            gradient = gradients[number]
            if gradient is None:
                there.append(parameter)
                continue
            gradient = flat(gradient)
            check_gradient(gradient, parameter)
            # Kernels are compiled for what is aligned: gradients always are, and need no other ones.
            there.append(gradient.clone() if address(gradient) % ALIGNMENT else gradient)
            present |= 1 << slot
        # As Triton reads it: a number with a sign.
        return parameters, tuple(there), present - 2**64 if present >= 2**63 else present

    def _outputs(self, outputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """The outputs as two tensors, as there nearly always are."""
        plain = [plain_output(output) for output in outputs]
        if len(plain) > 2:
            plain = [plain[0], torch.cat([output.flatten() for output in plain[1:]])]
        first, second = plain[0], plain[1] if len(plain) == 2 else plain[0].new_empty(0)
        for output in (first, second):
            address(output)
        return first, second


def _check_parameter(parameter: Tensor, size: int, device: torch.device) -> None:
    """Refuse a parameter that is no longer what a training began with."""
    if not is_plain(parameter, device) or parameter.numel() != size:
        raise ValueError(
            f"a parameter that is trained became {parameter.dtype} of {tuple(parameter.shape)} on "
            f"{parameter.device}: it must stay {size} contiguous float32 numbers on {device}"
        )


def check_gradient(gradient: Tensor, parameter: Tensor) -> None:
    """Refuse a gradient that is not its parameter's."""
    if gradient.numel() != parameter.numel() or gradient.device != parameter.device:
        raise ValueError(
            f"a gradient has shape {tuple(gradient.shape)} on {gradient.device}, its parameter "
            f"{tuple(parameter.shape)} on {parameter.device}"
        )


def flat(tensor: Tensor) -> Tensor:
    """The tensor as float32 numbers one after the other; itself where it is that already."""
    tensor = tensor.detach()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    return tensor.as_subclass(Tensor).resolve_neg().to(torch.float32).contiguous()


def plain_output(output: Tensor) -> Tensor:
    """An output in float32, or what is not finite where it is not: large numbers of float64 are finite."""
    return flat(output.detach() * 0 if output.dtype is torch.float64 else output)
