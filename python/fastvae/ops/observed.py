"""The data of a likelihood: bytes, zeros and ones, or floats, shared by all samples of the code.

A target has the trailing axes of the parameters it is measured against; the leading ones (importance samples)
it does without. Nothing here repeats it along them.
"""

from __future__ import annotations

import math
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from fastvae.ops.layout import OPMATH, address, as_rows, dense
from fastvae.ops.validation import as_integer, check_floating, describe

LARGEST_BYTE = 255


def check_target(
    function: str,
    target: Any,
    target_max: SupportsIndex | None,
    parameters_name: str,
    parameters: Tensor,
    event_dims: int,
) -> tuple[Tensor, int]:
    """A target as the operators take it (uint8, bool or of the arithmetic's dtype), and what stands for 1.

    Raises
    ------
    TypeError
        If it is no dense tensor of uint8, bool or a floating dtype.
    ValueError
        If its shape is not that of the parameters' trailing axes, or ``target_max`` does not fit its dtype.
    """
    if not isinstance(target, Tensor) or target.dtype not in {torch.uint8, torch.bool, *OPMATH}:
        raise TypeError(
            f"{function}: target must be a uint8, bool or floating-point tensor, got {describe(target)}; "
            + (
                "target.float() converts it"
                if isinstance(target, Tensor)
                else "torch.as_tensor(target) makes one"
            )
        )
    if target.layout is not torch.strided or target.is_nested:
        check_floating(function, target=target)
    if target.device != parameters.device:
        raise ValueError(
            f"{function}: {parameters_name} is on {parameters.device} and target on {target.device}; "
            f"move one of them with .to(device)"
        )
    leading = parameters.dim() - target.dim()
    if target.dim() < event_dims or leading < 0 or target.shape != parameters.shape[leading:]:
        raise ValueError(
            f"{function}: target must have the trailing axes of {parameters_name}, at least the event's "
            f"{event_dims}: {parameters_name} has shape {tuple(parameters.shape)} and target "
            f"{tuple(target.shape)}"
        )
    if target.dtype is torch.uint8:
        return target, _byte_max(function, target_max)
    if target_max is not None and as_integer(function, "target_max", target_max) != 1:
        raise ValueError(
            f"{function}: target_max is for uint8 targets; values of {target.dtype} are taken as they are, "
            f"got target_max={target_max}"
        )
    if target.dtype is not torch.bool:
        target = target.to(OPMATH[parameters.dtype])
    return target, 1


def _byte_max(function: str, target_max: SupportsIndex | None) -> int:
    if target_max is None:
        raise ValueError(
            f"{function}: a uint8 target needs target_max, the byte that stands for 1: target_max=255 for "
            "pixels, target_max=1 for zeros and ones"
        )
    largest = as_integer(function, "target_max", target_max)
    if not 1 <= largest <= LARGEST_BYTE:
        raise ValueError(f"{function}: target_max must lie between 1 and {LARGEST_BYTE}, got {target_max}")
    return largest


def empty_log_prob(parameters: Tensor, event_dims: int) -> Tensor:
    """An uninitialised log-probability: float32, or float64 for float64."""
    shape = parameters.shape[: parameters.dim() - event_dims]
    return torch.empty(shape, dtype=OPMATH[parameters.dtype], device=parameters.device)


def sum_to_target(grad: Tensor, target: Tensor) -> Tensor:
    """The gradient of a target from that of the values it was repeated to."""
    leading = grad.dim() - target.dim()
    return grad.sum(dim=tuple(range(leading))) if leading else grad


def spread(grad: Tensor, event_dims: int) -> Tensor:
    """The gradient of a log-probability, to be broadcast to the elements it is a sum of."""
    if not torch.compiler.is_compiling():
        grad = dense(grad)  # a compiler cannot ask for the layout, and makes no sparse gradients
    return grad.reshape((*grad.shape, *(1,) * event_dims))


def sum_event(terms: Tensor, event_dims: int) -> Tensor:
    """The log-probability of an event from that of its elements."""
    if not event_dims:
        return terms.contiguous()
    return terms.sum(dim=tuple(range(terms.dim() - event_dims, terms.dim())))


def target_matrix(
    target: Tensor, target_max: int, parameters: Tensor, event_dims: int
) -> tuple[Tensor, int, int]:
    """A target of the device of the parameters as rows of bytes or floats, their distance and their number.

    Whoever calls an operator directly gets here unchecked.
    """
    leading = parameters.dim() - target.dim()
    opmath = OPMATH[parameters.dtype]
    if (
        target.dtype not in {torch.uint8, torch.bool, opmath}
        or target.device != parameters.device
        or leading < 0
        or target.dim() < event_dims
        or target.shape != parameters.shape[leading:]
    ):
        raise ValueError(
            f"target must be a uint8, bool or {opmath} tensor with the trailing axes of "
            f"{tuple(parameters.shape)} on {'the CPU' if parameters.is_cpu else parameters.device}, got "
            f"{target.dtype} of {tuple(target.shape)} on {target.device}"
        )
    if not 1 <= target_max <= LARGEST_BYTE or (target_max != 1 and target.dtype is not torch.uint8):
        raise ValueError(f"target_max={target_max} does not fit a target of {target.dtype}")
    while target.dim() > event_dims and target.stride(0) == 0:
        target = target[0]  # an expanded axis says what leaving it out says
    if target.dtype is torch.bool:
        target = target.view(torch.uint8)
    rows = math.prod(target.shape[: target.dim() - event_dims])
    target, step = as_rows(target, event_dims)
    address(target)  # raises where the storage does not reach that far
    return target, step, rows


def target_rows(
    target: Tensor, target_max: int, parameters: Tensor, event_dims: int
) -> tuple[Tensor, tuple[int, int, int, int]]:
    """A target as rows, with the (address, row stride, rows, byte that stands for 1) that the kernels take.

    The last is 0 for floats.
    """
    target, step, rows = target_matrix(target, target_max, parameters, event_dims)
    return target, (target.data_ptr(), step, rows, 0 if target.is_floating_point() else target_max)


def event_rows(parameters: Tensor, target: Tensor, event_dims: int) -> tuple[int, str]:
    """How many trailing axes form a row of the kernels, and their reduction.

    A sum has a row per event. One value per element may have rows of any length: those that the target spans
    where memory allows, since a row of one column would leave fifteen lanes of sixteen idle.
    """
    if event_dims:
        return event_dims, "sample"
    whole = parameters.is_contiguous() and target.is_contiguous()
    return (target.dim() if whole else min(target.dim(), 1)), "none"
