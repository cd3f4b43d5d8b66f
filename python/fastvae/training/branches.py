"""The linear layers of a captured step: the same results, in fewer operations and side by side."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

__all__ = ["GradientInUseError", "LinearLayers", "SideBranch", "stream_of"]

FEW_OUTPUTS = 512
"""For fewer columns than this cuBLAS adds a bias in four operations, as part of a product in parts."""


@functools.cache
def stream_of(device: torch.device, use: str, thread: int) -> torch.cuda.Stream:
    """One stream for all trainings of a thread: libraries and the allocator keep memory for each they see."""
    del use, thread  # two trainings at a time must not share one
    return torch.cuda.Stream(device)


class GradientInUseError(RuntimeError):
    """Something else than the update uses the gradient of a weight."""


class SideBranch:
    """A second stream within a capture: what no other operation of backward waits for goes there.

    In the graph that becomes a branch of its own. The gradients of weights are a large part of the backward
    of a small network, and nothing needs them before the update.

    Parameters
    ----------
    device : torch.device
        Of CUDA. Make it before the capture.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = stream_of(device, "branch", threading.get_ident())
        self._used = False
        self._kept = list[Tensor]()
        self._made = list[tuple[Tensor, int]]()
        # cuBLAS makes what it needs for a stream now: in the capture it would be part of the graph.
        with torch.cuda.stream(self._stream):
            one = torch.ones(1, 1, device=device)
            torch.mm(one, one)
        torch.cuda.current_stream(device).wait_stream(self._stream)

    @contextmanager
    def after(self, *inputs: Tensor) -> Iterator[None]:
        """Go to the branch, after all that is in the main one so far.

        The inputs are kept: the allocator knows the stream that they were made on, and would give their
        memory to what comes next there.
        """
        # Not what they were computed by, which has this branch: a circle through autograd, that nobody frees.
        self._kept += [tensor.detach() for tensor in inputs]
        self._used = True
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(self._stream):
            yield

    def made(self, parameter: Tensor, grad: Tensor) -> Tensor:
        """Say whose gradient a tensor is going to be."""
        self._made.append((parameter, grad.data_ptr()))
        return grad

    def rejoin(self) -> None:
        """Let what follows in the main branch wait for this one."""
        if self._used:
            torch.cuda.current_stream(self._device).wait_stream(self._stream)

    def join(self) -> None:
        """Let what follows in the main branch wait for this one, if nothing there has used what it made.

        Raises
        ------
        GradientInUseError
            If autograd copied a gradient or a hook saw it, in the main branch, which had not waited.
        """
        self.rejoin()
        self._kept.clear()
        for parameter, address in self._made:
            if parameter.grad is None or parameter.grad.data_ptr() != address:
                raise GradientInUseError("autograd did not take the gradient of a weight as it was")
            if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
                raise GradientInUseError("a weight has a hook that uses its gradient in backward")


class _Linear(torch.autograd.Function):
    """A linear layer in float32 whose weights get their gradients in a side branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, branch: SideBranch) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.branch = branch
        return _product_and_sum(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        of_x, of_weight, of_bias, _ = ctx.needs_input_grad
        with ctx.branch.after(x, grad):
            weight_grad = ctx.branch.made(weight, torch.mm(grad.t(), x)) if of_weight else None
            bias_grad = ctx.branch.made(bias, grad.sum(0)) if of_bias else None
        return torch.mm(grad, weight) if of_x else None, weight_grad, bias_grad, None


def _product_and_sum(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A linear layer; of few columns as two operations.

    In float32 cuBLAS computes a small product with a bias by splitting it up: the parts, their sum and two
    operations that prepare them take longer than the product alone and a sum.
    """
    return torch.mm(x, weight.t()).add_(bias) if len(weight) < FEW_OUTPUTS else linear(x, weight, bias)


class LinearLayers(TorchFunctionMode):
    """Has linear layers of float32 on CUDA computed as is best within a graph.

    Parameters
    ----------
    branch : SideBranch
        For the gradients of the weights. Nothing but the update may use them: no weight is part of two
        layers, or is itself computed.
    """

    def __init__(self, branch: SideBranch) -> None:
        super().__init__()
        self._branch = branch

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is linear and len(args) == 3 and not kwargs and _are_plain(*args):
            return _Linear.apply(*args, self._branch)
        return func(*args, **kwargs)


def _are_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        bias is not None
        and x.is_cuda
        and x.dim() == 2
        and x.dtype is weight.dtype is bias.dtype is torch.float32
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cuda")
    )
