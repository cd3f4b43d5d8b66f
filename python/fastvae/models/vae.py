"""The variational autoencoder: two networks, a latent between them, a likelihood behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, overload

import torch
from torch import Tensor, nn

from fastvae import functional
from fastvae.models.likelihoods import Likelihood
from fastvae.noise import Seed

__all__ = ["VAE", "FlooredTerms", "Terms", "without_ones"]


class Terms(NamedTuple):
    """The two terms of the evidence lower bound, per sample, in nats."""

    recon: Tensor
    """log p(x | z), shape (B,)."""
    kl: Tensor
    """KL(q(z | x) || p(z)) from the standard normal, summed over the codes, shape (B,)."""


class FlooredTerms(NamedTuple):
    """The terms of the bound, and the KL that training with free bits puts in its place."""

    recon: Tensor
    """log p(x | z), shape (B,)."""
    kl: Tensor
    """The true KL, shape (B,), to be reported: it has no gradient."""
    floored_kl: Tensor
    """The KL with each code's free bits counted at least, shape (B,), to be trained on."""


for _terms in (Terms, FlooredTerms):
    # Without, what torch.export makes of a model cannot be saved. Not public in torch, so it may go.
    if register := getattr(torch.utils._pytree, "_register_namedtuple", None):
        register(_terms, serialized_type_name=f"fastvae.{_terms.__name__}")


class VAE(nn.Module):
    """A variational autoencoder over any two modules.

    Parameters
    ----------
    encoder : nn.Module
        From x, ``(B, *input_shape)``, to either one tensor ``(B, 2 * latent_dim)``, the mean and the
        log-variance side by side, or the pair ``(mu, logvar)``, ``(B, latent_dim)`` each. Without
        ``variational`` it may also give only ``(B, latent_dim)``.
    decoder : nn.Module
        From z, ``(B, latent_dim)``, to the likelihood's parameters: ``(B, *input_shape)``, or
        ``(B, 2, *input_shape)`` or a pair where the likelihood needs two per value; each may also be flat,
        ``(B, values)``, and axes of size one do not matter. For Bernoulli these are logits, for Gaussian
        means, of any size: no sigmoid at the end.
    likelihood : Likelihood
        What the decoder's output means.
    latent_dim : int
        Number of codes.
    input_shape : sequence of int
        Shape of one sample.
    variational : bool
        Without, the model is a plain autoencoder, its zero-variance case: z is the mean, the log-variance is
        not used and the KL is reported as 0.

    Raises
    ------
    TypeError
        If ``likelihood`` is none.

    References
    ----------
    Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, section 3.
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: Likelihood,
        *,
        latent_dim: int,
        input_shape: Sequence[int],
        variational: bool = True,
    ) -> None:
        super().__init__()
        if not isinstance(likelihood, Likelihood):
            raise TypeError(
                f"likelihood must be a Likelihood, such as fastvae.models.Bernoulli(), got {likelihood!r}"
            )
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.latent_dim = latent_dim
        self.input_shape = tuple(input_shape)
        self.variational = variational

    @overload
    def forward(self, x: Tensor, seed: Seed = None, row_offset: int = 0) -> Terms: ...

    @overload
    def forward(
        self, x: Tensor, seed: Seed = None, row_offset: int = 0, *, free_bits: float
    ) -> Terms | FlooredTerms: ...

    def forward(
        self, x: Tensor, seed: Seed = None, row_offset: int = 0, *, free_bits: float = 0.0
    ) -> Terms | FlooredTerms:
        """The terms of the bound for a batch, with one sample of the code each.

        Parameters
        ----------
        x : Tensor
            float32, ``(B, *input_shape)``.
        seed : int, int64 tensor, torch.Generator or None
            The 64-bit key of the latent noise; see :func:`fastvae.functional.reparametrize`.
        row_offset : int
            Row of the noise that the first sample takes.
        free_bits : float
            Floor of the KL of each code of each sample, in nats; see
            :func:`fastvae.functional.reparametrize_kl`.

        Returns
        -------
        Terms or FlooredTerms
            ``recon`` and ``kl``, ``(B,)`` each, in nats; the bound is their difference. With free bits also
            ``floored_kl``, to be trained on in place of ``kl``.

        Raises
        ------
        ValueError
            If a network's output does not have the shape it needs.
        """
        mu, logvar = self.posterior(x)
        if not (free_bits and self.variational):
            return self.terms(x, mu, logvar, seed, row_offset)
        z, floored_kl = functional.reparametrize_kl(
            mu, logvar, seed=seed, row_offset=row_offset, free_bits=free_bits
        )
        # Another pass over the few numbers of a latent, and no floor in what is reported.
        kl = functional.gaussian_kl(mu.detach(), logvar.detach())
        return FlooredTerms(self.likelihood.log_prob(self.parameters_of(z), x), kl, floored_kl)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x), ``(B, latent_dim)`` each."""
        encoded = self.encoder(x)
        # Not `len(x)`, a number that would be exported in place of a batch of any size.
        if isinstance(encoded, Tensor):
            if not self.variational and encoded.shape == (x.shape[0], self.latent_dim):
                return encoded, torch.zeros_like(encoded)
            if encoded.shape == (x.shape[0], 2 * self.latent_dim):
                mu, logvar = encoded.chunk(2, -1)
                return mu, logvar
        elif isinstance(encoded, tuple | list) and len(encoded) == 2:
            mu, logvar = encoded
            if all(isinstance(p, Tensor) and p.shape == (x.shape[0], self.latent_dim) for p in encoded):
                return mu, logvar
        raise ValueError(self._encoder_mismatch(encoded, x.shape[0]))

    def terms(self, x: Tensor, mu: Tensor, logvar: Tensor, seed: Seed = None, row_offset: int = 0) -> Terms:
        """The terms of the bound for a posterior already at hand; see :meth:`forward`."""
        if self.variational:
            z, kl = functional.reparametrize_kl(mu, logvar, seed=seed, row_offset=row_offset)
        else:
            z, kl = mu, mu.new_zeros(len(mu), dtype=torch.promote_types(mu.dtype, torch.float32))
        return Terms(self.likelihood.log_prob(self.parameters_of(z), x), kl)

    def parameters_of(self, z: Tensor) -> Tensor:
        """Decode codes ``(B, latent_dim)`` to the likelihood's parameters, in their full shape."""
        decoded = self.decoder(z)
        maps = self.likelihood.maps
        per_sample = self.input_shape if maps == 1 else (maps, *self.input_shape)
        if isinstance(decoded, Tensor) and decoded.shape == (z.shape[0], *per_sample):
            return decoded
        flat = (math.prod(per_sample),)
        if isinstance(decoded, tuple | list) and len(decoded) == maps == 2:
            decoded = torch.stack([map_.reshape(z.shape[0], *self.input_shape) for map_ in decoded], 1)
        if isinstance(decoded, Tensor) and decoded.shape[:1] == (z.shape[0],):
            given = without_ones(decoded.shape[1:])
            if given in {without_ones(per_sample), without_ones(flat)}:
                return decoded.reshape(z.shape[0], *per_sample)
        expected = " or ".join(dict.fromkeys((_batched(per_sample), _batched(flat))))
        raise ValueError(
            f"the decoder must give a tensor of shape {expected} for the {self.likelihood.name} "
            f"likelihood, got {_describe(decoded, z.shape[0])}"
        )

    def encode(self, x: Tensor) -> Tensor:
        """The mean codes of a batch: ``(B, latent_dim)``."""
        return self.posterior(x)[0]

    def decode(self, z: Tensor) -> Tensor:
        """The expected samples for codes ``(B, latent_dim)``: ``(B, *input_shape)``."""
        return self.likelihood.mean(self.parameters_of(z))

    def extra_repr(self) -> str:
        """What is shown when the model is printed."""
        return f"latent_dim={self.latent_dim}, input_shape={self.input_shape}, variational={self.variational}"

    def _encoder_mismatch(self, encoded: object, batch: int) -> str:
        hint = ""
        if isinstance(encoded, Tensor) and encoded.dim() == 2 and len(encoded) == batch:
            width = encoded.shape[1]
            if width and width % 2 == 0:
                hint = f"; pass latent_dim={width // 2} if those are {width // 2} means and log-variances"
        elif isinstance(encoded, tuple | list) and len(encoded) == 2:
            mu, logvar = encoded
            both = isinstance(mu, Tensor) and isinstance(logvar, Tensor) and mu.shape == logvar.shape
            if both and mu.dim() == 2 and len(mu) == batch:
                hint = f"; pass latent_dim={mu.shape[1]} if those are means and log-variances"
        return (
            f"the encoder must give a tensor of shape (B, {2 * self.latent_dim}), mean and log-variance side "
            f"by side, or a pair of (B, {self.latent_dim}) for latent_dim={self.latent_dim}, got "
            f"{_describe(encoded, batch)}{hint}"
        )


def without_ones(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without its axes of size one: they are a matter of taste."""
    return tuple(size for size in shape if size != 1)


def _batched(shape: Sequence[int]) -> str:
    return f"(B, {', '.join(map(str, shape))})"


def _describe(output: object, batch: int) -> str:
    if isinstance(output, Tensor):
        right = output.shape[:1] == (batch,)
        return f"shape {_batched(output.shape[1:]) if right else tuple(output.shape)}"
    if isinstance(output, tuple | list):
        return f"a {type(output).__name__} of {', '.join(_describe(part, batch) for part in output)}"
    return type(output).__name__
