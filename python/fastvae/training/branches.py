"""The linear layers of a captured step: the same results, in fewer operations and side by side."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear, relu
from torch.overrides import TorchFunctionMode

from fastvae.training import small_layers

__all__ = ["GradientInUseError", "LinearLayers", "SideBranch", "stream_of"]


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
    def after(self, *inputs: Tensor | None) -> Iterator[None]:
        """Go to the branch, after all that is in the main one so far.

        The inputs are kept: the allocator knows the stream that they were made on, and would give their
        memory to what comes next there.
        """
        # Not what they were computed by, which has this branch: a circle through autograd, that nobody frees.
        self._kept += [tensor.detach() for tensor in inputs if tensor is not None]
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
        made, self._made = self._made, []
        for parameter, address in made:
            if parameter.grad is None or parameter.grad.data_ptr() != address:
                raise GradientInUseError("autograd did not take the gradient of a weight as it was")
            if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
                raise GradientInUseError("a weight has a hook that uses its gradient in backward")


class _Linear(torch.autograd.Function):
    """A linear layer and the ReLU behind it, whose weights get their gradients in a side branch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, relu: bool, branch: SideBranch) -> Tensor:
        y = small_layers.forward(x, weight, bias, relu=relu)
        ctx.save_for_backward(x, weight, bias, y if relu else None)
        ctx.branch = branch
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, y = ctx.saved_tensors
        of_x, of_weight, of_bias, *_ = ctx.needs_input_grad
        weight_grad = bias_grad = None
        if of_weight or of_bias:
            with ctx.branch.after(x, grad, y):
                weight_grad, bias_grad = small_layers.of_weight(grad, y, x, weight)
            weight_grad = ctx.branch.made(weight, weight_grad) if of_weight else None
            bias_grad = ctx.branch.made(bias, bias_grad) if of_bias else None
        return small_layers.of_input(grad, y, weight) if of_x else None, weight_grad, bias_grad, None, None


class LinearLayers(TorchFunctionMode):
    """Has linear layers of float32 on CUDA computed as is best within a graph.

    Parameters
    ----------
    branch : SideBranch
        For the gradients of the weights. Nothing but the update may use them: no weight is part of two
        layers, or is itself computed.
    model : nn.Module, optional
        A ReLU behind a linear layer in one of its ``nn.Sequential`` is computed with the layer.
    """

    def __init__(self, branch: SideBranch, model: nn.Module | None = None) -> None:
        super().__init__()
        self._branch = branch
        self._rectified = set() if model is None else _rectified(model)
        self._has_relu: Tensor | None = None  # what a ReLU is to be left out of

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is linear and len(args) == 3 and not kwargs and _are_plain(*args):
            return self._layer(*args)
        if func is relu and args and args[0] is self._has_relu:
            self._has_relu = None
            return args[0]
        return func(*args, **kwargs)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        if kind is None:
            self._check_relu()

    def _layer(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        self._check_relu()
        has_relu = id(weight) in self._rectified
        y: Tensor = _Linear.apply(x, weight, bias, has_relu, self._branch)
        self._has_relu = y if has_relu else None
        return y

    def _check_relu(self) -> None:
        if self._has_relu is not None:
            raise RuntimeError("a linear layer was computed with the ReLU behind it, and that was not called")


def _rectified(model: nn.Module) -> set[int]:
    """The identities of the weights of linear layers that are followed by a ReLU."""
    return {
        id(layer.weight)
        for sequence in model.modules()
        if type(sequence) is nn.Sequential
        for layer, after in pairwise(sequence)
        if type(layer) is nn.Linear and type(after) is nn.ReLU
    }


def _are_plain(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        bias is not None
        and x.is_cuda
        and x.dim() == 2
        and x.dtype is weight.dtype is bias.dtype is torch.float32
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cuda")
    )
