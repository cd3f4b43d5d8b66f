"""The samples with their log weights on CUDA: the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.cuda import (
    RUN,
    DeviceMatrix,
    cdiv,
    check_draw,
    cuda_kernel,
    kernels,
    launch,
    partials_of_rows,
    seed_pointer,
    tiles,
    total,
)
from fastvae.ops.gaussian_kl.schema import empty_latent
from fastvae.ops.reparametrize_log_weight import reference, schema
from fastvae.ops.reparametrize_log_weight.schema import empty_samples

ENOUGH_PROGRAMS = 1024
"""Where there are as many, a device has work for all of its processors."""


def samples_together(programs: int, num_samples: int) -> int:
    """How many samples a program takes of its tile: the more, the less often the parameters are read."""
    together = RUN
    while together > 1 and programs * cdiv(num_samples, together) < ENOUGH_PROGRAMS:
        together //= 2
    return together


@cuda_kernel(schema.reparametrize_log_weight, reference.reparametrize_log_weight)
def reparametrize_log_weight(
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    draw: int,
    row_offset: int,
    event_dims: int,
    num_samples: int,
) -> tuple[Tensor, Tensor]:
    """The samples and their log weights, in one pass."""
    matrix = DeviceMatrix(mu, event_dims)
    z, log_weight = empty_samples(mu, event_dims, num_samples)
    if not z.numel():
        return z, log_weight.zero_()
    check_draw(draw, row_offset, matrix.rows, num_samples)
    mu, mu_step = matrix.strided("mu", mu)
    logvar, logvar_step = matrix.strided("logvar", logvar)
    cut = tiles(matrix.rows, matrix.columns)
    together = samples_together(*cut.grid, num_samples)
    out = partials_of_rows(log_weight, num_samples * matrix.rows, cut.programs)
    module = kernels("log_weight")
    launch(
        module.forward,
        (cut.grid[0] * cdiv(num_samples, together),),
        mu,
        logvar,
        z,
        out,
        seed_pointer(seed, matrix.device),
        draw,
        row_offset,
        num_samples,
        matrix.rows,
        matrix.columns,
        mu_step,
        logvar_step,
        cut.programs,
        *cut.grid,
        together,
        MATH=module.DTYPES[matrix.opmath],
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )
    return z, log_weight if out is log_weight else total(out, 1, matrix.opmath, log_weight.shape)


@cuda_kernel(schema.reparametrize_log_weight_backward, reference.reparametrize_log_weight_backward)
def reparametrize_log_weight_backward(
    grad_z: Tensor | None,
    grad_log_weight: Tensor | None,
    mu: Tensor,
    logvar: Tensor,
    seed: Tensor,
    draw: int,
    row_offset: int,
    event_dims: int,
    num_samples: int,
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mu and logvar, with the noise drawn again.

    Few latents have too little work for a device: then each run of samples has programs of its own, and their
    sums are added up after them.
    """
    matrix = DeviceMatrix(mu, event_dims)
    grad_mu, grad_logvar = empty_latent(mu), empty_latent(logvar)
    if not mu.numel():
        return grad_mu, grad_logvar
    if not num_samples or (grad_z is None and grad_log_weight is None):
        return grad_mu.zero_(), grad_logvar.zero_()
    check_draw(draw, row_offset, matrix.rows, num_samples)
    # The samples of z are rows too, all of one below those of the other.
    samples = DeviceMatrix(mu.new_empty(()).expand(num_samples, *mu.shape), event_dims)
    mu, mu_step = matrix.strided("mu", mu)
    logvar, logvar_step = matrix.strided("logvar", logvar)
    # What a kernel does without is never read.
    grad_z_step = grad_log_weight_step = 0
    if grad_z is not None:
        grad_z, grad_z_step = samples.strided("grad_z", grad_z)
    if grad_log_weight is not None:
        grad_log_weight, grad_log_weight_step = samples.strided_of_rows("grad_log_weight", grad_log_weight)
    cut = tiles(matrix.rows, matrix.columns)
    runs = cdiv(num_samples, RUN)
    parts = 1 if cut.grid[0] >= ENOUGH_PROGRAMS else runs
    of_parts = [grad_mu, grad_logvar]
    if parts > 1:
        shape = (2, parts, *matrix.shape)
        of_parts = list(torch.empty(shape, dtype=matrix.opmath, device=matrix.device).unbind())
    module = kernels("log_weight")
    launch(
        module.backward,
        (cut.grid[0] * parts,),
        mu if grad_z is None else grad_z,
        mu if grad_log_weight is None else grad_log_weight,
        mu,
        logvar,
        *of_parts,
        seed_pointer(seed, matrix.device),
        draw,
        row_offset,
        num_samples,
        matrix.rows,
        matrix.columns,
        mu_step,
        logvar_step,
        grad_z_step,
        grad_log_weight_step,
        cut.programs,
        *cut.grid,
        runs // parts,
        MATH=module.DTYPES[matrix.opmath],
        SAMPLE=grad_z is not None,
        WEIGHT=grad_log_weight is not None,
        WIDE=runs > parts,
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )
    if parts > 1:
        grad_mu, grad_logvar = (total(of, 0, matrix.opmath, matrix.shape).to(matrix.dtype) for of in of_parts)
    return grad_mu, grad_logvar
