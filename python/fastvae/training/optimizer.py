"""Adam in one kernel, with steps that can be called off on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import AdamW

__all__ = ["CautiousAdam"]

LIKELIHOOD_RATE = 10
"""The likelihood's own parameters move this much faster than weights: Adam moves a parameter by about its
learning rate a step, and a log-variance has a long way to go from 0."""


class CautiousAdam:
    """torch's fused Adam, whose step does nothing where the loss or the gradient is not finite.

    The decision is a tensor on the device that the fused kernel reads (``found_inf``, as automatic mixed
    precision does), so no step waits for it. Weight decay is decoupled (AdamW; with 0 it is Adam) and leaves
    alone the likelihood's own parameters, such as the one learned variance of a Gaussian: pulling it to 1
    regularises nothing. Those take ten times the learning rate.

    Parameters
    ----------
    model : nn.Module
    learning_rate, weight_decay : float
    """

    def __init__(self, model: nn.Module, *, learning_rate: float, weight_decay: float) -> None:
        networks, likelihood = list[nn.Parameter](), list[nn.Parameter]()
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                (likelihood if name.startswith("likelihood.") else networks).append(parameter)
        groups = [
            {"params": networks, "weight_decay": weight_decay},
            {"params": likelihood, "weight_decay": 0.0, "lr": LIKELIHOOD_RATE * learning_rate},
        ]
        self._parameters = [*networks, *likelihood]
        self._adam = AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)

    def step(self, loss: Tensor) -> Tensor:
        """Differentiate and update.

        Parameters
        ----------
        loss : Tensor
            A scalar, to be minimised.

        Returns
        -------
        Tensor
            Whether the step was skipped: a boolean scalar on the device.
        """
        self._adam.zero_grad(set_to_none=True)
        loss.backward()
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        skipped = ~(loss.detach().isfinite() & norm.isfinite())
        self._adam.found_inf = skipped.to(torch.float32)  # type: ignore[attr-defined]
        self._adam.step()
        return skipped
