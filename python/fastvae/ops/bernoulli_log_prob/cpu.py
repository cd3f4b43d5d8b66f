"""The Bernoulli log-probability on the CPU: the Rust kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae import _core
from fastvae.ops.bernoulli_log_prob import schema
from fastvae.ops.layout import KL_CODES, LatentMatrix
from fastvae.ops.library import kernel, plain_kernel
from fastvae.ops.observed import empty_log_prob, event_rows, target_rows

plain_kernel(schema.bernoulli_log_prob, _core.plain_bernoulli_log_prob)
plain_kernel(schema.bernoulli_log_prob_backward, _core.plain_bernoulli_log_prob_backward)


@kernel(schema.bernoulli_log_prob, "CPU")
def bernoulli_log_prob(logits: Tensor, target: Tensor, target_max: int, event_dims: int) -> Tensor:
    """Log-probability in nats, summed over the event, in one pass."""
    columns, reduction = event_rows(logits, target, event_dims)
    matrix = LatentMatrix(logits, columns)
    log_prob = empty_log_prob(logits, event_dims)
    if not logits.numel():
        return log_prob.zero_()
    target, data_rows = target_rows(target, target_max, logits, columns)
    logits, logits_rows = matrix.strided("logits", logits)
    _core.bernoulli_forward(
        matrix.code,
        matrix.rows,
        matrix.columns,
        logits_rows,
        data_rows,
        (KL_CODES[reduction], (log_prob.data_ptr(), 0)),
        torch.get_num_threads(),
    )
    return log_prob


@kernel(schema.bernoulli_log_prob_backward, "CPU")
def bernoulli_log_prob_backward(
    grad: Tensor, logits: Tensor, target: Tensor, target_max: int, event_dims: int
) -> Tensor:
    """The gradient with respect to the logits, in one pass."""
    grad_logits = torch.empty_like(logits, memory_format=torch.contiguous_format)
    if logits.numel():
        columns, reduction = event_rows(logits, target, event_dims)
        matrix = LatentMatrix(logits, columns)
        target, data_rows = target_rows(target, target_max, logits, columns)
        logits, logits_rows = matrix.strided("logits", logits)
        grad, grad_rows = matrix.strided_grad_kl(grad, reduction)
        _core.bernoulli_backward(
            matrix.code,
            matrix.rows,
            matrix.columns,
            logits_rows,
            data_rows,
            (KL_CODES[reduction], grad_rows),
            grad_logits.data_ptr(),
            torch.get_num_threads(),
        )
    return grad_logits
