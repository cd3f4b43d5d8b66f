"""How a tensor is laid before a kernel: rows of unit-stride columns.

A latent of shape ``(..., *event)`` is a matrix: the leading axes are its rows, the ``event_dims`` trailing
ones its columns. Kernels walk rows at any stride (0 for an expanded prior, ``2 * D`` for one half of
``chunk(2, -1)``); what has no such form is copied.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

OPMATH = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}
"""The supported dtypes, and the dtype their arithmetic and their KL are in."""


def rows_columns(shape: Sequence[int], event_dims: int) -> tuple[int, int]:
    """The matrix form (rows, columns) of a shape."""
    if not 0 <= event_dims <= len(shape):
        raise ValueError(f"event_dims must lie between 0 and {len(shape)}, got {event_dims}")
    split = len(shape) - event_dims
    return math.prod(shape[:split]), math.prod(shape[split:])


def reduced_shape(shape: Sequence[int], event_dims: int, reduction: str) -> Sequence[int]:
    """The shape of a KL with an operator-level reduction.

    ``"none"``, ``"sample"``, ``"dimension"`` (summed over the latents) or ``"sum"``.
    """
    if reduction == "none":
        return shape
    if reduction == "dimension":
        return shape[len(shape) - event_dims :]
    return shape[: len(shape) - event_dims] if reduction == "sample" else ()


def uniform_stride(sizes: Sequence[int], strides: Sequence[int]) -> int | None:
    """The stride of the one axis these axes collapse to; None if they do not."""
    step: int | None = None
    expected = 0
    for size, stride in zip(reversed(sizes), reversed(strides), strict=True):
        if size == 1:
            continue
        if step is None:
            step = stride
        elif stride != expected:
            return None
        expected = stride * size
    return 0 if step is None else step


def dense(tensor: Tensor) -> Tensor:
    """A strided tensor: the gradient that ``gather(sparse_grad=True)`` sends back is none."""
    return tensor if tensor.layout is torch.strided else tensor.to_dense()


def as_rows(tensor: Tensor, event_dims: int) -> tuple[Tensor, int]:
    """A tensor whose memory can be read as rows, and the distance of its rows in elements.

    The result is the argument itself where its strides allow, else a contiguous copy.
    """
    tensor = dense(tensor)
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    split = tensor.dim() - event_dims
    columns = math.prod(tensor.shape[split:])
    if tensor.is_contiguous():
        return tensor, columns
    strides = tensor.stride()
    row_step = uniform_stride(tensor.shape[:split], strides[:split])
    column_step = uniform_stride(tensor.shape[split:], strides[split:])
    if row_step is not None and (column_step == 1 or columns == 1):
        return tensor, row_step
    return tensor.contiguous(), columns


def address(tensor: Tensor) -> int:
    """Where the first element is, after checking that the storage reaches to the last one.

    Raises
    ------
    RuntimeError
        If the storage was resized or freed under the tensor.
    """
    if tensor.is_contiguous():
        last = tensor.numel() - 1
    else:
        last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.itemsize
    available = tensor.untyped_storage().nbytes()
    if needed > available:
        raise RuntimeError(
            f"a tensor of shape {tuple(tensor.shape)} needs {needed} bytes of storage and has {available}: "
            "its storage was resized or freed"
        )
    return tensor.data_ptr()


DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
"""The dtypes as ``fastvae._core`` numbers them."""

KL_CODES = {"none": 1, "sample": 2, "sum": 3, "dimension": 4}
"""The operator-level reductions as ``fastvae._core`` numbers them; 0 is no KL."""

ABSENT = (0, 0)
"""The (address, row stride) of a tensor that a kernel call does without."""


class LatentMatrix:
    """The matrix that one kernel call works on, and what every tensor of the call has to be like.

    Whoever calls an operator directly, or changes a saved tensor in a hook, gets here unchecked: the kernels
    read as far as the shape and dtype of *one* tensor say.
    """

    def __init__(self, like: Tensor, event_dims: int) -> None:
        if like.dtype not in DTYPE_CODES:
            raise ValueError(f"the kernels take {[str(d) for d in DTYPE_CODES]}, got {like.dtype}")
        self.shape, self.dtype, self.event_dims = like.shape, like.dtype, event_dims
        self.code = DTYPE_CODES[like.dtype]
        self.rows, self.columns = rows_columns(like.shape, event_dims)
        self.bytes = like.numel() * like.itemsize

    def strided(self, name: str, tensor: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A tensor as rows, with the (address, row stride) that the kernels take; keep it for the call."""
        # Most tensors are contiguous at the start of their storage: a few questions settle that.
        if (
            tensor.is_contiguous()
            and tensor.shape == self.shape
            and tensor.dtype is self.dtype
            and tensor.is_cpu
            and not tensor.is_neg()
            and not tensor.storage_offset()
            and tensor.untyped_storage().nbytes() >= self.bytes
            and not (start := tensor.data_ptr()) % tensor.itemsize
        ):
            return tensor, (start, self.columns)
        return _strided(name, tensor, self.event_dims, self.shape, self.dtype)

    def strided_of_rows(self, name: str, tensor: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """A tensor with one number per row in the dtype of the arithmetic, likewise: a column."""
        shape = torch.Size(reduced_shape(self.shape, self.event_dims, "sample"))
        return _strided(name, tensor, 0, shape, OPMATH[self.dtype])

    def strided_grad_kl(self, grad_kl: Tensor, reduction: str) -> tuple[Tensor, tuple[int, int]]:
        """The gradient of the KL, likewise: a matrix (``"none"``), a row (``"dimension"``) or a column."""
        shape = torch.Size(reduced_shape(self.shape, self.event_dims, reduction))
        columns = self.event_dims if reduction in {"none", "dimension"} else 0
        return _strided("grad_kl", grad_kl, columns, shape, OPMATH[self.dtype])


def _strided(
    name: str, tensor: Tensor, event_dims: int, shape: torch.Size, dtype: torch.dtype
) -> tuple[Tensor, tuple[int, int]]:
    if tensor.shape != shape or tensor.dtype is not dtype or not tensor.is_cpu:
        raise ValueError(
            f"{name} must be a {dtype} tensor of shape {tuple(shape)} on the CPU, got {tensor.dtype} of "
            f"{tuple(tensor.shape)} on {tensor.device}"
        )
    tensor, stride = as_rows(tensor, event_dims)
    start = address(tensor)
    if start % tensor.itemsize:
        # torch lets memory that it did not make (a file that is mapped, a received message) begin anywhere.
        tensor, stride = as_rows(tensor.clone(memory_format=torch.contiguous_format), event_dims)
        start = address(tensor)
    return tensor, (start, stride)


def seed_value(seed: Tensor) -> int:
    """The integer in a seed tensor."""
    if seed.dtype is not torch.int64 or seed.numel() != 1:
        raise ValueError(f"seed must be an int64 tensor of one element, got {seed.dtype}, {seed.numel()}")
    return int(seed.item())
