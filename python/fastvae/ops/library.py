"""The ``fastvae`` operator library and the one rule that routes every call.

Each operation lives in a folder of its own with one job per file:

``schema.py``     the operator's signature and its fake kernel (shapes only)
``reference.py``  the definition, in differentiable torch operations, for every device
``cpu.py``        the call into the Rust kernels
``autograd.py``   the :class:`torch.autograd.Function` around the raw operators

:func:`route` says which of these a call takes, and why.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._C import (
    _are_functorch_transforms_active,
    _get_tracing_state,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._autograd import _profiler_enabled
from torch._C._functorch import is_legacy_batchedtensor
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.nn import Parameter

from fastvae import _core

LIBRARY = torch.library.Library("fastvae", "DEF")
"""Owns every schema and kernel for the life of the process."""

F = TypeVar("F", bound=Callable[..., Any])


class Route(enum.Enum):
    """The way one call takes through the package."""

    REFERENCE = enum.auto()
    """A function transform or a forward-mode level is active: only plain torch operations compose with it."""
    RAW = enum.auto()
    """Nothing is recorded: the operator itself."""
    FUNCTION = enum.auto()
    """Reverse mode: the autograd function, whose backward is a fused kernel."""


def transforms_active() -> bool:
    """Whether ``torch.func`` transforms or forward-mode levels surround the call.

    An operator without rules of its own returns silent zeros for ``jvp`` and, under
    ``torch.compile(torch.func.grad(f))``, silent zero gradients; plain torch operations do not.
    """
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


def route(*inputs: Tensor | None) -> Route:
    """Decide how a call with these differentiable inputs is carried out."""
    if transforms_active():
        return Route.REFERENCE
    if torch.compiler.is_exporting():
        # A strict export records an autograd function as its forward alone; the operator has its gradient.
        return Route.RAW
    if torch.is_grad_enabled():
        for tensor in inputs:
            if tensor is not None and tensor.requires_grad:
                return Route.FUNCTION
    return Route.RAW


def define(schema: str, *, tags: tuple[torch.Tag, ...] = ()) -> OpOverload[..., Any]:
    """Declare an operator, free of aliasing and mutation, and give the callable."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
    operator: OpOverload[..., Any] = getattr(torch.ops.fastvae, name).default
    return operator


def fake(operator: OpOverload[..., Any]) -> Callable[[F], F]:
    """Register the decorated function as the fake (shape-only) kernel of an operator."""

    def register(function: F) -> F:
        torch.library.register_fake(operator, function, lib=LIBRARY)
        return function

    return register


def kernel(operator: OpOverload[..., Any], key: str) -> Callable[[F], F]:
    """Register the decorated function as the kernel of an operator for a dispatch key.

    ``"CPU"`` is the Rust kernel; ``"CompositeExplicitAutograd"`` is the reference, which serves
    every device that has no kernel of its own.
    """

    def register(function: F) -> F:
        LIBRARY.impl(operator, function, key)
        if key == "CPU":
            CPU_KERNELS[operator] = function
        return function

    return register


CPU_KERNELS: dict[OpOverload[..., Any], Callable[..., Any]] = {}
"""The kernels that :func:`raw` may call without the dispatcher."""

DEVICE_KERNELS: dict[OpOverload[..., Any], Callable[..., Any]] = {}
"""Those for CUDA, likewise."""

PLAIN_KERNELS: dict[OpOverload[..., Any], Callable[..., Any]] = {}
"""Those of ``fastvae._core`` that :func:`raw` tries before: they give None where a tensor is not plain."""

_core.use_torch_tensors(torch)


def plain_kernel(operator: OpOverload[..., Any], function: Callable[..., Any]) -> None:
    """Register a function that takes the tensors themselves and reads in Rust what they are."""
    PLAIN_KERNELS[operator] = function


def raw(operator: OpOverload[..., Any], *arguments: Any) -> Any:
    """Call an operator where nothing is to be recorded.

    In eager mode, with plain CPU or CUDA tensors and nobody watching, this is the kernel itself: the
    dispatcher's way into a Python kernel and back costs more than a small latent takes. A compiler sees the
    plain call.
    """
    if torch.compiler.is_compiling():
        return operator(*arguments)
    if not watched():
        plain = PLAIN_KERNELS.get(operator)
        if plain is not None and (result := plain(*arguments)) is not None:
            return result
        if operator in CPU_KERNELS and all(map(plainly_cpu, arguments)):
            return CPU_KERNELS[operator](*arguments)
        if operator in DEVICE_KERNELS and all(map(plainly_cuda, arguments)):
            return DEVICE_KERNELS[operator](*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*arguments)


def watched() -> bool:
    """Whether a mode, a transform, a trace or a profiler wants to see the calls of operators."""
    return _len_torch_function_stack() > 0 or watched_below_python()


def watched_below_python() -> bool:
    """The same, but for modes of functions of torch, which do not see what is below them."""
    return (
        _len_torch_dispatch_stack() > 0
        or _are_functorch_transforms_active()
        or _get_tracing_state() is not None
        or _profiler_enabled()
    )


def plainly_cpu(argument: Any) -> bool:
    """Whether the dispatcher could only choose the CPU kernel because of this argument."""
    if type(argument) is Tensor or type(argument) is Parameter:
        # Those of `torch.autograd.grad(is_grads_batched=True)` have the usual type, and no level to see.
        return argument.is_cpu and not argument._is_zerotensor() and not is_legacy_batchedtensor(argument)
    return not isinstance(argument, Tensor)


def plainly_cuda(argument: Any) -> bool:
    """Whether the dispatcher could only choose the kernel for CUDA because of this argument."""
    if type(argument) is Tensor or type(argument) is Parameter:
        return argument.is_cuda and not argument._is_zerotensor() and not is_legacy_batchedtensor(argument)
    return not isinstance(argument, Tensor)


def applied(function: type[torch.autograd.Function], *arguments: Any) -> Any:
    """``function.apply(*arguments)``, where no function transform is active.

    Of each argument torch asks in Python whether it is left over from a transform, which for a small latent
    takes as long as its arithmetic. A tensor that memory describes is not.
    """
    if torch.compiler.is_compiling() or not _core.all_described(arguments):
        return function.apply(*arguments)
    return super(torch.autograd.Function, function).apply(*arguments)  # type: ignore[misc]


def autograd_kernel(
    operator: OpOverload[..., Any],
    function: type[torch.autograd.Function],
    reference: Callable[..., Any],
) -> None:
    """Make the bare operator differentiable: by its autograd function, under transforms by its reference.

    :mod:`fastvae.functional` applies the function itself and saves a trip through the dispatcher.
    """

    def run(keyset: torch._C.DispatchKeySet, *arguments: Any) -> Any:
        if transforms_active():
            return reference(*arguments)
        needs_grad = any(isinstance(a, Tensor) and a.requires_grad for a in arguments)
        if torch.is_grad_enabled() and needs_grad:
            return function.apply(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operator.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    LIBRARY.impl(operator, run, "Autograd", with_keyset=True)
