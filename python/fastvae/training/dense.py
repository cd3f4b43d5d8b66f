"""Steps of fastvae's own dense networks on the CPU, without autograd.

In a small network the matrix products take less time than what torch does around them: a node of the graph
and an output for each layer and each ReLU, and for each a way there and back. Here the layers of a network
are one call each way (``rust/fastvae-core/src/ops/dense.rs``), and the operations between them are called
themselves, forward and backward. Every sum has an order of its own, so a step has the same bits at each
instruction-set level that has kernels for it, and on any number of threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from fastvae import _core
from fastvae.models import VAE, FlooredTerms, Terms
from fastvae.models.likelihoods import Bernoulli, Gaussian
from fastvae.ops import bernoulli_log_prob, gaussian_kl, reparametrize_kl
from fastvae.ops.library import raw, watched_below_python
from fastvae.ops.noise.seed import Seed, UnchangingSeed, seed_tensor

__all__ = ["DensePass", "Gradients"]

CPU = torch.device("cpu")

Slopes: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the two terms of the bound to the derivatives of the loss with respect to them."""


class Gradients(NamedTuple):
    """What a pass gives."""

    terms: Terms | FlooredTerms
    """Of the batch, without a graph."""
    of_parameters: list[Tensor | None]
    """One for each parameter, in the order of ``model.parameters()``; None where one was not used. Those of
    the networks are the same tensors each time, and are written to again by the next pass."""
    finite: bool
    """Whether all their numbers are known to be finite."""


class DensePass:
    """Forward and backward of a model whose networks are dense layers with ReLU.

    Parameters
    ----------
    model : VAE
        One that :meth:`takes` it.
    """

    def __init__(self, model: VAE) -> None:
        self._model = model
        self._encoder = _core.Dense(_parameters(model.encoder))
        self._decoder = _core.Dense(_parameters(model.decoder))

    @staticmethod
    def has_kernels() -> bool:
        """Whether there are kernels for this processor: where they have vectors.

        Without, on x86-64 without AVX2, torch's products are faster. No other architecture has been measured.
        """
        return _core.simd_level() != "portable"

    @classmethod
    def takes(cls, model: VAE) -> bool:
        """Whether there are kernels for it, and nobody would notice that they are not torch's.

        The networks are those of the preset ``"mlp"``, all of them is trained, in float32 on the CPU, and no
        hook waits for a module or a gradient.
        """
        if not (
            cls.has_kernels()
            and not _is_watched()
            and type(model) is VAE
            and type(model.likelihood) in {Bernoulli, Gaussian}
            and _is_chain(model.encoder, before=nn.Flatten)
            and _is_chain(model.decoder, behind=nn.Unflatten)
        ):
            return False
        own = [*_parameters(model.encoder), *_parameters(model.decoder), *model.likelihood.parameters()]
        everything = list(model.parameters())
        return (
            # Each once, and in the order in which gradients are given.
            len(own) == len(everything)
            and all(one is other for one, other in zip(own, everything, strict=True))
            and not any(map(_is_hooked, model.modules()))
            and all(map(_is_plain, everything))
        )

    def __call__(
        self,
        x: Tensor,
        seed: Seed | UnchangingSeed,
        slopes: Slopes,
        *,
        free_bits: float = 0.0,
        row_offset: int = 0,
    ) -> Gradients | None:
        """Differentiate the loss of a batch.

        Parameters
        ----------
        x : Tensor
            float32, ``(B, *shape)``.
        seed : int, int64 tensor, torch.Generator or None
            Of the latent noise.
        slopes : callable
            Gives, for the reconstruction and the KL that is trained on, ``(B,)`` each, the derivatives of the
            loss with respect to them.
        free_bits, row_offset
            As :class:`~fastvae.models.VAE` takes them.

        Returns
        -------
        Gradients or None
            None, with nothing changed but a generator that was given as the seed, where the batch or a
            parameter is not what the kernels take, or somebody watches: then it is up to autograd.
        """
        model, samples = self._model, len(x)
        if _is_watched() or not x.numel():
            return None
        flat = x.reshape(samples, -1)
        encoded = self._encoder.forward(flat)
        if encoded is None or encoded.shape[1] != 2 * model.latent_dim:
            return None
        mu, logvar = encoded.chunk(2, -1)
        noise = seed_tensor(seed, CPU), 0, row_offset, 1
        floor = (free_bits, 1) if free_bits else ()
        if model.variational:
            z, floored_kl = raw(
                reparametrize_kl.schema.reparametrize_kl, mu, logvar, *noise, "sample", *floor
            )
        else:
            z, floored_kl = mu.contiguous(), mu.new_zeros(samples)
        decoded = self._decoder.forward(z)
        if decoded is None or decoded.numel() != model.likelihood.maps * x.numel():
            return None
        recon, of_decoded, of_likelihood, of_kl = self._reconstruct(decoded, x, floored_kl, slopes)

        of_z, of_decoder, finite = _backward(self._decoder, of_decoded, z, of_x=True)
        if model.variational:
            of_latent = raw(
                reparametrize_kl.schema.reparametrize_kl_backward,
                of_z, of_kl, mu, logvar, *noise, "sample", *floor,
            )  # fmt: skip
        else:
            of_latent = of_z, torch.zeros_like(mu)
        of_encoded = torch.cat(of_latent, -1)
        _, of_encoder, all_finite = _backward(self._encoder, of_encoded, flat, of_x=False)
        terms: Terms | FlooredTerms = Terms(recon, floored_kl)
        if floor and model.variational:
            # As the model has it: in what is reported no floor.
            terms = FlooredTerms(
                recon, raw(gaussian_kl.schema.gaussian_kl, mu, logvar, 1, "sample"), floored_kl
            )
        finite = finite and all_finite and not of_likelihood
        return Gradients(terms, [*of_encoder, *of_decoder, *of_likelihood], finite)

    def _reconstruct(
        self, decoded: Tensor, x: Tensor, kl: Tensor, slopes: Slopes
    ) -> tuple[Tensor, Tensor, Sequence[Tensor | None], Tensor]:
        """The reconstruction; the gradients of the decoded and of the likelihood; the slope of the KL."""
        model = self._model
        if type(model.likelihood) is Bernoulli:
            read = (decoded, x.reshape(decoded.shape), 1, 1)
            recon = raw(bernoulli_log_prob.schema.bernoulli_log_prob, *read)
            of_recon, of_kl = slopes(recon, kl)
            of_decoded = raw(bernoulli_log_prob.schema.bernoulli_log_prob_backward, of_recon, *read)
            return recon, of_decoded, (), of_kl
        maps = () if model.likelihood.maps == 1 else (model.likelihood.maps,)
        with torch.enable_grad():
            parameters = decoded.requires_grad_()
            recon = model.likelihood.log_prob(parameters.view(len(x), *maps, *model.input_shape), x)
        of_recon, of_kl = slopes(recon.detach(), kl)
        # Those of a likelihood that somebody holds, who may have frozen one or added one that is not used.
        own = list(model.likelihood.parameters())
        trained = [parameter for parameter in own if parameter.requires_grad]
        of_decoded, *of_trained = torch.autograd.grad(
            recon, [parameters, *trained], of_recon, allow_unused=True
        )
        gradients = iter(of_trained)
        of_likelihood = [next(gradients) if parameter.requires_grad else None for parameter in own]
        return recon.detach(), of_decoded, of_likelihood, of_kl


def _is_watched() -> bool:
    """Whether somebody wants to see operations, modules or gradients; a default device does not."""
    return (
        watched_below_python()
        or torch.is_anomaly_enabled()
        or _has_any_global_hook()
        or any(type(mode) is not DeviceContext for mode in _get_current_function_mode_stack())
    )


def _parameters(network: nn.Module) -> list[Tensor]:
    """Weight and bias of each linear layer, in their order."""
    return [
        parameter
        for module in cast("nn.Sequential", network)  # not `children`, which has each but once
        if isinstance(module, nn.Linear)
        for parameter in (module.weight, module.bias)
    ]


def _backward(
    network: _core.Dense, grad: Tensor, x: Tensor, *, of_x: bool
) -> tuple[Tensor | None, list[Tensor], bool]:
    """The gradients of a network that took ``x``, and whether those of the parameters are finite."""
    grads = network.backward(grad.contiguous(), x, of_x)
    if grads is None:
        raise RuntimeError("a parameter was changed while its gradient was computed")
    return grads


def _is_chain(network: nn.Module, *, before: type | None = None, behind: type | None = None) -> bool:
    """Whether these are torch's linear layers, with a ReLU between each two, and what changes the shape."""
    if type(network) is not nn.Sequential:
        return False
    kinds = list[type[nn.Module]](type(module) for module in network)
    count = len(kinds) - (before is not None) - (behind is not None)
    layers = [nn.ReLU if number % 2 else nn.Linear for number in range(count)]
    ends = [[kind] if kind else [] for kind in (before, behind)]
    return (
        count % 2 == 1
        and kinds == ends[0] + layers + ends[1]
        and all(module.bias is not None for module in network if isinstance(module, nn.Linear))
        and all(
            (module.start_dim, module.end_dim) == (1, -1) for module in network if type(module) is nn.Flatten
        )
        and all(kind.forward.__module__ == kind.__module__ for kind in [type(network), *kinds])
    )


def _is_hooked(module: nn.Module) -> bool:
    """Whether something happens as a module is called, besides what its type does."""
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(hooks) or "forward" in vars(module)


def _is_plain(parameter: nn.Parameter) -> bool:
    hooked = bool(parameter._backward_hooks) or bool(parameter._post_accumulate_grad_hooks)
    return (
        type(parameter) is nn.Parameter
        and parameter.requires_grad
        and parameter.dtype is torch.float32
        and parameter.device == CPU
        and parameter.is_contiguous()
        and not hooked
    )
