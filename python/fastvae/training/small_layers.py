"""Linear layers of small batches on CUDA, each with its ReLU in one kernel.

cuBLAS takes several kernels for a small layer in float32, each as long as starting it takes: a product in
parts, their sum, the bias; and the ReLU is one more. Here a layer is one kernel forward and one for each
gradient, as long as it is small; from there on torch's are faster. What is chosen goes by the shape alone, as
the order of the sums does, so they have the same bits each time.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

from fastvae.ops.cuda import cdiv, compiles_for, has_triton, kernels, launch, next_power_of_two

__all__ = ["MOST_PRODUCTS", "forward", "of_input", "of_weight"]

MOST_PRODUCTS = {"forward": 30_000_000, "of_input": 8_000_000, "of_weight": 40_000_000}
"""Samples times weights of a layer up to which the kernels are faster."""

MOST_ROWS = 128
"""Samples that are one tile in the gradient of a weight."""

FEWEST_ROWS = 16
"""Of a tile that Triton multiplies."""

LONGEST = 1024
"""Terms of a sum that a program reads together."""

MOST_TERMS = 4 * LONGEST
"""Of a sum: one program adds up all of them, where cuBLAS has several."""

WIDEST = 4
"""Numbers that a thread reads together."""

MANY = 512
"""Programs of four samples and four outputs; where there are more, they have eight."""

FEW_OUTPUTS = 512
"""For fewer columns than this cuBLAS adds a bias in four operations, as part of a product in parts."""


def forward(x: Tensor, weight: Tensor, bias: Tensor, *, relu: bool) -> Tensor:
    """``x W^T + b``, ``(B, outputs)``, and of that what is positive, or 0, with ``relu``.

    Parameters
    ----------
    x, weight, bias : Tensor
        float32, ``(B, inputs)``, ``(outputs, inputs)`` and ``(outputs,)``, on one device.
    relu : bool
    """
    if not _takes("forward", x, weight, terms=weight.shape[1]):
        y = _product_and_sum(x, weight, bias)
        return y.relu_() if relu else y
    rows, (outputs, inputs) = len(x), weight.shape
    y = x.new_empty(rows, outputs)
    tile = min(next_power_of_two(inputs), LONGEST)
    width, warps = (8, 2) if cdiv(rows, 4) * cdiv(outputs, 4) > MANY else (4, 4)
    launch(
        kernels("linear").forward,
        (cdiv(rows, 4) * cdiv(outputs, width),),
        x,
        weight,
        bias.contiguous(),
        y,
        rows,
        inputs // _aligned(inputs),
        outputs,
        WIDTH=_aligned(inputs),
        RELU=relu,
        STEPS=cdiv(inputs, tile),
        ROWS=4,
        OUTPUTS=width,
        INPUTS=tile,
        num_warps=warps,
    )
    return y


def of_input(grad: Tensor, y: Tensor | None, weight: Tensor) -> Tensor:
    """The gradient of the input, ``(B, inputs)``; ``y`` is what a layer with a ReLU gave."""
    if not _takes("of_input", grad, weight, terms=len(weight)):
        return torch.mm(_before_relu(grad, y), weight)
    rows, (outputs, inputs) = len(grad), weight.shape
    grad_x = grad.new_empty(rows, inputs)
    tile = min(next_power_of_two(outputs), LONGEST)
    launch(
        kernels("linear").of_input,
        (cdiv(rows, 4) * cdiv(inputs, 8),),
        grad,
        grad if y is None else y,
        weight,
        grad_x,
        rows,
        inputs // _aligned(inputs),
        outputs,
        WIDTH=_aligned(inputs),
        RELU=y is not None,
        STEPS=cdiv(outputs, tile),
        ROWS=4,
        OUTPUTS=tile,
        INPUTS=8,
    )
    return grad_x


def of_weight(grad: Tensor, y: Tensor | None, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the weight and of the bias, likewise."""
    if len(x) > MOST_ROWS or not x.is_contiguous() or not _takes("of_weight", grad, weight, terms=len(x)):
        grad = _before_relu(grad, y)
        return torch.mm(grad.t(), x), grad.sum(0)
    rows, (outputs, inputs) = len(x), weight.shape
    grad_weight, grad_bias = grad.new_empty(outputs, inputs), grad.new_empty(outputs)
    launch(
        kernels("linear").of_weight,
        (cdiv(outputs, 16) * cdiv(inputs, 32),),
        grad,
        grad if y is None else y,
        x,
        grad_weight,
        grad_bias,
        rows,
        inputs // _aligned(inputs),
        outputs,
        WIDTH=_aligned(inputs),
        RELU=y is not None,
        ROWS=max(next_power_of_two(rows), FEWEST_ROWS),
        OUTPUTS=16,
        INPUTS=32,
    )
    return grad_weight, grad_bias


def _takes(what: str, rows: Tensor, weight: Tensor, *, terms: int) -> bool:
    """Whether the kernel of that name is there and the faster way, with a row of ``rows`` for each sample."""
    return _is_small(what, rows, weight, terms) and _has_kernels(rows.device)


def _is_small(what: str, rows: Tensor, weight: Tensor, terms: int) -> bool:
    return (
        0 < len(rows) * weight.numel() <= MOST_PRODUCTS[what]
        and terms <= MOST_TERMS
        and rows.is_contiguous()
        and weight.is_contiguous()
    )


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and has_triton() and compiles_for(device.index)


def _product_and_sum(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer; of few columns as two operations.

    In float32 cuBLAS computes a small product with a bias by splitting it up: the parts, their sum and two
    operations that prepare them take longer than the product alone and a sum.
    """
    return torch.mm(x, weight.t()).add_(bias) if len(weight) < FEW_OUTPUTS else linear(x, weight, bias)


def _before_relu(grad: Tensor, y: Tensor | None) -> Tensor:
    """The gradient of what a ReLU, if there is one, was given."""
    return grad if y is None else torch.ops.aten.threshold_backward.default(grad, y, 0)


def _aligned(inputs: int) -> int:
    """How many neighbours in a row a thread can read together: rows begin where that divides."""
    return next(width for width in (WIDEST, 2, 1) if inputs % width == 0)
