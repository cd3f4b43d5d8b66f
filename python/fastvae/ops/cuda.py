"""What the CUDA kernels share on the host: when there are any, how tensors lie for them, how work is cut.

The kernels are in Triton, which torch's CUDA builds bring: ``ops/triton`` has them, and
``ops/<family>/cuda.py`` calls them. Triton is imported by the first call that needs it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._ops import OpOverload

from fastvae.ops.layout import OPMATH, address, as_rows, reduced_shape, rows_columns
from fastvae.ops.library import DEVICE_KERNELS, LIBRARY

F = TypeVar("F", bound=Callable[..., Any])

OLDEST_CAPABILITY = (7, 0)
"""What Triton compiles for."""

WARPS = 4
"""Of a program, if the caller does not say."""

OPTIONS = {"enable_fp_fusion": False, "sanitize_overflow": False}
"""How every kernel is compiled: a product and a sum that the compiler fuses would change bits, and Philox
wraps around, which TRITON_DEBUG=1 would take for an error."""

TILE = 1024
"""Elements that a program takes at a time: eight for each of its threads."""

MOST_STEPS = 8
"""Tiles that are added up in the type itself; from there on sums are in float64."""

RUN = 8
"""Samples of one latent that are added up in the type itself, likewise."""

LARGE = 2**20
"""Elements from which on a matrix is large. Before, programs that work at a time count for more."""

LIKELIHOOD_WIDTH = 128
"""Columns of the tiles of a large likelihood: 784 take seven steps, of which the last is nearly full."""

CUDA_KERNELS: dict[OpOverload[..., Any], Callable[..., Any]] = {}
"""The function behind each operator that has a kernel for CUDA."""

STARTERS: dict[tuple[Any, ...], tuple[Callable[..., Any], tuple[Any, ...]]] = {}
"""What starts a compiled kernel, and the constants that go behind its arguments."""

MOST_SHAPES = 4096
"""What is remembered for a shape: somebody may have a great many of them."""

UNSPECIALIZED: dict[int, tuple[Any, Sequence[int]]] = {}
"""The places of the arguments whose values a kernel is not specialized for, by its identity; and the kernel,
so that no other one gets that."""


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed; nothing is imported."""
    return importlib.util.find_spec("triton") is not None


@functools.cache
def compiles_for(index: int) -> bool:
    """Whether Triton knows a CUDA device and can start: it compiles its launchers with a C compiler."""
    if torch.cuda.get_device_capability(index) < OLDEST_CAPABILITY:
        return False
    try:
        importlib.import_module("triton.runtime.driver").driver.active.get_current_target()
    except Exception as error:
        warnings.warn(
            f"Triton cannot start ({type(error).__name__}: {error}): the operations of fastvae run as plain "
            "torch operations, which is right and slower",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def cuda_kernel(operator: OpOverload[..., Any], reference: Callable[..., Any]) -> Callable[[F], F]:
    """Register the decorated function as the CUDA kernel of an operator.

    Where Triton is missing or does not know the device, the reference is: correct, on the device.
    """

    def register(function: F) -> F:
        def run(*arguments: Any) -> Any:
            device = next(a.device for a in arguments if isinstance(a, Tensor))
            if not has_triton() or not compiles_for(device.index):
                return reference(*arguments)
            with on(device):
                return function(*arguments)

        LIBRARY.impl(operator, run, "CUDA")
        DEVICE_KERNELS[operator] = run
        CUDA_KERNELS[operator] = function
        return function

    return register


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Launch on a device: Triton takes the current one, whatever its arguments are on."""
    return nullcontext() if device.index == torch.cuda.current_device() else torch.cuda.device(device)


def launch(
    kernel: Any,
    grid: tuple[int],
    *arguments: Any,
    num_warps: int = WARPS,
    **constants: Any,
) -> None:
    """Start a Triton kernel, compiled for what its arguments are like by the first call of that kind.

    Triton looks at each argument, and at the constants that the kernel was defined with, in every call: most
    of the time that a launch takes the processor. Here a call like an earlier one starts what that one found.
    Alike are calls with the same numbers, but for those that the kernel is not specialized for, and with
    tensors of the same dtypes that are aligned alike.
    """
    if not hasattr(kernel, "params"):  # of the interpreter
        kernel[grid](*arguments, **constants, **OPTIONS, num_warps=num_warps)
        return
    known = UNSPECIALIZED.get(id(kernel))
    if known is None:
        known = UNSPECIALIZED[id(kernel)] = kernel, _unspecialized(kernel)
    kinds = [_kind(argument) for argument in arguments]
    for place in known[1]:
        kinds[place] = _width(kinds[place])
    first = arguments[0][0] if isinstance(arguments[0], tuple) else arguments[0]
    key = (id(kernel), grid, num_warps, first.device, *constants.items(), *kinds)
    starter = STARTERS.get(key)
    if starter is None:
        options = OPTIONS | {"num_warps": num_warps}
        compiled = kernel.warmup(*arguments, **constants, grid=grid, **options)
        if not hasattr(type(compiled), "__getitem__"):  # a hook of Triton's has other plans
            kernel[grid](*arguments, **constants, **options)
            return
        in_order = tuple(constants[name] for name in kernel.arg_names[len(arguments) :])
        if len(STARTERS) >= MOST_SHAPES:
            STARTERS.clear()
        starter = STARTERS[key] = (compiled[(*grid, 1, 1)], in_order)
    start, rest = starter
    start(*arguments, *rest)


def _kind(argument: Any) -> Any:
    """What Triton looks at in an argument; of numbers more than that."""
    if isinstance(argument, Tensor):
        return argument.dtype, not argument.data_ptr() & 15
    return tuple(map(_kind, argument)) if isinstance(argument, tuple) else argument


def _width(kind: Any) -> Any:
    """What Triton looks at in a number that it does not specialize for: its type, and whether 32 bits do."""
    if isinstance(kind, int):
        return -(2**31) <= kind < 2**31
    return float if isinstance(kind, float) else kind


def _unspecialized(kernel: Any) -> Sequence[int]:
    """The places of the arguments whose values a kernel is not specialized for."""
    return tuple(parameter.num for parameter in kernel.params if parameter.do_not_specialize)


@functools.cache
def kernels(name: str) -> ModuleType:
    """The Triton kernels in ``ops/triton/<name>.py``, imported when they are first wanted."""
    return importlib.import_module(f"fastvae.ops.triton.{name}")


def cdiv(a: int, b: int) -> int:
    """``a / b``, rounded up."""
    return -(-a // b)


def next_power_of_two(n: int) -> int:
    """The smallest power of two that is not below a positive number."""
    return 1 << (n - 1).bit_length()


class Tiles(NamedTuple):
    """How a matrix is cut, by its shape alone and not by timing: so the same sum has the same bits each time.

    Within a tile the order is Triton's, which goes by the alignment of the tensors too.
    """

    rows: int
    """Of a tile."""
    columns: int
    """Of a tile, a power of two and at least four: a block of the noise."""
    steps: int
    """Tiles that one program takes one after the other."""
    programs: int
    """Along the axis of the steps."""
    grid: tuple[int]

    def fits(self, rows: int, columns: int) -> bool:
        """Whether a large matrix is nothing but whole tiles; a small one is not worth code of its own."""
        area = self.grid[0] * self.steps * self.rows * self.columns
        return area == rows * columns >= LARGE


@functools.lru_cache(MOST_SHAPES)
def tiles(rows: int, columns: int, bits: int = 32) -> Tiles:
    """Cut a matrix for work that keeps to single elements: a program for each tile.

    That is larger where the matrix is large and a thread reads eight elements of 16 bits together.
    """
    area = 2 * TILE if bits == 16 and rows * columns >= LARGE else TILE
    width = min(max(next_power_of_two(columns), 4), area)
    height = min(area // width, next_power_of_two(rows))
    across = cdiv(columns, width)
    return Tiles(height, width, 1, across, (cdiv(rows, height) * across,))


@functools.lru_cache(MOST_SHAPES)
def tiles_of_rows(rows: int, columns: int, widest: int = TILE) -> Tiles:
    """Cut a matrix for sums over its rows: a program takes several tiles of some rows."""
    width = min(max(next_power_of_two(columns), 4), widest)
    height = min(TILE // width, next_power_of_two(rows))
    across = cdiv(columns, width)
    segments = cdiv(across, MOST_STEPS)
    steps = cdiv(across, segments)
    return Tiles(height, width, steps, segments, (cdiv(rows, height) * segments,))


@functools.lru_cache(MOST_SHAPES)
def tiles_of_likelihood(rows: int, columns: int) -> Tiles:
    """Cut the matrix of a likelihood for sums over its rows."""
    return tiles_of_rows(rows, columns, widest=LIKELIHOOD_WIDTH if rows * columns >= LARGE else TILE)


@functools.lru_cache(MOST_SHAPES)
def tiles_of_columns(rows: int, columns: int) -> Tiles:
    """Cut a matrix for sums over its columns: a program takes several tiles of some columns."""
    widest = max(next_power_of_two(columns), 4)
    height = min(TILE // min(widest, 64), next_power_of_two(rows))
    width = min(TILE // height, widest)
    down = cdiv(rows, height)
    bands = cdiv(down, MOST_STEPS)
    steps = cdiv(down, bands)
    return Tiles(height, width, steps, bands, (cdiv(columns, width) * bands,))


class DeviceMatrix:
    """The matrix that one kernel call works on, and what every tensor of the call has to be like.

    Whoever calls an operator directly, or changes a saved tensor in a hook, gets here unchecked.
    """

    def __init__(self, like: Tensor, event_dims: int) -> None:
        if like.dtype not in OPMATH:
            raise ValueError(f"the kernels take {[str(d) for d in OPMATH]}, got {like.dtype}")
        self.shape, self.dtype, self.device, self.event_dims = like.shape, like.dtype, like.device, event_dims
        self.rows, self.columns = rows_columns(like.shape, event_dims)
        self.bytes = like.nbytes
        self.bits = 8 * like.itemsize

    @property
    def opmath(self) -> torch.dtype:
        """The dtype of the arithmetic."""
        return OPMATH[self.dtype]

    def strided(self, name: str, tensor: Tensor) -> tuple[Tensor, int]:
        """A tensor as rows of unit stride, and their distance; a copy where it has no such form."""
        # Most tensors are contiguous at the start of their storage: a few questions settle that.
        if (
            tensor.is_contiguous()
            and tensor.shape == self.shape
            and tensor.dtype is self.dtype
            and tensor.device == self.device
            and not tensor.is_neg()
            and not tensor.storage_offset()
            and tensor.untyped_storage().nbytes() >= self.bytes
        ):
            return tensor, self.columns
        return _strided(name, tensor, self.event_dims, self.shape, self.dtype, self.device)

    def strided_of_rows(self, name: str, tensor: Tensor) -> tuple[Tensor, int]:
        """A tensor with one number per row in the dtype of the arithmetic, likewise: a column."""
        shape = reduced_shape(self.shape, self.event_dims, "sample")
        return _strided(name, tensor, 0, shape, self.opmath, self.device)

    def strided_grad(self, name: str, grad: Tensor, reduction: str) -> tuple[Tensor, int, int]:
        """The gradient of what was reduced, with its (row, column) strides: 0 along what was summed over."""
        shape = reduced_shape(self.shape, self.event_dims, reduction)
        by_column = reduction in {"none", "dimension"}
        grad, step = _strided(
            name, grad, self.event_dims if by_column else 0, shape, self.opmath, self.device
        )
        return grad, step if reduction in {"none", "sample"} else 0, int(by_column)


def _strided(
    name: str,
    tensor: Tensor,
    event_dims: int,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[Tensor, int]:
    if tensor.shape != torch.Size(shape) or tensor.dtype is not dtype or tensor.device != device:
        raise ValueError(
            f"{name} must be a {dtype} tensor of shape {tuple(shape)} on {device}, got {tensor.dtype} of "
            f"{tuple(tensor.shape)} on {tensor.device}"
        )
    tensor, step = as_rows(tensor, event_dims)
    address(tensor)  # raises where the storage does not reach that far
    return tensor, step


def seed_pointer(seed: Tensor, device: torch.device) -> Tensor:
    """A seed that a kernel can read: its value stays on the device."""
    if seed.dtype is not torch.int64 or seed.numel() != 1 or seed.device != device:
        raise ValueError(
            f"seed must be an int64 tensor of one element on {device}, got {seed.dtype}, {seed.numel()} on "
            f"{seed.device}"
        )
    address(seed)
    return seed


def numbers_on(device: torch.device, name: str, numbers: Tensor, count: int) -> Tensor:
    """One int64 for each of some rows, contiguous."""
    if numbers.dtype is not torch.int64 or numbers.shape != (count,) or numbers.device != device:
        raise ValueError(
            f"{name} must be {count} int64 numbers on {device}, got {numbers.dtype} of shape "
            f"{tuple(numbers.shape)} on {numbers.device}"
        )
    numbers = numbers.resolve_neg().contiguous()
    address(numbers)
    return numbers


def check_draw(draw: int, row_offset: int, rows: int, draws: int = 1) -> None:
    """Numbers of draws have 32 bits, those of rows 63."""
    if not 0 <= draw <= 2**32 - draws:
        raise ValueError(f"{draws} draws from draw={draw} on do not lie in [0, 2^32)")
    if not 0 <= row_offset <= 2**63 - rows:
        raise ValueError(f"{rows} rows from row_offset={row_offset} on do not lie in [0, 2^63)")


def check_apart(out: Tensor, *others: Tensor | None) -> None:
    """Refuse memory to write to that is read as well: programs run in any order."""
    first = out.data_ptr()
    end = first + out.numel() * out.itemsize
    for other in others:
        if other is None or not other.numel():
            continue
        start = other.data_ptr()
        last = sum((size - 1) * stride for size, stride in zip(other.shape, other.stride(), strict=True))
        if start < end and first < start + (last + 1) * other.itemsize:
            raise ValueError("an output shares memory with another tensor of the call")


def partials_of_rows(sums: Tensor, rows: int, programs: int) -> Tensor:
    """Where programs leave sums over their part of each row: the sums themselves where there is one part."""
    return sums if programs == 1 else torch.empty((rows, programs), dtype=sums.dtype, device=sums.device)


def total(partials: Tensor, dim: int | None, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    """Add up what programs left, in float64, and round once: a tensor of its own, not a view of another.

    Autograd lets nobody change a view that an operator gives in place.
    """
    if dim is None:
        partials = partials.sum(dtype=torch.float64).to(dtype)
    elif partials.shape[dim] != 1:
        partials = partials.sum(dim, dtype=torch.float64).to(dtype)
    whole: Tensor = torch.ops.aten._unsafe_view.default(partials, shape)
    return whole
