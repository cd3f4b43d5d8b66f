"""The Gaussian KL on CUDA: the Triton kernels; those of the sample too, which share them."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastvae.ops.cuda import (
    DeviceMatrix,
    Tiles,
    check_draw,
    cuda_kernel,
    kernels,
    launch,
    seed_pointer,
    tiles,
    tiles_of_columns,
    tiles_of_rows,
    total,
)
from fastvae.ops.gaussian_kl import reference, schema
from fastvae.ops.gaussian_kl.schema import empty_kl, empty_latent
from fastvae.ops.layout import KL_CODES, reduced_shape


class Draw(NamedTuple):
    """The noise of a call."""

    seed: Tensor
    draw: int
    row_offset: int


def forward(
    mu: Tensor,
    logvar: Tensor,
    event_dims: int,
    *,
    noise: Draw | None = None,
    reduction: str | None = None,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """The sample, where there is noise, and the KL, where there is a reduction; else anything."""
    z = mu if noise is None else empty_latent(mu)
    if not mu.numel():
        return z, mu if reduction is None else empty_kl(mu, event_dims, reduction).zero_()
    matrix = DeviceMatrix(mu, event_dims)
    if noise is not None:
        check_draw(noise.draw, noise.row_offset, matrix.rows)
    if reduction is not None:
        check_free_bits(free_bits, group_size, matrix.columns, reduction)
    if free_bits and group_size > 1:
        return (
            z if noise is None else forward(mu, logvar, event_dims, noise=noise)[0],
            _of_groups(mu, logvar, event_dims, str(reduction), free_bits, group_size),
        )
    mu, mu_step = matrix.strided("mu", mu)
    logvar, logvar_step = matrix.strided("logvar", logvar)
    rows, columns, opmath = matrix.rows, matrix.columns, matrix.opmath
    module = kernels("latent")
    if reduction is None:
        kind, cut, out = module.NO_KL, tiles(rows, columns, matrix.bits), z
    else:
        kind, cut, out = _landing(module, matrix, reduction)
    seed, draw, row_offset = noise or Draw(mu, 0, 0)
    launch(
        module.forward,
        cut.grid,
        mu,
        logvar,
        z,
        out,
        seed if noise is None else seed_pointer(seed, mu.device),
        draw,
        row_offset,
        rows,
        columns,
        mu_step,
        logvar_step,
        _floor(mu, opmath, free_bits),
        cut.programs,
        STEPS=cut.steps,
        MATH=module.DTYPES[opmath],
        SAMPLE=noise is not None,
        KL=kind.value,
        FREE=bool(free_bits),
        WHOLE=cut.fits(rows, columns),
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )
    return z, out if reduction is None else _landed(out, matrix, reduction)


def _landing(module: ModuleType, matrix: DeviceMatrix, reduction: str) -> tuple[Any, Tiles, Tensor]:
    """What a kernel makes of the KL, how the work is cut for that, and where it goes."""
    rows, columns = matrix.rows, matrix.columns
    if reduction == "none":
        shape: Sequence[int] = matrix.shape
        kind, cut = module.ELEMENTS, tiles(rows, columns, matrix.bits)
    elif reduction == "dimension":
        kind, cut = module.COLUMN_SUMS, tiles_of_columns(rows, columns)
        shape = (cut.programs, columns)
    else:
        kind, cut = module.ROW_SUMS, tiles_of_rows(rows, columns)
        shape = (rows, cut.programs)
        if reduction == "sample" and cut.programs == 1:
            shape = reduced_shape(matrix.shape, matrix.event_dims, reduction)
    return kind, cut, torch.empty(shape, dtype=matrix.opmath, device=matrix.device)


def _landed(out: Tensor, matrix: DeviceMatrix, reduction: str) -> Tensor:
    """The KL from what the programs left."""
    shape = reduced_shape(matrix.shape, matrix.event_dims, reduction)
    if out.shape == shape:
        return out
    dim = {"sum": None, "dimension": 0, "sample": 1}[reduction]
    return total(out, dim, matrix.opmath, shape)


def backward(
    logvar: Tensor,
    event_dims: int,
    *,
    mu: Tensor | None = None,
    grad_z: Tensor | None = None,
    noise: Draw | None = None,
    grad_kl: Tensor | None = None,
    reduction: str = "none",
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """The gradients of mu, where there is one of the KL, and of logvar."""
    grad_logvar = empty_latent(logvar)
    grad_mu = grad_logvar if grad_kl is None or mu is None else empty_latent(mu)
    if not logvar.numel():
        return grad_mu, grad_logvar
    matrix = DeviceMatrix(logvar, event_dims)
    rows, columns, opmath = matrix.rows, matrix.columns, matrix.opmath
    if noise is not None:
        check_draw(noise.draw, noise.row_offset, rows)
    if grad_kl is not None:
        check_free_bits(free_bits, group_size, columns, reduction)
    module = kernels("latent")
    logvar, logvar_step = matrix.strided("logvar", logvar)
    # What a kernel does without is never read.
    weight, mu_step, grad_z_step, grad_kl_step, by_column = logvar, 0, 0, 0, 0
    if mu is not None:
        mu, mu_step = matrix.strided("mu", mu)
    if grad_z is not None:
        grad_z, grad_z_step = matrix.strided("grad_z", grad_z)
    weighted = bool(free_bits) and group_size > 1 and mu is not None
    if grad_kl is not None:
        grad_kl, grad_kl_step, by_column = matrix.strided_grad("grad_kl", grad_kl, reduction)
    if weighted and mu is not None:
        groups = _group_sums(mu, logvar, event_dims, group_size)
        weight = torch.where(groups <= free_bits, 0.0, 1.0).to(opmath)
    seed, draw, row_offset = noise or Draw(logvar, 0, 0)
    cut = tiles(rows, columns, matrix.bits)
    launch(
        module.backward,
        cut.grid,
        logvar if mu is None else mu,
        logvar,
        logvar if grad_z is None else grad_z,
        logvar if grad_kl is None else grad_kl,
        weight,
        grad_mu,
        grad_logvar,
        seed if noise is None else seed_pointer(seed, logvar.device),
        draw,
        row_offset,
        rows,
        columns,
        mu_step,
        logvar_step,
        grad_z_step,
        grad_kl_step,
        _floor(logvar, opmath, free_bits),
        group_size,
        cut.programs,
        MATH=module.DTYPES[opmath],
        SAMPLE=noise is not None,
        KL=grad_kl is not None,
        KL_BY_COLUMN=bool(by_column),
        FREE=bool(free_bits) and not weighted,
        WEIGHTED=weighted,
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )
    return grad_mu, grad_logvar


def check_free_bits(free_bits: float, group_size: int, columns: int, reduction: str) -> None:
    """What the CPU's kernels refuse."""
    if reduction not in KL_CODES:
        raise ValueError(f"reduction must be one of {list(KL_CODES)}, got {reduction!r}")
    if not free_bits:
        return
    if reduction not in {"sample", "sum"}:
        raise ValueError("free bits go with a KL per sample or in total")
    if group_size < 1 or columns % group_size:
        raise ValueError(f"group_size must divide the {columns} columns of a row, got {group_size}")


def _floor(like: Tensor, dtype: torch.dtype, free_bits: float) -> Tensor:
    """The free bits as a kernel reads them: as a plain argument they would be rounded to float32."""
    return torch.full((), free_bits, dtype=dtype, device=like.device) if free_bits else like


def _group_sums(mu: Tensor, logvar: Tensor, event_dims: int, group_size: int) -> Tensor:
    """The KL of each group of neighbouring dimensions, a row of them for each latent."""
    rows = DeviceMatrix(mu, event_dims).rows
    grouped = (rows, -1, group_size)
    return forward(mu.reshape(grouped), logvar.reshape(grouped), 1, reduction="sample")[1]


def _of_groups(
    mu: Tensor, logvar: Tensor, event_dims: int, reduction: str, free_bits: float, group_size: int
) -> Tensor:
    """The KL of groups that have free bits together."""
    groups = _group_sums(mu, logvar, event_dims, group_size)
    # Not `clamp`: NaN stays.
    floored = torch.where(groups <= free_bits, free_bits, groups)
    shape = reduced_shape(mu.shape, event_dims, reduction)
    return total(floored, None if reduction == "sum" else 1, groups.dtype, shape)


@cuda_kernel(schema.gaussian_kl, reference.gaussian_kl)
def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> Tensor:
    """KL from the standard normal, in one pass."""
    return forward(mu, logvar, event_dims, reduction=reduction, free_bits=free_bits, group_size=group_size)[1]


@cuda_kernel(schema.gaussian_kl_backward, reference.gaussian_kl_backward)
def gaussian_kl_backward(
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    event_dims: int,
    reduction: str,
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mu and logvar, in one pass."""
    return backward(
        logvar,
        event_dims,
        mu=mu,
        grad_kl=grad_kl,
        reduction=reduction,
        free_bits=free_bits,
        group_size=group_size,
    )


@cuda_kernel(schema.gaussian_kl_prior, reference.gaussian_kl_prior)
def gaussian_kl_prior(
    mu: Tensor, logvar: Tensor, prior_mu: Tensor, prior_logvar: Tensor, event_dims: int, reduction: str
) -> Tensor:
    """KL from a Gaussian prior, in one pass."""
    if not mu.numel():
        return empty_kl(mu, event_dims, reduction).zero_()
    matrix = DeviceMatrix(mu, event_dims)
    mu, mu_step = matrix.strided("mu", mu)
    logvar, logvar_step = matrix.strided("logvar", logvar)
    prior_mu, prior_mu_step = matrix.strided("prior_mu", prior_mu)
    prior_logvar, prior_logvar_step = matrix.strided("prior_logvar", prior_logvar)
    module = kernels("prior")
    kind, cut, out = _landing(module, matrix, reduction)
    launch(
        module.forward,
        cut.grid,
        mu,
        logvar,
        prior_mu,
        prior_logvar,
        out,
        matrix.rows,
        matrix.columns,
        mu_step,
        logvar_step,
        prior_mu_step,
        prior_logvar_step,
        cut.programs,
        STEPS=cut.steps,
        MATH=module.DTYPES[matrix.opmath],
        KL=kind.value,
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )
    return _landed(out, matrix, reduction)


@cuda_kernel(schema.gaussian_kl_prior_backward, reference.gaussian_kl_prior_backward)
def gaussian_kl_prior_backward(
    grad_kl: Tensor,
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor,
    prior_logvar: Tensor,
    event_dims: int,
    reduction: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients with respect to the four parameters, in one pass."""
    grads = (empty_latent(mu), empty_latent(logvar), empty_latent(prior_mu), empty_latent(prior_logvar))
    if not mu.numel():
        return grads
    matrix = DeviceMatrix(mu, event_dims)
    mu, mu_step = matrix.strided("mu", mu)
    logvar, logvar_step = matrix.strided("logvar", logvar)
    prior_mu, prior_mu_step = matrix.strided("prior_mu", prior_mu)
    prior_logvar, prior_logvar_step = matrix.strided("prior_logvar", prior_logvar)
    grad_kl, grad_kl_step, by_column = matrix.strided_grad("grad_kl", grad_kl, reduction)
    module = kernels("prior")
    cut = tiles(matrix.rows, matrix.columns)
    launch(
        module.backward,
        cut.grid,
        mu,
        logvar,
        prior_mu,
        prior_logvar,
        grad_kl,
        *grads,
        matrix.rows,
        matrix.columns,
        mu_step,
        logvar_step,
        prior_mu_step,
        prior_logvar_step,
        grad_kl_step,
        cut.programs,
        MATH=module.DTYPES[matrix.opmath],
        KL_BY_COLUMN=bool(by_column),
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )
    return grads
