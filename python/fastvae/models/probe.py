"""A dry run of a model, so that networks that do not fit the data fail before any work."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fastvae.models.likelihoods import Bernoulli
from fastvae.models.modes import eval_mode
from fastvae.models.vae import VAE

__all__ = ["check_networks"]

LARGEST_LOGVAR = 20.0
"""Of an encoder that is not trained yet. The KL holds exp of it, and so do the gradients: with data of a size
that gives more, Adam's averages of their squares stay so large, or infinite, that no weight moves again."""

SHAPING = ("View", "UnsafeView", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Permute", "Alias", "Clone")
"""How the names of the autograd nodes begin that change the shape of a tensor and nothing else."""


def check_networks(model: VAE, x: Tensor) -> None:
    """Pass a few samples through both networks once, and say what is wrong where that fails.

    Layers without a size yet (``nn.LazyLinear`` and the like) get it here. Leaves the mode of the model as it
    was; running statistics do not change.

    Parameters
    ----------
    model : VAE
    x : Tensor
        A batch on the model's device, ``(B, *input_shape)``, B at least 1.

    Raises
    ------
    ValueError
        If a network fails, an output does not have the shape it needs or is a probability in place of a
        logit, there is nothing to train, a layer is never reached and has no size, a weight to train was made
        in ``torch.inference_mode()``, or the data is so large that the variance of its codes could not be
        learned.
    """
    with eval_mode(model), torch.no_grad():
        _try("encoder", model.encoder, x, "start it with torch.nn.Flatten() if it takes vectors")
        mu, logvar = model.posterior(x)
        _try("decoder", model.decoder, mu, "its input is a batch of codes")
        params = model.parameters_of(mu)
        recon = model.likelihood.log_prob(params, x)
        if type(model.likelihood) is Bernoulli and ((params >= 0) & (params <= 1)).all():
            _refuse_sigmoid(model, mu)
    if recon.shape != (len(x),):
        raise ValueError(
            f"log_prob of the {model.likelihood.name} likelihood must give one number per sample, shape "
            f"({len(x)},), got {tuple(recon.shape)}"
        )
    largest = float(logvar.max())
    if model.variational and LARGEST_LOGVAR < largest < math.inf:  # an infinite one ends the first epoch
        raise ValueError(
            f"the encoder begins with a log-variance of {largest:.3g}, from where the variance of a code "
            f"cannot be learned; the first samples lie between {float(x.min()):g} and {float(x.max()):g}: "
            "standardise large data first, x = (x - x.mean(0)) / x.std(0), or begin with smaller weights"
        )
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"{name} has no size yet: no sample passes through its layer, take it out")
        if parameter.requires_grad and parameter.is_inference():
            raise ValueError(
                f"{name} was made in torch.inference_mode(), so no gradient can reach it: make the module "
                "outside"
            )
    networks = nn.ModuleList([model.encoder, model.decoder])
    if not any(parameter.requires_grad for parameter in networks.parameters()):
        raise ValueError("there is nothing to train: no parameter of the networks requires a gradient")


def _refuse_sigmoid(model: VAE, mu: Tensor) -> None:
    """Raise if the last operation of the decoder, but for its shape, is a sigmoid."""
    with torch.enable_grad():
        node = model.parameters_of(mu.detach().requires_grad_()).grad_fn
    while node is not None and any(node.name().startswith(shaping) for shaping in SHAPING):
        node = node.next_functions[0][0]
    if node is not None and node.name().startswith("SigmoidBackward"):
        raise ValueError(
            "the decoder ends in a sigmoid, and the Bernoulli likelihood takes logits and has the sigmoid "
            "itself: leave that of the decoder out"
        )


def _try(part: str, network: nn.Module, x: Tensor, hint: str) -> None:
    try:
        network(x)
    except Exception as error:  # whatever a module of the user's own may raise
        others = [
            p for p in network.parameters() if not is_lazy(p) and p.is_floating_point() and p.dtype != x.dtype
        ]
        if others:
            hint = f"its weights are {others[0].dtype}: module.to({x.dtype}) makes them fit"
        raise ValueError(
            f"the {part} failed on a {x.dtype} batch of shape {tuple(x.shape)}: {error} ({hint})"
        ) from error
