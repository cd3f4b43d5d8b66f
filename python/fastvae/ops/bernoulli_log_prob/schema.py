"""Signatures and fake kernels of the Bernoulli log-probability.

``target`` is uint8 (its values are over ``target_max``), bool, or of the arithmetic's dtype; it lacks the
leading axes over which it is shared.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.library import define, fake
from fastvae.ops.observed import empty_log_prob

bernoulli_log_prob = define(
    "bernoulli_log_prob(Tensor logits, Tensor target, int target_max, int event_dims) -> Tensor"
)
bernoulli_log_prob_backward = define(
    "bernoulli_log_prob_backward(Tensor grad, Tensor logits, Tensor target, int target_max, int event_dims)"
    " -> Tensor"
)


@fake(bernoulli_log_prob)
def _(logits: Tensor, target: Tensor, target_max: int, event_dims: int) -> Tensor:
    del target, target_max
    return empty_log_prob(logits, event_dims)


@fake(bernoulli_log_prob_backward)
def _(grad: Tensor, logits: Tensor, target: Tensor, target_max: int, event_dims: int) -> Tensor:
    del grad, target, target_max, event_dims
    return torch.empty_like(logits, memory_format=torch.contiguous_format)
