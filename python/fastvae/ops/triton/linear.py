"""Linear layers of a few samples in Triton, with the ReLU behind them.

Such a layer has so little arithmetic that what takes its time is starting, and reading one thing after the
other. So every program reads all of its operands at once and has a small part of the result, and what comes
before or after the product is part of the same kernel. All matrices are contiguous float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["forward", "of_input", "of_weight"]


@triton.jit
def rectified(x):
    """``x``, or 0 where it is negative; NaN stays."""
    return tl.where(x <= 0, 0.0, x)


@triton.jit
def gradients(grad, y, at, inside, RELU: tl.constexpr):
    """What arrives at a layer: nothing where its ReLU gave 0."""
    g = tl.load(grad + at, mask=inside, other=0.0)
    if RELU:
        g = tl.where(tl.load(y + at, mask=inside, other=0.0) <= 0, 0.0, g)
    return g


@triton.jit(do_not_specialize=["rows", "inputs", "outputs"])
def forward(
    x,
    weight,
    bias,
    y,
    rows,
    inputs,
    outputs,
    WIDTH: tl.constexpr,
    RELU: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """y = x W^T + b, of ``inputs`` times ``WIDTH`` inputs: so many lie together, and are read together."""
    step = inputs * WIDTH
    across = tl.cdiv(outputs, OUTPUTS)
    row = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(0) % across * OUTPUTS + tl.arange(0, OUTPUTS)
    b = tl.load(bias + output, mask=output < outputs, other=0.0)
    sums = tl.broadcast_to(b[None, :], [ROWS, OUTPUTS])
    for part in range(STEPS):
        i = part * INPUTS + tl.arange(0, INPUTS)[None, None, :]
        w = tl.load(
            weight + output[None, :, None] * step + i,
            mask=(output < outputs)[None, :, None] & (i < step),
            other=0.0,
        )
        a = tl.load(
            x + row[:, None, None] * step + i, mask=(row < rows)[:, None, None] & (i < step), other=0.0
        )
        sums += tl.sum(a * w, 2)
    if RELU:
        sums = rectified(sums)
    inside = (row < rows)[:, None] & (output < outputs)[None, :]
    tl.store(y + row[:, None] * outputs + output[None, :], sums, mask=inside)


@triton.jit(do_not_specialize=["rows", "inputs", "outputs"])
def of_input(
    grad,
    y,
    weight,
    grad_x,
    rows,
    inputs,
    outputs,
    WIDTH: tl.constexpr,
    RELU: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """The gradient of the input, (grad W), where ``grad`` is past the ReLU."""
    step = inputs * WIDTH
    across = tl.cdiv(step, INPUTS)
    row = tl.program_id(0) // across * ROWS + tl.arange(0, ROWS)
    i = tl.program_id(0) % across * INPUTS + tl.arange(0, INPUTS)
    sums = tl.zeros([ROWS, INPUTS], tl.float32)
    for part in range(STEPS):
        output = part * OUTPUTS + tl.arange(0, OUTPUTS)[None, :, None]
        w = tl.load(
            weight + output * step + i[None, None, :],
            mask=(output < outputs) & (i < step)[None, None, :],
            other=0.0,
        )
        inside = (row < rows)[:, None, None] & (output < outputs)
        sums += tl.sum(gradients(grad, y, row[:, None, None] * outputs + output, inside, RELU) * w, 1)
    inside = (row < rows)[:, None] & (i < step)[None, :]
    tl.store(grad_x + row[:, None] * step + i[None, :], sums, mask=inside)


@triton.jit(do_not_specialize=["rows", "inputs", "outputs"])
def of_weight(
    grad,
    y,
    x,
    grad_weight,
    grad_bias,
    rows,
    inputs,
    outputs,
    WIDTH: tl.constexpr,
    RELU: tl.constexpr,
    ROWS: tl.constexpr,
    OUTPUTS: tl.constexpr,
    INPUTS: tl.constexpr,
):
    """The gradients of the weight, (grad^T x), and of the bias, the sum of ``grad``; all rows in one tile."""
    step = inputs * WIDTH
    across = tl.cdiv(step, INPUTS)
    output = tl.program_id(0) // across * OUTPUTS + tl.arange(0, OUTPUTS)
    i = tl.program_id(0) % across * INPUTS + tl.arange(0, INPUTS)
    row = tl.arange(0, ROWS)
    inside = (output < outputs)[:, None] & (row < rows)[None, :]
    g = gradients(grad, y, row[None, :] * outputs + output[:, None], inside, RELU)
    a = tl.load(
        x + row[:, None] * step + i[None, :], mask=(row < rows)[:, None] & (i < step)[None, :], other=0.0
    )
    product = tl.dot(g, a, input_precision="ieee")
    at = output[:, None] * step + i[None, :]
    tl.store(grad_weight + at, product, mask=(output < outputs)[:, None] & (i < step)[None, :])
    if tl.program_id(0) % across == 0:
        tl.store(grad_bias + output, tl.sum(g, 1), mask=output < outputs)
