"""Encoder, latent and decoder with a likelihood; networks by name or any modules of your own."""

from fastvae.models.likelihoods import LIKELIHOODS, Bernoulli, Gaussian, Likelihood
from fastvae.models.presets import PRESETS, Networks
from fastvae.models.spec import ModelSpec, build_model
from fastvae.models.vae import VAE, FlooredTerms, Terms

__all__ = [
    "LIKELIHOODS",
    "PRESETS",
    "VAE",
    "Bernoulli",
    "FlooredTerms",
    "Gaussian",
    "Likelihood",
    "ModelSpec",
    "Networks",
    "Terms",
    "build_model",
]
