"""The Bernoulli log-probability in plain torch operations: it defines what is correct.

With x the value, l the logit and w the weight of the side that the logit is against (1 - x for l > 0, else
x), -log p = |l| w + log(1 + e^-|l|): two terms that are never negative, so nothing cancels, however large the
logit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastvae.ops.bernoulli_log_prob import schema
from fastvae.ops.layout import OPMATH
from fastvae.ops.library import kernel
from fastvae.ops.observed import spread, sum_event, sum_to_target


def sides(logits: Tensor, target: Tensor, target_max: int) -> tuple[Tensor, Tensor, Tensor]:
    """Where the logit is positive, its size, and the weight that is against it."""
    opmath = OPMATH[logits.dtype]
    logit, x = logits.to(opmath), target.to(opmath)
    positive = logit > 0
    # In integers first: 1 - 254/255 would be rounded twice. And no `abs`, whose derivative at 0 is 0.
    against = torch.where(positive, target_max - x, x)
    if target_max != 1:
        against = against / target_max
    return positive, torch.where(positive, logit, -logit), against


@kernel(schema.bernoulli_log_prob, "CompositeExplicitAutograd")
def bernoulli_log_prob(logits: Tensor, target: Tensor, target_max: int, event_dims: int) -> Tensor:
    """Log-probability, x log p + (1 - x) log(1 - p), in nats, summed over the event."""
    _, size, against = sides(logits, target, target_max)
    # Where nothing is against it, an infinite logit costs nothing.
    counted = torch.where((against == 0) & size.isinf(), 0.0, size)
    return sum_event(0.0 - (counted * against + torch.log1p((-size).exp())), event_dims)


@kernel(schema.bernoulli_log_prob_backward, "CompositeExplicitAutograd")
def bernoulli_log_prob_backward(
    grad: Tensor, logits: Tensor, target: Tensor, target_max: int, event_dims: int
) -> Tensor:
    """The gradient with respect to the logits, x - sigmoid(l)."""
    positive, size, against = sides(logits, target, target_max)
    upward = torch.sigmoid(-size) - against
    slope = torch.where(positive, upward, -upward)
    return (spread(grad, event_dims) * slope).to(logits.dtype).contiguous()


def target_grad(grad: Tensor, logits: Tensor, target: Tensor, event_dims: int) -> Tensor:
    """The gradient with respect to a floating target, the logit."""
    return sum_to_target(spread(grad, event_dims) * logits.to(target.dtype), target)
