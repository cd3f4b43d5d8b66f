"""What a decoder's numbers mean: the probability of the data given the code.

A likelihood reads a decoder's output (its *parameters*), of shape ``(B, *shape)`` or, where it needs two
numbers per value, ``(B, 2, *shape)``, and gives log-probabilities in nats with every constant included.
"""

from __future__ import annotations

import abc
import math
import numbers
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastvae import functional, noise
from fastvae.noise import Seed

__all__ = ["LIKELIHOODS", "Bernoulli", "Gaussian", "Likelihood"]


class Likelihood(nn.Module, abc.ABC):
    """The distribution of a sample given the decoder's output.

    A new one is a subclass with the methods below, and a line in :data:`LIKELIHOODS` to have a name.

    Attributes
    ----------
    name : str
        How :func:`fastvae.train` and a run's ``config.json`` call it.
    maps : int
        How many numbers per value the decoder has to give: 1 or 2.
    """

    name: str
    maps: int = 1

    @abc.abstractmethod
    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-probability of each sample in nats, summed over its axes.

        Parameters
        ----------
        params : Tensor
            The decoder's output, ``(..., B, *shape)``, or ``(..., B, 2, *shape)`` where ``maps`` is 2.
            Leading axes are samples of the code: ``(K, B, *shape)`` for K importance samples of each.
        x : Tensor
            The data, ``(B, *shape)``, shared by all samples of the code.

        Returns
        -------
        Tensor
            Shape ``(..., B)``: ``(B,)`` without leading axes, ``(K, B)`` with one.
        """

    @abc.abstractmethod
    def mean(self, params: Tensor) -> Tensor:
        """The expected sample: ``(B, *shape)``."""

    @abc.abstractmethod
    def sample(self, params: Tensor, seed: Seed = None, *, row_offset: int = 0) -> Tensor:
        """Draw one sample per row of ``params``: ``(B, *shape)``.

        The noise of row ``i`` is that of row ``row_offset + i`` of the seed, whatever the batch.
        """

    @abc.abstractmethod
    def check_range(self, low: float, high: float) -> None:
        """Raise a ``ValueError`` that says what to do unless data between ``low`` and ``high`` fits."""


class Bernoulli(Likelihood):
    """Independent Bernoulli variables; the decoder gives logits.

    Values between 0 and 1 (gray pixels) are taken as the expectation of a binary one: the log-probability is
    then minus the cross-entropy, ``x log p + (1 - x) log(1 - p)``.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix C.1, equation 11.
    """

    name = "bernoulli"

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Minus the cross-entropy in nats, ``(..., B)``; see :meth:`Likelihood.log_prob`."""
        return functional.bernoulli_log_prob(params, x, event_dims=x.dim() - 1)

    def mean(self, params: Tensor) -> Tensor:
        """The probabilities of a 1."""
        return params.sigmoid()

    def sample(self, params: Tensor, seed: Seed = None, *, row_offset: int = 0) -> Tensor:
        """Zeros and ones, float; see :meth:`Likelihood.sample`."""
        uniform = noise.uniform(
            params.shape, seed, row_offset=row_offset, event_dims=params.dim() - 1, device=params.device
        )
        return (uniform < params.sigmoid()).to(params.dtype)

    def check_range(self, low: float, high: float) -> None:
        """Raise a ``ValueError`` unless all values lie in [0, 1]."""
        if low < 0 or high > 1:
            raise ValueError(
                f"the Bernoulli likelihood needs values between 0 and 1, but the data lies between "
                f'{low:g} and {high:g}; rescale it to [0, 1], or use likelihood="gaussian" for real numbers'
            )


class Gaussian(Likelihood):
    """Independent Gaussian variables around the decoder's output, which is unbounded (no sigmoid).

    Parameters
    ----------
    variance : {"learned", "predicted"} or float
        ``"learned"``: one variance for all values, a parameter of the model (``log_variance``, 0 at first);
        ``"predicted"``: the decoder gives two maps, the mean and the log-variance of every value;
        a number: that variance, fixed.

    Raises
    ------
    TypeError, ValueError
        For another word, or a variance that is not a positive number.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, appendix C.2, equation 12;
    Rybkin, Daniilidis and Levine, "Simple and Effective VAE Training with Calibrated Decoders", ICML 2021,
    for the one learned variance.
    """

    name = "gaussian"

    log_variance: Tensor

    def __init__(self, variance: str | float = "learned") -> None:
        super().__init__()
        self.variance = _check_variance(variance)
        if self.variance == "predicted":
            self.maps = 2
        elif isinstance(self.variance, str):
            self.log_variance = nn.Parameter(torch.zeros(()))
        else:
            self.register_buffer("log_variance", torch.tensor(math.log(self.variance)))

    def log_prob(self, params: Tensor, x: Tensor) -> Tensor:
        """Log-density in nats, ``(..., B)``; see :meth:`Likelihood.log_prob`."""
        mean, log_variance = self._split(params, x.dim())
        return functional.gaussian_log_prob(mean, log_variance, x, event_dims=x.dim() - 1)

    def mean(self, params: Tensor) -> Tensor:
        """The means."""
        return self._split(params, params.dim() - 1)[0]

    def sample(self, params: Tensor, seed: Seed = None, *, row_offset: int = 0) -> Tensor:
        """Means plus Gaussian noise; see :meth:`Likelihood.sample`."""
        mean, log_variance = self._split(params, params.dim() - 1)
        normal = noise.normal(
            mean.shape, seed, row_offset=row_offset, event_dims=mean.dim() - 1, device=mean.device
        )
        return mean + (0.5 * log_variance).exp() * normal

    def check_range(self, low: float, high: float) -> None:
        """Take any numbers: also those of an outlier."""

    def extra_repr(self) -> str:
        """What is shown when the model is printed."""
        return f"variance={self.variance!r}"

    def _split(self, params: Tensor, dims: int) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, of which the data has this many axes, the batch among them."""
        if self.maps == 2:
            mean, log_variance = params.unbind(-dims)
            return mean, log_variance
        return params, self.log_variance


LIKELIHOODS: dict[str, Callable[..., Likelihood]] = {"bernoulli": Bernoulli, "gaussian": Gaussian}
"""The likelihoods by name."""


def _check_variance(variance: object) -> str | float:
    if isinstance(variance, str):
        if variance in {"learned", "predicted"}:
            return variance
    elif isinstance(variance, bool) or not isinstance(variance, numbers.Real):
        raise TypeError(f'variance must be "learned", "predicted" or a number, got {type(variance).__name__}')
    else:
        number = float(variance)
        if math.isfinite(number) and number > 0:
            return number
    raise ValueError(f'variance must be "learned", "predicted" or a positive number, got {variance!r}')
