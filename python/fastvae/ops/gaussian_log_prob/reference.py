"""The Gaussian log-density in plain torch operations: it defines what is correct.

log N(x; m, e^k) = -1/2 (k + (x - m)^2 e^-k + log 2 pi) in nats.
"""

from __future__ import annotations

import math

from torch import Tensor

from fastvae.ops.gaussian_log_prob import schema
from fastvae.ops.layout import OPMATH
from fastvae.ops.library import kernel
from fastvae.ops.observed import spread, sum_event, sum_to_target

LOG_2PI = math.log(2 * math.pi)


def standardize(
    mean: Tensor, logvar: Tensor, target: Tensor, target_max: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The distance from the mean in standard deviations, one over that deviation, and the log-variance."""
    opmath = OPMATH[mean.dtype]
    k, x = logvar.to(opmath), target.to(opmath)
    if k.shape != mean.shape:
        k = k.reshape(())
    # The square of this would overflow half an exponent range earlier.
    inverse = (k * -0.5).exp()
    if target_max != 1:
        x = x / target_max
    return (x - mean.to(opmath)) * inverse, inverse, k


@kernel(schema.gaussian_log_prob, "CompositeExplicitAutograd")
def gaussian_log_prob(
    mean: Tensor, logvar: Tensor, target: Tensor, target_max: int, event_dims: int
) -> Tensor:
    """The log-density in nats, summed over the event."""
    scaled, _, k = standardize(mean, logvar, target, target_max)
    return sum_event(-0.5 * (scaled * scaled + (k + LOG_2PI)), event_dims)


@kernel(schema.gaussian_log_prob_backward, "CompositeExplicitAutograd")
def gaussian_log_prob_backward(
    grad: Tensor, mean: Tensor, logvar: Tensor, target: Tensor, target_max: int, event_dims: int
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to mean and logvar."""
    scaled, inverse, _ = standardize(mean, logvar, target, target_max)
    g = spread(grad, event_dims)
    of_logvar = 0.5 * g * (scaled * scaled - 1)
    if logvar.shape != mean.shape:
        of_logvar = of_logvar.sum().reshape(logvar.shape)
    return (g * scaled * inverse).to(mean.dtype).contiguous(), of_logvar.to(logvar.dtype).contiguous()


def target_grad(grad: Tensor, mean: Tensor, logvar: Tensor, target: Tensor, event_dims: int) -> Tensor:
    """The gradient with respect to a floating target: minus that of the mean."""
    scaled, inverse, _ = standardize(mean, logvar, target, 1)
    return sum_to_target(-spread(grad, event_dims) * scaled * inverse, target)
