"""The formulas of the operations, and two ways to evaluate them: in float64, and with fifty digits.

A formula is written once, over an ``Arithmetic`` and arrays of its numbers. Float64 is truth for results of
float32 and of half precision; fifty digits (mpmath, which torch brings along) are truth for float64.
"""

from __future__ import annotations

import abc
from typing import Any, TypeAlias

import mpmath
import numpy as np
import torch
from torch import Tensor

Array: TypeAlias = Any
"""A NumPy array of float64, or of mpmath's numbers as objects."""

TAYLOR = 0.05
"""Below this e^x - 1 - x is summed as a series: six terms more than its rounding needs."""


class Arithmetic(abc.ABC):
    """Numbers that are more exact than what is measured."""

    pi: Any

    @abc.abstractmethod
    def array(self, tensor: Tensor) -> Array:
        """The numbers of a tensor, exactly."""

    @abc.abstractmethod
    def exp(self, x: Array) -> Array: ...

    @abc.abstractmethod
    def log(self, x: Array) -> Array: ...

    @abc.abstractmethod
    def cos(self, x: Array) -> Array: ...

    @abc.abstractmethod
    def sin(self, x: Array) -> Array: ...

    @abc.abstractmethod
    def expm1(self, x: Array) -> Array: ...

    @abc.abstractmethod
    def expm1_minus(self, x: Array) -> Array:
        """e^x - 1 - x, without cancellation."""

    @abc.abstractmethod
    def softplus(self, x: Array) -> Array:
        """log(1 + e^x), without overflow."""


class Float64(Arithmetic):
    """NumPy's float64."""

    pi = np.pi

    def array(self, tensor: Tensor) -> Array:
        return tensor.detach().to(torch.float64).numpy()

    def exp(self, x: Array) -> Array:
        return np.exp(x)

    def log(self, x: Array) -> Array:
        return np.log(x)

    def cos(self, x: Array) -> Array:
        return np.cos(x)

    def sin(self, x: Array) -> Array:
        return np.sin(x)

    def expm1(self, x: Array) -> Array:
        return np.expm1(x)

    def expm1_minus(self, x: Array) -> Array:
        near = np.where(np.abs(x) < TAYLOR, x, 0)
        series = np.zeros_like(near)
        for divisor in range(12, 1, -1):  # x^2/2 (1 + x/3 (1 + x/4 (...)))
            series = near / divisor * (1 + series) if divisor > 2 else near * near / 2 * (1 + series)
        return np.where(np.abs(x) < TAYLOR, series, np.expm1(x) - x)

    def softplus(self, x: Array) -> Array:
        return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


class FiftyDigits(Arithmetic):
    """mpmath's numbers, element by element: a millionth of the speed."""

    def __init__(self) -> None:
        self.context = mpmath.mp.clone()
        self.context.dps = 50
        self.pi = +self.context.pi
        self._number = np.vectorize(self.context.mpf, otypes=[object])
        self._exp = np.vectorize(self.context.exp, otypes=[object])
        self._log = np.vectorize(self.context.log, otypes=[object])
        self._cos = np.vectorize(self.context.cos, otypes=[object])
        self._sin = np.vectorize(self.context.sin, otypes=[object])

    def array(self, tensor: Tensor) -> Array:
        return self._number(tensor.detach().to(torch.float64).numpy())

    def exp(self, x: Array) -> Array:
        return self._exp(x)

    def log(self, x: Array) -> Array:
        return self._log(x)

    def cos(self, x: Array) -> Array:
        return self._cos(x)

    def sin(self, x: Array) -> Array:
        return self._sin(x)

    def expm1(self, x: Array) -> Array:
        return self._exp(x) - 1

    def expm1_minus(self, x: Array) -> Array:
        return self._exp(x) - 1 - x

    def softplus(self, x: Array) -> Array:
        return self._log(1 + self._exp(x))
