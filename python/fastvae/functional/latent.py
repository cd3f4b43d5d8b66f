"""The latent step: sampling and the KL."""

from __future__ import annotations

import math
import numbers
from typing import Literal, TypeAlias

from torch import Tensor

from fastvae.ops import gaussian_kl as _gaussian_kl
from fastvae.ops import reparametrize as _reparametrize
from fastvae.ops import reparametrize_kl as _reparametrize_kl
from fastvae.ops.layout import rows_columns
from fastvae.ops.library import Route, applied, raw, route
from fastvae.ops.noise.seed import Seed, seed_tensor
from fastvae.ops.validation import (
    as_integer,
    check_floating,
    check_latent_arguments,
    describe,
    promote,
)

__all__ = ["Reduction", "gaussian_kl", "reparametrize", "reparametrize_kl"]

Reduction: TypeAlias = Literal["sample", "none", "dimension", "sum", "mean", "batchmean"]
"""How a KL is reduced; see :func:`gaussian_kl`."""

_REDUCTIONS = {
    "sample": "sample",
    "none": "none",
    "sum": "sum",
    "mean": "sum",
    "batchmean": "sum",
    "dimension": "dimension",
}


def reparametrize(
    mu: Tensor,
    logvar: Tensor,
    *,
    seed: Seed = None,
    draw: int = 0,
    row_offset: int = 0,
    event_dims: int = 1,
) -> Tensor:
    r"""Sample ``z = mu + exp(logvar / 2) * eps`` with ``eps ~ N(0, I)``, so that gradients flow.

    The noise of an element is a pure function of ``(seed, draw, row, column)`` (docs/noise.md): it does not
    change with the batch, the threads, the strides, the dtype or the device, and backward draws it again
    instead of storing it.

    Parameters
    ----------
    mu, logvar : Tensor
        Mean and natural logarithm of the variance, shape ``(..., *event)``, any strides; both float32,
        float64, bfloat16 or float16.
    seed : int, int64 tensor, torch.Generator or None
        The 64-bit key of the noise. By default drawn from torch's generator of the device, so
        ``torch.manual_seed`` governs it. Under ``torch.vmap`` one given seed gives every example the noise it
        would get alone, that is the same; map over seeds for other noise in each.
    draw : int
        Number of the draw in [0, 2^32): other draws of one seed are independent.
    row_offset : int
        Row number of the first row. A batch that is split at row ``k`` gets the same noise when its second
        part is called with ``row_offset=k``.
    event_dims : int
        How many trailing axes form one row of the noise.

    Returns
    -------
    Tensor
        z, contiguous, with the shape and dtype of ``mu``. In float32 on the CPU it is within two units in the
        last place of the larger of ``|mu|`` and ``|sigma * eps|``; where the two cancel, no format can do
        better.

    Raises
    ------
    TypeError
        For something that is no dense floating-point tensor, or for two dtypes outside autocast.
    ValueError
        For shapes or devices that differ, and for numbers out of range.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, equations 4 and 10.
    """
    mu, logvar, event_dims, draw, row_offset = check_latent_arguments(
        "reparametrize", mu, logvar, event_dims, draw, row_offset
    )
    arguments = (mu, logvar, seed_tensor(seed, mu.device), draw, row_offset, event_dims)
    match route(mu, logvar):
        case Route.RAW:
            return raw(_reparametrize.schema.reparametrize, *arguments)
        case Route.FUNCTION:
            return applied(_reparametrize.autograd.Reparametrize, *arguments)
        case Route.REFERENCE:
            return _reparametrize.reference.reparametrize(*arguments)


def gaussian_kl(
    mu: Tensor,
    logvar: Tensor,
    prior_mu: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    *,
    event_dims: int = 1,
    reduction: Reduction = "sample",
    free_bits: float = 0.0,
    group_size: int = 1,
) -> Tensor:
    r"""KL divergence of ``q = N(mu, exp(logvar))`` from a Gaussian prior, in nats.

    ``KL(q || p) = 1/2 sum(exp(l - k) - 1 - (l - k) + (mu - prior_mu)^2 exp(-k))`` with ``l = logvar`` and
    ``k = prior_logvar``. For logvars in [-20, 20] it is within 1e-6 of the truth, also where the textbook
    form cancels, and so are its gradients (that of ``prior_logvar`` relative to its two terms, which may
    cancel). It is never negative.

    Parameters
    ----------
    mu, logvar : Tensor
        Shape ``(..., *event)``; both float32, float64, bfloat16 or float16.
    prior_mu, prior_logvar : Tensor, optional
        The prior, of the same dtype, broadcast to the shape of ``mu``; zeros (the standard normal) where not
        given. Gradients reach a given one.
    event_dims : int
        How many trailing axes form one latent.
    reduction : str
        ``"sample"``: summed over the event, shape ``mu.shape[:-event_dims]``;
        ``"none"``: one value per dimension, shape of ``mu``;
        ``"dimension"``: averaged over the latents, shape ``mu.shape[-event_dims:]``: what each dimension
        carries, and what :func:`fastvae.objectives.free_bits` takes;
        ``"sum"``: the sum of everything, a scalar;
        ``"mean"``: that sum over the number of elements;
        ``"batchmean"``: that sum over the number of latents, the KL term of the ELBO.
        A sum above half the largest number of the dtype of the result is infinite, and its means with it.
    free_bits : float
        Floor in nats: a latent counts ``sum over groups of max(free_bits, KL of the group)``, and a group at
        or below the floor has no gradient. 0 is the KL itself. From the standard normal only, and not with
        ``"none"`` or ``"dimension"``.
    group_size : int
        Neighbouring dimensions of the flattened event that form a group; it divides their number.

    Returns
    -------
    Tensor
        float32, or float64 for float64 input.

    Raises
    ------
    TypeError
        For something that is no dense floating-point tensor, or for two dtypes outside autocast.
    ValueError
        For shapes or devices that differ, a prior that does not broadcast, an unknown reduction, or free bits
        that do not go with it.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix B;
    Kingma et al., "Improved Variational Inference with Inverse Autoregressive Flow", NeurIPS 2016, equation
    15, for free bits, here with the KL of each sample.
    """
    name = "gaussian_kl"
    mu, logvar, event_dims, _, _ = check_latent_arguments(name, mu, logvar, event_dims)
    kind = _check_reduction(name, reduction)
    floor = _check_free_bits(name, free_bits, group_size, mu, event_dims, reduction)
    if prior_mu is None and prior_logvar is None:
        match route(mu, logvar):
            case Route.RAW:
                kl = raw(_gaussian_kl.schema.gaussian_kl, mu, logvar, event_dims, kind, *floor)
            case Route.FUNCTION:
                kl = applied(_gaussian_kl.autograd.GaussianKL, mu, logvar, event_dims, kind, *floor)
            case Route.REFERENCE:
                kl = _gaussian_kl.reference.gaussian_kl(mu, logvar, event_dims, kind, *floor)
        return _scale(kl, mu, event_dims, reduction)
    if floor:
        raise ValueError(
            f"{name}: free_bits go with the standard normal prior; for another one take "
            'reduction="dimension" and fastvae.objectives.free_bits, or sum groups of reduction="none"'
        )
    tensors = _with_prior(name, mu, logvar, prior_mu, prior_logvar)
    match route(*tensors):
        case Route.RAW:
            kl = raw(_gaussian_kl.schema.gaussian_kl_prior, *tensors, event_dims, kind)
        case Route.FUNCTION:
            kl = applied(_gaussian_kl.autograd.GaussianKLPrior, *tensors, event_dims, kind)
        case Route.REFERENCE:
            kl = _gaussian_kl.reference.gaussian_kl_prior(*tensors, event_dims, kind)
    return _scale(kl, mu, event_dims, reduction)


def reparametrize_kl(
    mu: Tensor,
    logvar: Tensor,
    *,
    seed: Seed = None,
    draw: int = 0,
    row_offset: int = 0,
    event_dims: int = 1,
    reduction: Reduction = "sample",
    free_bits: float = 0.0,
    group_size: int = 1,
) -> tuple[Tensor, Tensor]:
    r"""Sample z and its KL from the standard normal in one pass over memory.

    The same values as :func:`reparametrize` and :func:`gaussian_kl`, which document the parameters.

    Returns
    -------
    z : Tensor
        Contiguous, with the shape and dtype of ``mu``.
    kl : Tensor
        In nats, float32 (float64 for float64 input), reduced as :func:`gaussian_kl` says: by default of shape
        ``mu.shape[:-event_dims]``.

    Raises
    ------
    TypeError, ValueError
        As :func:`reparametrize` and :func:`gaussian_kl`.
    """
    name = "reparametrize_kl"
    mu, logvar, event_dims, draw, row_offset = check_latent_arguments(
        name, mu, logvar, event_dims, draw, row_offset
    )
    arguments = (
        mu,
        logvar,
        seed_tensor(seed, mu.device),
        draw,
        row_offset,
        event_dims,
        _check_reduction(name, reduction),
        *_check_free_bits(name, free_bits, group_size, mu, event_dims, reduction),
    )
    match route(mu, logvar):
        case Route.RAW:
            z, kl = raw(_reparametrize_kl.schema.reparametrize_kl, *arguments)
        case Route.FUNCTION:
            z, kl = applied(_reparametrize_kl.autograd.ReparametrizeKL, *arguments)
        case Route.REFERENCE:
            z, kl = _reparametrize_kl.reference.reparametrize_kl(*arguments)
    return z, _scale(kl, mu, event_dims, reduction)


def _check_reduction(name: str, reduction: str) -> str:
    try:
        return _REDUCTIONS[reduction]
    except (KeyError, TypeError):
        choices = ", ".join(repr(choice) for choice in _REDUCTIONS)
        raise ValueError(f"{name}: reduction must be one of {choices}, got {reduction!r}") from None


def _check_free_bits(
    name: str, free_bits: float, group_size: int, mu: Tensor, event_dims: int, reduction: str
) -> tuple[float, int] | tuple[()]:
    """The arguments that an operator takes for free bits: none where nothing is free."""
    if type(free_bits) is float and not free_bits and type(group_size) is int and group_size == 1:
        return ()  # as it nearly always is
    if group_size != 1 or isinstance(group_size, bool | float):
        group_size = as_integer(name, "group_size", group_size)
        columns = rows_columns(mu.shape, event_dims)[1]
        if group_size < 1 or columns % group_size:
            raise ValueError(
                f"{name}: group_size must divide the {columns} dimensions of a latent, got {group_size}"
            )
    floor = _as_number(name, free_bits)
    if not 0 <= floor < math.inf:
        raise ValueError(f"{name}: free_bits must be a finite number of nats, at least 0, got {free_bits}")
    if floor and reduction in {"none", "dimension"}:
        raise ValueError(
            f"{name}: free_bits count sums over groups of a latent: they go with reduction 'sample', 'sum', "
            f"'mean' or 'batchmean', got {reduction!r}"
            + ("; see fastvae.objectives.free_bits" if reduction == "dimension" else "")
        )
    return (floor, group_size) if floor else ()


def _as_number(name: str, free_bits: object) -> float:
    if isinstance(free_bits, bool) or not isinstance(free_bits, numbers.Real):
        raise TypeError(f"{name}: free_bits must be a number, got {describe(free_bits)}")
    return float(free_bits)


def _scale(kl: Tensor, mu: Tensor, event_dims: int, reduction: str) -> Tensor:
    """Turn the operator's sum into a mean where one was asked for."""
    if reduction == "mean":
        return kl / mu.numel()
    if reduction in {"batchmean", "dimension"}:
        return kl / rows_columns(mu.shape, event_dims)[0]
    return kl


def _with_prior(
    name: str, mu: Tensor, logvar: Tensor, prior_mu: Tensor | None, prior_logvar: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four tensors of a KL from a given prior, the prior expanded to the shape of the latent."""
    if prior_mu is None:
        prior_mu = mu.new_zeros(())
    if prior_logvar is None:
        prior_logvar = mu.new_zeros(())
    check_floating(name, prior_mu=prior_mu, prior_logvar=prior_logvar)
    mu, logvar, prior_mu, prior_logvar = promote(
        name, mu=mu, logvar=logvar, prior_mu=prior_mu, prior_logvar=prior_logvar
    )
    expanded = []
    for label, prior in (("prior_mu", prior_mu), ("prior_logvar", prior_logvar)):
        try:
            expanded.append(prior.expand(mu.shape))
        except RuntimeError:
            raise ValueError(
                f"{name}: {label} of shape {tuple(prior.shape)} does not broadcast to mu of shape "
                f"{tuple(mu.shape)}"
            ) from None
    return mu, logvar, expanded[0], expanded[1]
