"""The likelihood step: the log-probability of the data under what a decoder gives."""

from __future__ import annotations

import numbers
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from fastvae.ops import bernoulli_log_prob as _bernoulli_log_prob
from fastvae.ops import gaussian_log_prob as _gaussian_log_prob
from fastvae.ops.layout import OPMATH
from fastvae.ops.library import Route, applied, raw, route
from fastvae.ops.observed import check_target
from fastvae.ops.validation import check_event_dims, check_floating, describe, promote

__all__ = ["bernoulli_log_prob", "gaussian_log_prob"]


def bernoulli_log_prob(
    logits: Tensor,
    target: Tensor,
    *,
    target_max: SupportsIndex | None = None,
    event_dims: int = 1,
) -> Tensor:
    r"""Log-probability of ``target`` under independent Bernoulli variables, in nats, summed over the event.

    ``log p = sum(x log sigmoid(l) + (1 - x) log sigmoid(-l))``, computed as ``-(|l| w + log(1 + exp(-|l|)))``
    with ``w = 1 - x`` for ``l > 0`` and ``x`` elsewhere: two terms that are never negative, so that nothing
    cancels. Every element's is within 1e-6 of the truth (relative, float32, for every logit), and so are the
    sums. A value between 0 and 1 is taken as the expectation of a binary one: minus the cross-entropy.

    Parameters
    ----------
    logits : Tensor
        Shape ``(..., *event)``, any strides; float32, float64, bfloat16 or float16. ``+inf`` is certain of 1:
        the log-probability is then 0 where ``x`` is 1, and ``-inf`` elsewhere.
    target : Tensor
        The data, of the shape of the trailing axes of ``logits``, at least the event's. It is shared by the
        leading axes that it lacks (importance samples, ``(K, B, *event)`` against ``(B, *event)``), without a
        copy. It is uint8, read as bytes and taken over ``target_max``; bool; or floating, with values in
        [0, 1] (they are not checked) and converted to the arithmetic's dtype. Gradients reach a floating one.
    target_max : int, optional
        What stands for 1 in a uint8 target: 255 for pixels, 1 for zeros and ones. Not for other dtypes.
    event_dims : int
        How many trailing axes form one sample: 1 for a vector, 3 for a ``(B, C, H, W)`` image.

    Returns
    -------
    Tensor
        Shape ``logits.shape[:-event_dims]``, float32, or float64 for float64 logits.

    Raises
    ------
    TypeError
        For something that is no dense tensor of these dtypes.
    ValueError
        For a target of another shape or device, or a ``target_max`` that is missing or does not fit.

    Notes
    -----
    The gradient is ``x - sigmoid(l)``, without the cancellation of ``1 - sigmoid(l)``. Logits and target are
    all that is kept for it.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix C.1, equation 11.

    Examples
    --------
    >>> import torch
    >>> from fastvae import functional as F
    >>> pixels = torch.tensor([[0, 255, 128]], dtype=torch.uint8)
    >>> logits = torch.zeros(5, 1, 3)  # five samples of the code
    >>> F.bernoulli_log_prob(logits, pixels, target_max=255).shape
    torch.Size([5, 1])
    """
    name = "bernoulli_log_prob"
    check_floating(name, logits=logits)
    event_dims = check_event_dims(name, logits.shape, event_dims)
    target, largest = check_target(name, target, target_max, "logits", logits, event_dims)
    arguments = (logits, target, largest, event_dims)
    match route(logits, target):
        case Route.RAW:
            return raw(_bernoulli_log_prob.schema.bernoulli_log_prob, *arguments)
        case Route.FUNCTION:
            return applied(_bernoulli_log_prob.autograd.BernoulliLogProb, *arguments)
        case Route.REFERENCE:
            return _bernoulli_log_prob.reference.bernoulli_log_prob(*arguments)


def gaussian_log_prob(
    mean: Tensor,
    logvar: Tensor | float,
    target: Tensor,
    *,
    target_max: SupportsIndex | None = None,
    event_dims: int = 1,
) -> Tensor:
    r"""Log-density of ``target`` under ``N(mean, exp(logvar))`` in nats, summed over the event.

    ``log p = -1/2 sum(logvar + (x - mean)^2 exp(-logvar) + log(2 pi))``, with every constant. The three terms
    may cancel; for logvars in [-80, 80] the error is within 1e-6 of the sum of their sizes (float32), as is
    that of each gradient.

    Parameters
    ----------
    mean : Tensor
        Shape ``(..., *event)``, any strides; float32, float64, bfloat16 or float16.
    logvar : Tensor or float
        Natural logarithm of the variance: of the shape of ``mean``, one for each value (predicted); of one
        element, one for all of them (learned); or a number (fixed). A tensor has the dtype of ``mean``; one
        of one element may also have the arithmetic's, float32 for a half-precision mean. Gradients reach a
        tensor.
    target : Tensor
        The data, of the shape of the trailing axes of ``mean``, at least the event's. It is shared by the
        leading axes that it lacks (importance samples, ``(K, B, *event)`` against ``(B, *event)``), without a
        copy. It is uint8, read as bytes and taken over ``target_max``; bool; or floating, with any values,
        and converted to the arithmetic's dtype. Gradients reach a floating one.
    target_max : int, optional
        What stands for 1 in a uint8 target: 255 for pixels, 1 for zeros and ones. Not for other dtypes.
    event_dims : int
        How many trailing axes form one sample: 1 for a vector, 3 for a ``(B, C, H, W)`` image.

    Returns
    -------
    Tensor
        Shape ``mean.shape[:-event_dims]``, float32, or float64 for a float64 mean.

    Raises
    ------
    TypeError
        For something that is no dense tensor of these dtypes, or for two dtypes outside autocast.
    ValueError
        For shapes or devices that do not fit, or a ``target_max`` that is missing or does not fit.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix C.2, equation 12;
    Rybkin, Daniilidis and Levine, "Simple and Effective VAE Training with Calibrated Decoders", ICML 2021,
    for the one learned variance.

    Examples
    --------
    >>> import torch
    >>> from fastvae import functional as F
    >>> F.gaussian_log_prob(torch.zeros(2, 4), 0.0, torch.zeros(2, 4))
    tensor([-3.6758, -3.6758])
    """
    name = "gaussian_log_prob"
    check_floating(name, mean=mean)
    event_dims = check_event_dims(name, mean.shape, event_dims)
    mean, logvar = _with_logvar(name, mean, logvar)
    target, largest = check_target(name, target, target_max, "mean", mean, event_dims)
    arguments = (mean, logvar, target, largest, event_dims)
    match route(mean, logvar, target):
        case Route.RAW:
            return raw(_gaussian_log_prob.schema.gaussian_log_prob, *arguments)
        case Route.FUNCTION:
            return applied(_gaussian_log_prob.autograd.GaussianLogProb, *arguments)
        case Route.REFERENCE:
            return _gaussian_log_prob.reference.gaussian_log_prob(*arguments)


def _with_logvar(name: str, mean: Tensor, logvar: Any) -> tuple[Tensor, Tensor]:
    """Mean and log-variance as the operator takes them: of one shape and dtype, or the latter one number."""
    opmath = OPMATH[mean.dtype]
    # Not the shape of the mean, whatever that is: it is by its shape that the operator knows the one for all.
    one = () if mean.dim() else (1,)
    if not isinstance(logvar, Tensor):
        if isinstance(logvar, bool) or not isinstance(logvar, numbers.Real):
            raise TypeError(f"{name}: logvar must be a tensor or a number, got {describe(logvar)}")
        if not abs(float(logvar)) <= torch.finfo(opmath).max:
            raise ValueError(f"{name}: a fixed logvar must be a finite number in {opmath}, got {logvar}")
        return mean, torch.full(one, float(logvar), dtype=opmath, device=mean.device)
    check_floating(name, logvar=logvar)
    if logvar.numel() == 1 and (logvar.shape != mean.shape or logvar.dtype is not mean.dtype):
        if logvar.device != mean.device or logvar.dtype not in {mean.dtype, opmath}:
            mean, logvar = promote(name, mean=mean, logvar=logvar)
        return mean, logvar.to(OPMATH[mean.dtype]).reshape(one)
    if logvar.shape != mean.shape:
        raise ValueError(
            f"{name}: logvar must have the shape of mean, {tuple(mean.shape)}, or one element, got "
            f"{tuple(logvar.shape)}; expand it if a shared value is meant"
        )
    mean, logvar = promote(name, mean=mean, logvar=logvar)
    return mean, logvar
