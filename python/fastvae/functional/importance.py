"""Importance sampling: many samples of one posterior, and what each of them weighs."""

from __future__ import annotations

from torch import Tensor

from fastvae.ops import reparametrize_log_weight as _reparametrize_log_weight
from fastvae.ops.library import Route, applied, raw, route
from fastvae.ops.noise.seed import Seed, seed_tensor
from fastvae.ops.validation import as_integer, check_latent_arguments

__all__ = ["reparametrize_log_weight"]


def reparametrize_log_weight(
    mu: Tensor,
    logvar: Tensor,
    *,
    num_samples: int,
    seed: Seed = None,
    draw: int = 0,
    row_offset: int = 0,
    event_dims: int = 1,
) -> tuple[Tensor, Tensor]:
    r"""Sample z several times and give ``log p(z) - log q(z | x)`` of each, in one pass.

    With ``p = N(0, I)``, ``q = N(mu, exp(logvar))`` and ``z = mu + exp(logvar / 2) * eps`` the logarithm of
    the importance weight is ``1/2 sum(eps^2 + logvar - z^2)``, computed so that nothing cancels where q is
    near p. Add log p(x | z) to it for the weight in
    :func:`fastvae.objectives.iwae_bound`.

    Backward draws the noise again: it needs the memory of ``mu``, not that of the samples.

    Parameters
    ----------
    mu, logvar : Tensor
        Mean and natural logarithm of the variance, shape ``(..., *event)``, any strides; both float32,
        float64, bfloat16 or float16.
    num_samples : int
        K, the number of samples, at least 1.
    seed, row_offset, event_dims
        As :func:`~fastvae.functional.reparametrize` has them.
    draw : int
        Number of the first draw: sample ``k`` takes draw ``draw + k``, so many samples can be made a part at
        a time. ``draw + num_samples`` is at most 2^32.

    Returns
    -------
    z : Tensor
        ``(K, *mu.shape)``, contiguous, in the dtype of ``mu``: ``z[k]`` is bit for bit
        ``reparametrize(mu, logvar, seed=seed, draw=draw + k)``.
    log_weight : Tensor
        In nats, ``(K, *mu.shape[:-event_dims])``, float32, or float64 for float64 input. It belongs to z
        before it is rounded to a half precision.

    Raises
    ------
    TypeError
        For something that is no dense floating-point tensor, or for two dtypes outside autocast.
    ValueError
        For shapes or devices that differ, and for numbers out of range.

    References
    ----------
    Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, equation 8.
    """
    name = "reparametrize_log_weight"
    mu, logvar, event_dims, draw, row_offset = check_latent_arguments(
        name, mu, logvar, event_dims, draw, row_offset
    )
    num_samples = _check_samples(name, num_samples, draw)
    arguments = (mu, logvar, seed_tensor(seed, mu.device), draw, row_offset, event_dims, num_samples)
    match route(mu, logvar):
        case Route.RAW:
            return raw(_reparametrize_log_weight.schema.reparametrize_log_weight, *arguments)
        case Route.FUNCTION:
            return applied(_reparametrize_log_weight.autograd.ReparametrizeLogWeight, *arguments)
        case Route.REFERENCE:
            return _reparametrize_log_weight.reference.reparametrize_log_weight(*arguments)


def _check_samples(name: str, num_samples: int, draw: int) -> int:
    count = as_integer(name, "num_samples", num_samples)
    if count < 1:
        raise ValueError(f"{name}: num_samples must be at least 1, got {num_samples}")
    if draw + count > 2**32:
        raise ValueError(
            f"{name}: draw + num_samples must be at most 2^32, got {draw} + {count}; another seed has as "
            "many draws again"
        )
    return count
