"""The Gaussian log-density on CUDA: the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.cuda import (
    DeviceMatrix,
    cuda_kernel,
    kernels,
    launch,
    tiles,
    tiles_of_likelihood,
    total,
)
from fastvae.ops.gaussian_log_prob import reference, schema
from fastvae.ops.gaussian_log_prob.schema import empty_grads
from fastvae.ops.layout import address
from fastvae.ops.observed import empty_log_prob, event_rows, target_matrix


def _logvar_rows(matrix: DeviceMatrix, logvar: Tensor) -> tuple[Tensor, int, bool]:
    """A log-variance as rows with their distance, or the one for all values, and whether it is that."""
    if logvar.shape == matrix.shape:
        return *matrix.strided("logvar", logvar), False
    if logvar.numel() != 1 or logvar.dtype is not matrix.opmath or logvar.device != matrix.device:
        raise ValueError(
            f"logvar must be a {matrix.dtype} tensor of shape {tuple(matrix.shape)} or one {matrix.opmath} "
            f"element on {matrix.device}, got {logvar.dtype} of {tuple(logvar.shape)} on {logvar.device}"
        )
    logvar = logvar.resolve_neg()
    address(logvar)  # raises where the storage does not reach that far
    return logvar, 0, True


@cuda_kernel(schema.gaussian_log_prob, reference.gaussian_log_prob)
def gaussian_log_prob(
    mean: Tensor, logvar: Tensor, target: Tensor, target_max: int, event_dims: int
) -> Tensor:
    """The log-density in nats, summed over the event, in one pass."""
    columns, _ = event_rows(mean, target, event_dims)
    matrix = DeviceMatrix(mean, columns)
    log_prob = empty_log_prob(mean, event_dims)
    if not mean.numel():
        return log_prob.zero_()
    target, target_step, target_rows = target_matrix(target, target_max, mean, columns)
    mean, mean_step = matrix.strided("mean", mean)
    logvar, logvar_step, shared = _logvar_rows(matrix, logvar)
    module = kernels("gaussian")
    if event_dims:
        kind, cut = module.ROW_SUMS, tiles_of_likelihood(matrix.rows, matrix.columns)
        # Large terms may cancel between the parts of a row.
        out = log_prob
        if cut.programs > 1:
            out = torch.empty((matrix.rows, cut.programs), dtype=torch.float64, device=matrix.device)
    else:
        kind, cut, out = module.ELEMENTS, tiles(matrix.rows, matrix.columns), log_prob
    launch(
        module.forward,
        cut.grid,
        mean,
        logvar,
        target,
        out,
        matrix.rows,
        matrix.columns,
        target_rows,
        mean_step,
        logvar_step,
        target_step,
        cut.programs,
        STEPS=cut.steps,
        MATH=module.DTYPES[matrix.opmath],
        KIND=kind.value,
        ONE_LOGVAR=shared,
        MAX=target_max,
        SHARED=target_rows < matrix.rows,
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )
    return log_prob if out is log_prob else total(out, 1, matrix.opmath, log_prob.shape)


@cuda_kernel(schema.gaussian_log_prob_backward, reference.gaussian_log_prob_backward)
def gaussian_log_prob_backward(
    grad: Tensor, mean: Tensor, logvar: Tensor, target: Tensor, target_max: int, event_dims: int
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mean and logvar, in one pass."""
    grad_mean, grad_logvar = empty_grads(mean, logvar)
    if not mean.numel():
        return grad_mean, grad_logvar.zero_()
    columns, reduction = event_rows(mean, target, event_dims)
    matrix = DeviceMatrix(mean, columns)
    target, target_step, target_rows = target_matrix(target, target_max, mean, columns)
    mean, mean_step = matrix.strided("mean", mean)
    logvar, logvar_step, shared = _logvar_rows(matrix, logvar)
    grad, grad_step, by_column = matrix.strided_grad("grad", grad, reduction)
    module = kernels("gaussian")
    if shared:
        cut = tiles_of_likelihood(matrix.rows, matrix.columns)
        of_logvar = torch.empty(cut.grid, dtype=torch.float64, device=matrix.device)
    else:
        cut, of_logvar = tiles(matrix.rows, matrix.columns), grad_logvar
    launch(
        module.backward,
        cut.grid,
        mean,
        logvar,
        target,
        grad,
        grad_mean,
        of_logvar,
        matrix.rows,
        matrix.columns,
        target_rows,
        mean_step,
        logvar_step,
        target_step,
        grad_step,
        cut.programs,
        STEPS=cut.steps,
        MATH=module.DTYPES[matrix.opmath],
        BY_COLUMN=bool(by_column),
        ONE_LOGVAR=shared,
        MAX=target_max,
        SHARED=target_rows < matrix.rows,
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )
    if shared:
        grad_logvar = total(of_logvar, None, matrix.opmath, logvar.shape)
    return grad_mean, grad_logvar
