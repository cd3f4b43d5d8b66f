"""What a model is, in plain values that a file can hold, and how it is built from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from torch import nn

from fastvae.models.likelihoods import LIKELIHOODS, Likelihood
from fastvae.models.presets import PRESETS
from fastvae.models.vae import VAE

__all__ = ["ModelSpec", "build_model", "check_parts", "named"]

T = TypeVar("T")


@dataclass(frozen=True)
class ModelSpec:
    """A model without its weights.

    Attributes
    ----------
    input_shape : tuple of int
        Shape of one sample.
    latent_dim : int
        Number of codes.
    preset : str
        Name of the networks; see :data:`fastvae.models.PRESETS`.
    hidden_dims : tuple of int or None
        Hidden sizes of the preset; None is its default.
    likelihood : str
        Name of the likelihood; see :data:`fastvae.models.LIKELIHOODS`.
    variance : str, float or None
        Variance of a Gaussian likelihood; None for others.
    variational : bool
        False for a plain autoencoder.
    custom : tuple of str
        Which of ``"encoder"``, ``"decoder"`` and ``"likelihood"`` are modules of the user's own, which no
        file can describe.
    """

    input_shape: tuple[int, ...]
    latent_dim: int
    preset: str = "mlp"
    hidden_dims: tuple[int, ...] | None = None
    likelihood: str = "bernoulli"
    variance: str | float | None = None
    variational: bool = True
    custom: tuple[str, ...] = ()


def build_model(
    spec: ModelSpec,
    *,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    likelihood: Likelihood | None = None,
) -> VAE:
    """Build a model with fresh weights, drawn from torch's generator as torch's layers do.

    Parameters
    ----------
    spec : ModelSpec
    encoder, decoder, likelihood : nn.Module, optional
        The user's own, for exactly the parts the spec calls custom.

    Raises
    ------
    TypeError
        If a given part is no module.
    ValueError
        If a part is missing or one too many, for an unknown name, or for data the preset cannot take.
    """
    check_parts(spec, {"encoder": encoder, "decoder": decoder, "likelihood": likelihood})
    if likelihood is None:
        factory = named(LIKELIHOODS, "likelihood", spec.likelihood)
        likelihood = factory() if spec.variance is None else factory(spec.variance)
    if encoder is None or decoder is None:
        preset = named(PRESETS, "model", spec.preset)
        networks = preset(
            spec.input_shape, spec.latent_dim, maps=likelihood.maps, hidden_dims=spec.hidden_dims
        )
        encoder = networks.encoder if encoder is None else encoder
        decoder = networks.decoder if decoder is None else decoder
    return VAE(
        encoder,
        decoder,
        likelihood,
        latent_dim=spec.latent_dim,
        input_shape=spec.input_shape,
        variational=spec.variational,
    )


def check_parts(spec: ModelSpec, given: Mapping[str, object]) -> None:
    """Raise unless the given modules, by part, are exactly the parts the spec calls custom.

    Raises
    ------
    TypeError
        If a given part is no module.
    ValueError
        If a part is missing or one too many.
    """
    for part, module in given.items():
        custom = part in spec.custom
        if module is None and custom:
            raise ValueError(
                f"this model was trained with {_article(part)} {part} of your own, which no file can hold: "
                f"build it as it was for training and pass {part}="
            )
        if module is not None and not custom:
            raise ValueError(f"this model has the built-in {part}: leave {part}= out")
        kind = Likelihood if part == "likelihood" else nn.Module
        if module is not None and not isinstance(module, kind):
            hint = (
                f"; pass an object, {module.__name__}(...), not the class" if isinstance(module, type) else ""
            )
            raise TypeError(
                f"{part} must be {_article(kind.__name__)} {kind.__name__}, got {type(module).__name__}{hint}"
            )


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def named(table: Mapping[str, T], option: str, name: str) -> T:
    """Look up the value of an option, or raise a ``ValueError`` that lists what there is."""
    if name not in table:
        raise ValueError(f"{option} must be one of {', '.join(map(repr, table))}, got {name!r}")
    return table[name]
