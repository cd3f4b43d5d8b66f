"""The Bernoulli log-probability on CUDA: the Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.bernoulli_log_prob import reference, schema
from fastvae.ops.cuda import (
    DeviceMatrix,
    cuda_kernel,
    kernels,
    launch,
    partials_of_rows,
    tiles,
    tiles_of_likelihood,
    total,
)
from fastvae.ops.observed import empty_log_prob, event_rows, target_matrix


@cuda_kernel(schema.bernoulli_log_prob, reference.bernoulli_log_prob)
def bernoulli_log_prob(logits: Tensor, target: Tensor, target_max: int, event_dims: int) -> Tensor:
    """Log-probability in nats, summed over the event, in one pass."""
    columns, _ = event_rows(logits, target, event_dims)
    matrix = DeviceMatrix(logits, columns)
    log_prob = empty_log_prob(logits, event_dims)
    if not logits.numel():
        return log_prob.zero_()
    target, target_step, target_rows = target_matrix(target, target_max, logits, columns)
    logits, logits_step = matrix.strided("logits", logits)
    module = kernels("bernoulli")
    if event_dims:
        kind, cut = module.ROW_SUMS, tiles_of_likelihood(matrix.rows, matrix.columns)
        out = partials_of_rows(log_prob, matrix.rows, cut.programs)
    else:
        kind, cut, out = module.ELEMENTS, tiles(matrix.rows, matrix.columns), log_prob
    launch(
        module.forward,
        cut.grid,
        logits,
        target,
        out,
        matrix.rows,
        matrix.columns,
        target_rows,
        logits_step,
        target_step,
        cut.programs,
        STEPS=cut.steps,
        MATH=module.DTYPES[matrix.opmath],
        KIND=kind.value,
        MAX=target_max,
        SHARED=target_rows < matrix.rows,
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )
    return log_prob if out is log_prob else total(out, 1, matrix.opmath, log_prob.shape)


@cuda_kernel(schema.bernoulli_log_prob_backward, reference.bernoulli_log_prob_backward)
def bernoulli_log_prob_backward(
    grad: Tensor, logits: Tensor, target: Tensor, target_max: int, event_dims: int
) -> Tensor:
    """The gradient with respect to the logits, in one pass."""
    grad_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if not logits.numel():
        return grad_logits
    columns, reduction = event_rows(logits, target, event_dims)
    matrix = DeviceMatrix(logits, columns)
    target, target_step, target_rows = target_matrix(target, target_max, logits, columns)
    logits, logits_step = matrix.strided("logits", logits)
    grad, grad_step, by_column = matrix.strided_grad("grad", grad, reduction)
    module = kernels("bernoulli")
    cut = tiles(matrix.rows, matrix.columns)
    launch(
        module.backward,
        cut.grid,
        logits,
        target,
        grad,
        grad_logits,
        matrix.rows,
        matrix.columns,
        target_rows,
        logits_step,
        target_step,
        grad_step,
        cut.programs,
        MATH=module.DTYPES[matrix.opmath],
        BY_COLUMN=bool(by_column),
        MAX=target_max,
        SHARED=target_rows < matrix.rows,
        ROWS=cut.rows,
        COLUMNS=cut.columns,
    )
    return grad_logits
