"""What evaluations take: an iterable of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from fastvae.models import VAE


def tensors(function: str, model: VAE, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, each of which is looked at as it comes; those without samples are passed by.

    Raises
    ------
    TypeError
        For a model that is none, for a tensor, whose items would be taken for batches, and for a batch that
        is none.
    """
    if not hasattr(model, "terms"):  # what torch.compile makes of a model is no VAE by its class
        trained = isinstance(getattr(model, "model", None), VAE)
        hint = "; that of a trained one is its .model" if trained else ""
        raise TypeError(f"{function}: model must be a fastvae.VAE, got {type(model).__name__}{hint}")
    if isinstance(batches, Tensor):
        raise TypeError(f"{function}: batches must be an iterable of batches, got a tensor; one batch is [x]")
    return _each(function, batches)


def in_range(model: VAE, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, each of which is asked for its extremes: a wait for its device.

    Raises
    ------
    ValueError
        For values that the likelihood cannot have.
    """
    for x in batches:
        if x.is_floating_point():
            low, high = torch.stack(x.aminmax()).tolist()
            model.likelihood.check_range(low, high)
        yield x


def _each(function: str, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    for x in batches:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{function}: a batch must be a tensor, got {type(x).__name__}; of (samples, labels) take "
                "the samples: (x for x, *_ in batches)"
            )
        if x.dim() == 0 or len(x):
            yield x
