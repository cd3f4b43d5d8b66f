"""Linear layers by oneDNN, on processors of which torch's own matrix products leave half unused."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

__all__ = ["is_faster", "linear_layers"]

FEWEST_PRODUCTS = 8_000_000
"""Below this many products in a layer and a batch, what it takes to call oneDNN is more than it saves.

In a step, that is; in a loop of its own a layer gains from 3,000,000 on."""

ZEN_5 = 26
"""AMD's family of processors from which on vectors of 512 bits are computed in one piece."""


def is_faster() -> bool:
    """Whether torch has oneDNN, may use it, and multiplies by something slower on this processor.

    torch multiplies float32 matrices by MKL, which uses no AVX-512 on a processor of AMD's. Up to Zen 4 that
    makes no difference. The answer goes by the processor alone and not by a measurement, which would give
    other roundings in another run.
    """
    allowed = bool(torch.backends.mkldnn.enabled)
    return allowed and torch.backends.mkl.is_available() and _suits(_processor())


@contextmanager
def linear_layers(model: nn.Module) -> Iterator[None]:
    """Have the linear layers of a model computed by oneDNN, where gradients are recorded and it pays.

    Only once differentiable. What is not a contiguous float32 matrix, or is under autocast, is left to torch.

    Parameters
    ----------
    model : nn.Module
        On the CPU.
    """
    layers = [module for module in model.modules() if type(module) is nn.Linear]
    try:
        for layer in layers:
            vars(layer)["forward"] = functools.partial(_forward, layer)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _forward(layer: nn.Linear, x: Tensor) -> Tensor:
    weight, bias = layer.weight, layer.bias
    if (
        x.dim() == 2
        and x.is_contiguous()
        and x.dtype is weight.dtype is torch.float32
        and len(x) * weight.numel() >= FEWEST_PRODUCTS
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
    ):
        y: Tensor = _Linear.apply(x, weight, bias)
        return y
    return linear(x, weight, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(grad, weight.t()) if of_x else None,
            _product(grad.t(), x.t()) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias``, by the operator that torch.compile makes of a linear layer."""
    y: Tensor = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
    return y


@functools.cache
def _suits(processor: tuple[str, int]) -> bool:
    vendor, family = processor
    return vendor == "AuthenticAMD" and family >= ZEN_5 and _computes()


def _computes() -> bool:
    """Whether this torch's operator, which is not part of its documented interface, is what it was."""
    # Whatever the default dtype and device are: the answer is kept.
    numbers = torch.arange(22, dtype=torch.float32, device="cpu")
    x, weight, bias = numbers[:6].view(2, 3), numbers[6:18].view(4, 3), numbers[18:]
    try:
        return torch.equal(_product(x, weight, bias), linear(x, weight, bias))
    except (AttributeError, RuntimeError, TypeError):
        return False


@functools.cache
def _processor() -> tuple[str, int]:
    """Vendor and family, as far as the system says: of Linux and Windows; else nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = os.environ.get("PROCESSOR_IDENTIFIER", "")
    return _read(text)


def _read(text: str) -> tuple[str, int]:
    vendor = re.search(r"AuthenticAMD|GenuineIntel", text)
    family = re.search(r"family\s*:?\s*(\d+)", text, re.IGNORECASE)
    return (vendor[0] if vendor else "", int(family[1]) if family else 0)
