"""The Gaussian log-density on the CPU: the Rust kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.gaussian_log_prob import schema
from fastvae.ops.gaussian_log_prob.schema import empty_grads
from fastvae.ops.layout import KL_CODES, OPMATH, LatentMatrix, address
from fastvae.ops.library import kernel, plain_kernel
from fastvae.ops.observed import empty_log_prob, event_rows, target_rows

plain_kernel(schema.gaussian_log_prob, _core.plain_gaussian_log_prob)
plain_kernel(schema.gaussian_log_prob_backward, _core.plain_gaussian_log_prob_backward)


def _logvar_rows(matrix: LatentMatrix, logvar: Tensor) -> tuple[Tensor, tuple[int, int], bool]:
    """A log-variance as rows, or the address of the one for all values, and whether it is that."""
    if logvar.shape == matrix.shape:
        logvar, rows = matrix.strided("logvar", logvar)
        return logvar, rows, False
    opmath = OPMATH[matrix.dtype]
    if logvar.numel() != 1 or logvar.dtype is not opmath or not logvar.is_cpu:
        raise ValueError(
            f"logvar must be a {matrix.dtype} tensor of shape {tuple(matrix.shape)} or one {opmath} element "
            f"on the CPU, got {logvar.dtype} of {tuple(logvar.shape)} on {logvar.device}"
        )
    logvar = logvar.resolve_neg()
    return logvar, (address(logvar), 0), True


@kernel(schema.gaussian_log_prob, "CPU")
def gaussian_log_prob(
    mean: Tensor, logvar: Tensor, target: Tensor, target_max: int, event_dims: int
) -> Tensor:
    """The log-density in nats, summed over the event, in one pass."""
    columns, reduction = event_rows(mean, target, event_dims)
    matrix = LatentMatrix(mean, columns)
    log_prob = empty_log_prob(mean, event_dims)
    if not mean.numel():
        return log_prob.zero_()
    target, data_rows = target_rows(target, target_max, mean, columns)
    mean, mean_rows = matrix.strided("mean", mean)
    logvar, logvar_rows, shared = _logvar_rows(matrix, logvar)
    _core.gaussian_forward(
        matrix.code,
        matrix.rows,
        matrix.columns,
        mean_rows,
        logvar_rows,
        shared,
        data_rows,
        (KL_CODES[reduction], (log_prob.data_ptr(), 0)),
        torch.get_num_threads(),
    )
    return log_prob


@kernel(schema.gaussian_log_prob_backward, "CPU")
def gaussian_log_prob_backward(
    grad: Tensor, mean: Tensor, logvar: Tensor, target: Tensor, target_max: int, event_dims: int
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mean and logvar, in one pass."""
    grad_mean, grad_logvar = empty_grads(mean, logvar)
    if not mean.numel():
        return grad_mean, grad_logvar.zero_()
    columns, reduction = event_rows(mean, target, event_dims)
    matrix = LatentMatrix(mean, columns)
    target, data_rows = target_rows(target, target_max, mean, columns)
    mean, mean_rows = matrix.strided("mean", mean)
    logvar, logvar_rows, shared = _logvar_rows(matrix, logvar)
    grad, grad_rows = matrix.strided_grad_kl(grad, reduction)
    _core.gaussian_backward(
        matrix.code,
        matrix.rows,
        matrix.columns,
        mean_rows,
        logvar_rows,
        shared,
        data_rows,
        (KL_CODES[reduction], grad_rows),
        (grad_mean.data_ptr(), grad_logvar.data_ptr()),
        torch.get_num_threads(),
    )
    return grad_mean, grad_logvar
