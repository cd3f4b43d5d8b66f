"""Counter-based noise: a pure function of (seed, draw, row, column).

The promise of ``docs/noise.md``: the same numbers in every batch split, on any number of threads, for every
dtype and on every device. Derive independent streams with :func:`fold_in` instead of re-using a seed.

>>> from fastvae import noise
>>> whole = noise.normal((4, 3), seed=7)
>>> part = noise.normal((2, 3), seed=7, row_offset=2)
>>> bool((whole[2:] == part).all())
True
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.layout import OPMATH, rows_columns
from fastvae.ops.library import raw, transforms_active, watched
from fastvae.ops.noise import reference, schema
from fastvae.ops.noise.seed import Seed, as_int64, random_seed, seed_tensor
from fastvae.ops.validation import DTYPES, check_event_dims, check_index, describe

__all__ = ["Seed", "fold_in", "normal", "permutation", "uniform"]


def normal(
    shape: Sequence[int],
    seed: Seed = None,
    *,
    draw: int = 0,
    row_offset: int = 0,
    rows: Tensor | None = None,
    event_dims: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Standard normals: Philox4x32-10 words and Box-Muller (docs/noise.md).

    Parameters
    ----------
    shape : sequence of int
        ``(..., *event)``: the leading axes are the rows of the contract, the ``event_dims`` trailing ones its
        columns.
    seed : int, int64 tensor, torch.Generator or None
        The 64-bit key; by default drawn from torch's generator.
    draw : int
        Number of the draw in [0, 2^32).
    row_offset : int
        Row number of the first row.
    rows : int64 tensor, optional
        The row number of each row, any shape with as many elements as there are rows; excludes
        ``row_offset``; in [0, 2^63). With the index of a sample in its data set here, its noise is the same
        in whatever batch it comes.
    event_dims : int
        How many trailing axes are columns.
    dtype : torch.dtype
        float32, float64, bfloat16 or float16: the same float32 noise, converted.
    device : torch.device or str, optional
        Where the noise is made; by default where ``out``, a seed or a ``rows`` tensor is, else the CPU.
    out : Tensor, optional
        Written over, and returned, instead of a new tensor: contiguous float32 of the given shape. On the CPU
        the kernel writes to it and nothing else is allocated.

    Returns
    -------
    Tensor
        Contiguous, of the given shape.

    Raises
    ------
    TypeError, ValueError
        For a dtype, seed, shape or number out of the ranges above.
    """
    return _matrix("normal", shape, seed, draw, row_offset, rows, event_dims, dtype, device, out)


def uniform(
    shape: Sequence[int],
    seed: Seed = None,
    *,
    draw: int = 0,
    row_offset: int = 0,
    rows: Tensor | None = None,
    event_dims: int = 1,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Uniforms on [0, 1): the upper 24 bits of each Philox word times 2^-24.

    The parameters are those of :func:`normal`. The words are the same too: give noise that must be
    independent of a normal another seed (:func:`fold_in`) or another draw. In bfloat16 and float16 the value
    is rounded and can be 1.
    """
    return _matrix("uniform", shape, seed, draw, row_offset, rows, event_dims, dtype, device, out)


def permutation(
    n: int, seed: Seed = None, *, draw: int = 0, device: torch.device | str | None = None
) -> Tensor:
    """A random order of ``0 .. n-1``: the stable sort of one 63-bit key per number.

    The keys are the words that :func:`normal` and :func:`uniform` use for columns 0 and 1: give noise that
    must be independent of the order another seed (:func:`fold_in`) or another draw.

    Parameters
    ----------
    n : int
        How many numbers.
    seed, draw, device
        As :func:`normal`.

    Returns
    -------
    Tensor
        int64, shape ``(n,)``.
    """
    n = check_index("permutation", "n", n, 2**63)
    key = seed_tensor(seed, _device(device, seed))
    order: Tensor = schema.permutation(n, key, check_index("permutation", "draw", draw, 2**32))
    return order


@overload
def fold_in(seed: int, tag: int) -> int: ...
@overload
def fold_in(seed: Tensor, tag: int | Tensor) -> Tensor: ...
def fold_in(seed: int | Tensor, tag: int | Tensor) -> int | Tensor:
    """Derive the seed of an independent stream from a seed and a tag, as ``jax.random.fold_in`` does.

    Parameters
    ----------
    seed : int or int64 tensor
        Also an integer of NumPy's.
    tag : int or int64 tensor
        A step, a layer, a purpose: any 64-bit integer.

    Returns
    -------
    int or Tensor
        A seed of the type of ``seed``: an int in [-2^63, 2^63), or an int64 tensor on the same device.

    Raises
    ------
    TypeError, ValueError
        For something that is no integer, or needs more than 64 bits.
    """
    for name, value in (("seed", seed), ("tag", tag)):
        integer = isinstance(value, int) and not isinstance(value, bool)
        if not integer and not (isinstance(value, Tensor) and value.dtype == torch.int64):
            numbers: tuple[Any, ...] = (seed, tag)
            if any(isinstance(number, np.integer) for number in numbers):
                return fold_in(*(int(n) if isinstance(n, np.integer) else n for n in numbers))
            raise TypeError(f"fold_in: {name} must be an int or an int64 tensor, got {describe(value)}")
    if isinstance(seed, int):
        if isinstance(tag, Tensor):
            seed = torch.full((), as_int64(seed), dtype=torch.int64, device=tag.device)
        else:
            # A compiler sees through the Python form; it fixes the values, so a compiled loop folds tensors.
            fold = reference.fold_in if torch.compiler.is_compiling() else _core.fold_in
            return fold(as_int64(seed), as_int64(tag))
    if isinstance(tag, int):
        tag = torch.full((), as_int64(tag), dtype=torch.int64, device=seed.device)
    if seed.device != tag.device:
        raise ValueError(
            f"fold_in: seed is on {seed.device} and tag on {tag.device}; move one with .to(device)"
        )
    folded: Tensor = schema.fold_in(*torch.broadcast_tensors(seed, tag))
    return folded


def _device(device: torch.device | str | None, *sources: object) -> torch.device:
    """The device asked for, else that of the first tensor or generator, else the CPU."""
    if device is not None:
        return torch.device(device)
    for source in sources:
        # One check after the other: a compiler refuses to ask of a tensor whether it is a generator.
        if isinstance(source, Tensor):
            return source.device
        if isinstance(source, torch.Generator):
            return source.device
    return torch.device("cpu")


_CPU = torch.device("cpu")


def _default_seed() -> Tensor:
    return random_seed(_CPU)


_PLAIN = {"normal": _core.plain_normal, "uniform": _core.plain_uniform}
"""What makes noise of arguments of which nothing is to be said, in one call; else it gives None."""


def _matrix(
    name: str,
    shape: Sequence[int],
    seed: Seed,
    draw: int,
    row_offset: int,
    rows: Tensor | None,
    event_dims: int,
    dtype: torch.dtype,
    device: torch.device | str | None,
    out: Tensor | None,
) -> Tensor:
    """Check the arguments of :func:`normal` or :func:`uniform` and call the operator."""
    if (
        not torch.compiler.is_compiling()
        and dtype is torch.float32
        and rows is None
        and (device is None or (type(device) is torch.device and device == _CPU))
        and not watched()
        and not transforms_active()
    ):
        plain = _PLAIN[name](shape, seed, draw, row_offset, event_dims, out, _default_seed)
        if plain is not None:
            return plain
    if dtype not in OPMATH:
        raise TypeError(f"{name}: dtype must be {DTYPES}, got {dtype}")
    if isinstance(shape, int):
        raise TypeError(f"{name}: shape must be a sequence of ints, got {shape}; one row is ({shape},)")
    size = torch.Size(shape)
    if any(extent < 0 for extent in size):
        raise ValueError(f"{name}: shape must not have negative sizes, got {tuple(size)}")
    n_rows, columns = rows_columns(size, check_event_dims(name, size, event_dims))
    where = _device(device, out, seed, rows)
    if out is not None:
        _check_out(name, out, size, dtype, where)
    if rows is not None:
        if not isinstance(rows, Tensor) or rows.dtype != torch.int64:
            raise TypeError(f"{name}: rows must be an int64 tensor, got {describe(rows)}")
        if rows.numel() != n_rows:
            raise ValueError(
                f"{name}: rows must have one number per row, {n_rows} for shape {tuple(size)}, "
                f"got {rows.numel()}"
            )
        if row_offset:
            raise ValueError(f"{name}: give rows or row_offset, not both")
        rows = rows.to(where).reshape(-1)
    arguments = (
        n_rows,
        columns,
        seed_tensor(seed, where),
        check_index(name, "draw", draw, 2**32),
        check_index(name, "row_offset", row_offset, 2**63),
        rows,
    )
    if transforms_active():
        values: Tensor = getattr(schema, name)(*arguments)
    elif out is not None:
        raw(getattr(schema, f"{name}_into"), *arguments, out)
        return out
    else:
        values = raw(getattr(schema, name), *arguments)
    values = values.reshape(size).to(dtype)
    # An operator that mutates has no batching rule; a copy has.
    return values if out is None else out.copy_(values)


def _check_out(name: str, out: Tensor, size: torch.Size, dtype: torch.dtype, device: torch.device) -> None:
    """A tensor that the noise can be written to as it is."""
    if not isinstance(out, Tensor) or out.dtype is not torch.float32 or dtype is not torch.float32:
        raise TypeError(
            f"{name}: noise is written to a float32 tensor, got out={describe(out)} and dtype={dtype}; "
            f"for another dtype, out.copy_({name}(...))"
        )
    same_device = out.device.type == device.type and device.index in (None, out.device.index)
    if out.shape != size or not same_device or not out.is_contiguous():
        raise ValueError(
            f"{name}: out must be contiguous, of shape {tuple(size)} on {device}, got {describe(out)} with "
            f"strides {out.stride()}"
        )
    if out.requires_grad:
        raise ValueError(f"{name}: out is written over, so it must not require grad; out.detach() does not")
