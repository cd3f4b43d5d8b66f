"""Checks before any work: what was given, what was expected, how to get there."""

from __future__ import annotations

import operator
from typing import Any, SupportsIndex, cast

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.layout import OPMATH

DTYPES = "float32, float64, bfloat16 or float16"


def describe(value: object) -> str:
    """A short description of an argument for an error text."""
    if isinstance(value, Tensor) and value.is_nested:
        return f"a nested {value.dtype} tensor on {value.device}"
    if isinstance(value, Tensor):
        layout = "" if value.layout == torch.strided else f", layout {value.layout}"
        return f"a {value.dtype} tensor of shape {tuple(value.shape)} on {value.device}{layout}"
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def check_floating(function: str, **tensors: Any) -> None:
    """Raise unless every argument is a dense tensor of a supported dtype."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"{function}: {name} must be a torch tensor ({DTYPES}), got {describe(tensor)}; "
                f"torch.as_tensor({name}) makes one from an array or a list of numbers"
            )
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_nested:
            raise TypeError(
                f"{function}: {name} must be a dense tensor, got {describe(tensor)}; "
                f"{name}.to_dense() makes one from a sparse tensor, .to_padded_tensor(0.0) from a nested one"
            )
        if tensor.dtype not in OPMATH:
            raise TypeError(
                f"{function}: {name} must be {DTYPES}, got {describe(tensor)}; {name}.float() converts it"
            )


def promote(function: str, **tensors: Tensor) -> list[Tensor]:
    """Check that all tensors share a dtype and a device.

    Under autocast two floating dtypes meet as a matter of course (a linear layer gives bfloat16 where a
    hand-written head gives float32): there, as torch's own operations do, the wider one is taken.
    """
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.device != first.device:
            raise ValueError(
                f"{function}: {first_name} is on {first.device} and {name} on {tensor.device}; "
                f"move one of them with .to(device)"
            )
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if len(dtypes) == 1:
        return list(tensors.values())
    if torch.is_autocast_enabled(first.device.type):
        widest = first.dtype
        for dtype in dtypes:
            widest = torch.promote_types(widest, dtype)
        return [tensor.to(widest) for tensor in tensors.values()]
    given = ", ".join(f"{name} is {tensor.dtype}" for name, tensor in tensors.items())
    raise TypeError(f"{function}: all inputs must have one dtype, but {given}; convert one with .to(dtype)")


def check_latent(function: str, mu: Any, logvar: Any) -> tuple[Tensor, Tensor]:
    """The pair (mu, logvar), checked."""
    if not (
        isinstance(mu, Tensor)
        and isinstance(logvar, Tensor)
        and mu.dtype is logvar.dtype
        and mu.dtype in OPMATH
        and mu.device == logvar.device
        and mu.layout is torch.strided
        and logvar.layout is torch.strided
        and not (mu.is_nested or logvar.is_nested)
    ):
        check_floating(function, mu=mu, logvar=logvar)
        mu, logvar = promote(function, mu=mu, logvar=logvar)
    if mu.shape != logvar.shape:
        raise ValueError(
            f"{function}: mu and logvar must have the same shape, got {tuple(mu.shape)} and "
            f"{tuple(logvar.shape)}; expand one of them if a shared value is meant"
        )
    return mu, logvar


def check_event_dims(function: str, shape: torch.Size, event_dims: SupportsIndex) -> int:
    """The number of trailing axes that form one latent, checked against a shape."""
    if type(event_dims) is not int:
        event_dims = as_integer(function, "event_dims", event_dims)
    if event_dims == 1 and not shape:
        return 0  # a scalar is one row of one column
    if not 0 <= event_dims <= len(shape):
        raise ValueError(
            f"{function}: event_dims must lie between 0 and the number of axes, {len(shape)} for shape "
            f"{tuple(shape)}, got {event_dims}"
        )
    return event_dims


def check_index(function: str, name: str, value: SupportsIndex, limit: int) -> int:
    """A non-negative integer below ``limit``."""
    if type(value) is int and 0 <= value < limit:
        return value
    index = as_integer(function, name, value)
    if not 0 <= index < limit:
        raise ValueError(f"{function}: {name} must lie in [0, {limit}), got {value}")
    return index


def as_integer(function: str, name: str, value: SupportsIndex) -> int:
    """An int, or what can stand for one (a NumPy integer, a symbolic one); no bool."""
    # `operator.index` would fix the value of an int that a compiler keeps symbolic.
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        return cast("int", value)
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{function}: {name} must be an integer, got {describe(value)}")


def check_latent_arguments(
    function: str, mu: Tensor, logvar: Tensor, event_dims: int, draw: int = 0, row_offset: int = 0
) -> tuple[Tensor, Tensor, int, int, int]:
    """The latent and the numbers that every operation takes, checked."""
    if torch.compiler.is_compiling() or not _core.plain_latent(mu, logvar, event_dims, draw, row_offset):
        mu, logvar = check_latent(function, mu, logvar)
        event_dims = check_event_dims(function, mu.shape, event_dims)
        draw = check_index(function, "draw", draw, 2**32)
        row_offset = check_index(function, "row_offset", row_offset, 2**63)
    return mu, logvar, event_dims, draw, row_offset
