"""Train and eval mode of a model and its parts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

__all__ = ["eval_mode", "kept_in_eval_mode"]


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """A block in which a model is in eval mode; each part of it gets back the mode that it had."""
    # A frozen script module has none.
    modes = {module: module.training for module in model.modules() if hasattr(module, "training")}
    model.eval()
    try:
        yield
    finally:
        # By train(), of which a module may have its own; parts come after the whole.
        for module, training in modes.items():
            if module.training != training:
                module.train(training)


def kept_in_eval_mode(model: nn.Module) -> list[nn.Module]:
    """The parts that stay in eval mode in a training: those in it that have parameters, none to be trained.

    That is how pretrained networks are given: their running statistics and dropout are not to change.
    """
    return [module for module in model.modules() if not getattr(module, "training", True) and _frozen(module)]


def _frozen(module: nn.Module) -> bool:
    parameters = list(module.parameters())
    return bool(parameters) and not any(parameter.requires_grad for parameter in parameters)
