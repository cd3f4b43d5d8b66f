"""How a differentiable function is timed: its forward, its backward or both, for every candidate alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

import harness

Function: TypeAlias = Callable[..., Any]

PASSES = ("forward", "backward", "both")


def candidate(
    name: str, function: Function, kind: str, inputs: Sequence[Tensor], incoming: Sequence[Tensor]
) -> harness.Candidate:
    """Make a pass of a function a candidate.

    Parameters
    ----------
    name : str
    function : callable
        Takes the inputs and gives a tensor, or a tuple of tensors.
    kind : {"forward", "backward", "both"}
        The forward records what a backward needs, as in training. The backward is timed alone, with the graph
        made before the clock starts. Both is one after the other, inside the clock.
    inputs : sequence of Tensor
        Gradients are taken for all of them that require one.
    incoming : sequence of Tensor
        The gradients that come in, one for each output: those of a loss that continues after the function.
    """
    differentiated = [tensor for tensor in inputs if tensor.requires_grad]

    def forward(_: object = None) -> Sequence[Tensor]:
        outputs = function(*inputs)
        return (outputs,) if isinstance(outputs, Tensor) else outputs

    def backward(outputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(outputs, differentiated, incoming)

    if kind == "forward":
        return harness.Candidate(name, forward)
    if kind == "backward":
        return harness.Candidate(name, backward, forward)
    return harness.Candidate(name, lambda _: backward(forward()))


def compiled(function: Function, *, fullgraph: bool = True) -> Function:
    """Compile a function anew: thread count and sizes are compiled in."""
    torch.compiler.reset()
    made: Function = torch.compile(function, fullgraph=fullgraph, dynamic=False)
    return made


def reason(error: Exception) -> str:
    """Say in one line why a candidate is not available: what a compiler throws fills pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
