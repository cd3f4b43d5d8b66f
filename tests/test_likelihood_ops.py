"""The log-probabilities of data: right against float64, in every layout, and clear about bad input."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastvae import _core
from fastvae import functional as F
from fastvae.ops.bernoulli_log_prob import reference as bernoulli_reference
from fastvae.ops.gaussian_log_prob import reference as gaussian_reference
from fastvae.ops.layout import OPMATH
from layouts import LAYOUTS, in_layout

N = 100_000
BOUND = 1e-6
# The smallest number of float32, times an upstream gradient of up to 8; torch's exp ends at the normal ones.
SMALLEST, SMALLEST_OF_TORCH = 2.0**-146, 2.0**-123
# Relative to the largest value of a result: kernel and reference round in different places.
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 8e-3, torch.float16: 1e-3}
KINDS = ["uint8", "zeros and ones", "bool", "float"]


def data(kind: str, shape) -> tuple[torch.Tensor, int | None, torch.Tensor]:
    """A target, its target_max, and its values in float64."""
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    if kind == "uint8":
        return pixels, 255, pixels.double() / 255
    if kind == "float":
        values = torch.rand(shape)
        return values, None, values.double()
    bits = pixels > 127
    return (bits, None, bits.double()) if kind == "bool" else (bits.to(torch.uint8), 1, bits.double())


def bernoulli_truth(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Log-probabilities in float64: two terms that are never negative."""
    l = logits.double()
    against = torch.where(l > 0, 1 - x, x)
    return -(torch.where(against == 0, 0.0, l.abs() * against) + torch.log1p((-l.abs()).exp()))


def bernoulli_slope(logits: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradient in float64, and the size of the terms that may cancel in it."""
    l = logits.double()
    s, against = torch.sigmoid(-l.abs()), torch.where(l > 0, 1 - x, x)
    return torch.where(l > 0, s - against, against - s), s + against


def gaussian_terms(mean, logvar, x) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-densities in float64, and the size of the terms that may cancel in them."""
    m, l = mean.double(), logvar.double()
    square, constant = (x - m) ** 2 * (-l).exp(), math.log(2 * math.pi)
    return -0.5 * (l + square + constant), 0.5 * (l.abs() + square + constant)


def assert_within(value, truth, size=None, *, floor=SMALLEST) -> None:
    """Within 1e-6 of a size, the truth's own by default, and of the smallest number there is."""
    size = truth.abs() if size is None else size
    error = (value.double() - truth).abs()
    assert bool((error <= BOUND * size + floor).all()), float((error / size).nan_to_num().max())


# Accuracy


LOGITS = {
    "wide": lambda: torch.rand(N) * 200 - 100,
    "unit": lambda: torch.rand(N) * 2 - 1,
    "near zero": lambda: (torch.rand(N) * 2 - 1) * 10 ** (-20 * torch.rand(N)),
    "huge": lambda: torch.randn(N).sign() * 10 ** (38 * torch.rand(N)),
}


@pytest.mark.parametrize("implementation", ["kernel", "reference"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("logits", list(LOGITS))
def test_bernoulli_of_every_element(logits, kind, implementation):
    logits = LOGITS[logits]()
    target, largest, x = data(kind, logits.shape)
    if implementation == "kernel":
        log_prob = F.bernoulli_log_prob(logits, target, target_max=largest, event_dims=0)
    else:
        log_prob = bernoulli_reference.bernoulli_log_prob(logits, target, largest or 1, 0)
    assert float(log_prob.max()) <= 0
    floor = SMALLEST if implementation == "kernel" else SMALLEST_OF_TORCH
    assert_within(log_prob, bernoulli_truth(logits, x), floor=floor)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("logits", list(LOGITS))
def test_bernoulli_gradient_of_every_element(logits, kind):
    logits = LOGITS[logits]().requires_grad_()
    target, largest, x = data(kind, logits.shape)
    upstream = torch.randn(N)
    log_prob = F.bernoulli_log_prob(logits, target, target_max=largest, event_dims=0)
    (grad,) = torch.autograd.grad(log_prob, logits, upstream)
    slope, size = bernoulli_slope(logits.detach(), x)
    assert_within(grad, upstream.double() * slope, upstream.double().abs() * size)
    reference = bernoulli_reference.bernoulli_log_prob_backward(
        upstream, logits.detach(), target, largest or 1, 0
    )
    size = upstream.double().abs() * size
    assert_within(reference, upstream.double() * slope, size, floor=SMALLEST_OF_TORCH)


@pytest.mark.parametrize("columns", [1, 2, 3, 16, 17, 100, 784, 20_000, 50_000])
def test_sums(columns):
    """Sums keep the accuracy of their terms, whatever their length."""
    rows = N // columns
    logits = LOGITS["wide"]()[: rows * columns].view(rows, columns)
    target, largest, x = data("uint8", logits.shape)
    assert_within(
        F.bernoulli_log_prob(logits, target, target_max=largest), bernoulli_truth(logits, x).sum(-1)
    )
    logvar = torch.randn(rows, columns) * 3
    truth, size = gaussian_terms(logits, logvar, x)
    log_prob = F.gaussian_log_prob(logits, logvar, target, target_max=largest)
    assert_within(log_prob, truth.sum(-1), size.sum(-1))


@pytest.mark.parametrize("value", [3, 128, 254, 255])
@pytest.mark.parametrize("largest", [1, 3, 255])
def test_a_byte_is_read_exactly(value, largest):
    """Against a large logit all depends on 1 - value / largest, which integers have without rounding."""
    value = min(value, largest)
    target = torch.full((1, 1), value, dtype=torch.uint8)
    log_prob = F.bernoulli_log_prob(torch.full((1, 1), 90.0), target, target_max=largest)
    assert_within(log_prob, torch.tensor([-90.0 * (largest - value) / largest - math.exp(-90)]).double())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_certainty(dtype):
    """An infinite logit costs nothing where it is right and everything where it is not."""
    logits = torch.tensor([[math.inf], [math.inf], [-math.inf], [-math.inf], [math.nan], [1.0]], dtype=dtype)
    target = torch.tensor([[255], [254], [0], [1], [255], [255]], dtype=torch.uint8)
    expected = [0.0, -math.inf, 0.0, -math.inf, math.nan]
    for function in (
        lambda: F.bernoulli_log_prob(logits, target, target_max=255),
        lambda: F.bernoulli_log_prob(logits, target.to(dtype) / 255),
        lambda: bernoulli_reference.bernoulli_log_prob(logits, target, 255, 1),
    ):
        got = function()
        torch.testing.assert_close(got[:5], torch.tensor(expected, dtype=dtype), equal_nan=True)
        assert math.isfinite(got[5])
    grad = torch.ones(6, dtype=dtype)
    slopes = torch.ops.fastvae.bernoulli_log_prob_backward(grad, logits, target, 255, 1)[:5, 0]
    expected = torch.tensor([0.0, -1 / 255, 0.0, 1 / 255, math.nan], dtype=dtype)
    torch.testing.assert_close(slopes, expected, equal_nan=True, rtol=2e-7, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("variance", ["predicted", "learned", "fixed"])
def test_gaussian_of_every_element(variance, kind):
    mean = torch.rand(N) * 2 - 0.5
    target, largest, x = data(kind, mean.shape)
    mean[: N // 4] = x[: N // 4].float() * (1 + 1e-6 * torch.randn(N // 4))  # as near as float32 gets
    logvar = {"predicted": torch.rand(N) * 160 - 80, "learned": torch.tensor(-2.3), "fixed": 1.7}[variance]
    as_tensor = torch.as_tensor(logvar)
    truth, size = gaussian_terms(mean, as_tensor, x)
    assert_within(F.gaussian_log_prob(mean, logvar, target, target_max=largest, event_dims=0), truth, size)
    log_prob = F.gaussian_log_prob(mean, logvar, target, target_max=largest)
    assert_within(log_prob, truth.sum(), size.sum())
    plain = gaussian_reference.gaussian_log_prob(mean, as_tensor, target, largest or 1, 0)
    # Plain torch rounds a byte over 255 before it takes the mean away: near it that costs 6e-8 / sigma.
    assert_within(plain, truth, size + 0.2 * (x - mean.double()).abs() * (-as_tensor.double()).exp())


@pytest.mark.parametrize("variance", ["predicted", "learned", "fixed"])
def test_gaussian_gradients_of_every_element(variance):
    mean = (torch.rand(N) * 2 - 0.5).requires_grad_()
    target, largest, x = data("uint8", mean.shape)
    logvar = {"predicted": torch.rand(N) * 160 - 80, "learned": torch.tensor(-2.3), "fixed": 1.7}[variance]
    given = logvar.requires_grad_() if isinstance(logvar, torch.Tensor) else logvar
    upstream = torch.randn(N)
    log_prob = F.gaussian_log_prob(mean, given, target, target_max=largest, event_dims=0)
    wanted = [mean, given] if isinstance(given, torch.Tensor) else [mean]
    grads = torch.autograd.grad(log_prob, wanted, upstream)
    m, l, g = mean.detach().double(), torch.as_tensor(logvar).detach().double(), upstream.double()
    square = (x - m) ** 2 * (-l).exp()
    assert_within(grads[0], g * (x - m) * (-l).exp())
    if variance != "fixed":
        truth, size = 0.5 * g * (square - 1), 0.5 * g.abs() * (square + 1)
        if variance == "learned":
            truth, size = truth.sum(), size.sum()
        assert grads[1].shape == given.shape
        assert_within(grads[1], truth, size)


def test_a_square_that_overflows_alone():
    """(x - mean)^2 is beyond float32, its share of the variance is not."""
    mean, target = torch.full((1, 1), 1e25), torch.zeros(1, 1)
    for logvar in (torch.full((1, 1), 100.0), torch.tensor(100.0), 100.0):
        truth, size = gaussian_terms(mean, torch.tensor(100.0), target.double())
        assert_within(F.gaussian_log_prob(mean, logvar, target), truth[0], size[0])


@pytest.mark.parametrize("function", ["bernoulli", "gaussian"])
def test_a_bad_value_stays_in_its_row(function):
    logits, target = torch.randn(5, 40), torch.rand(5, 40)

    def log_prob():
        return (
            F.bernoulli_log_prob(logits, target)
            if function == "bernoulli"
            else F.gaussian_log_prob(logits, logits.cos(), target)
        )

    clean = log_prob()
    logits[2, 7], target[3, 39] = math.nan, math.nan
    got = log_prob()
    assert torch.equal(got[[0, 1, 4]], clean[[0, 1, 4]])
    assert got[2:4].isnan().all()


def test_an_infinite_precision_reaches_no_other_lane():
    """Lanes beyond the end of a row hold zeros, whose distance is 0: times infinity it would be NaN."""
    log_prob = F.gaussian_log_prob(torch.zeros(2, 3), -300.0, torch.ones(2, 3))
    assert torch.equal(log_prob, torch.full((2,), -math.inf))
    mean = torch.zeros(2, 3, requires_grad=True)
    logvar = torch.tensor(-300.0, requires_grad=True)
    (grad,) = torch.autograd.grad(F.gaussian_log_prob(mean, logvar, torch.ones(2, 3)).sum(), logvar)
    assert grad == math.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_float32_rounded_once(dtype):
    """Bit for bit: arithmetic and log-probability in float32."""
    logits, logvar = torch.randn(3, 9, 33).to(dtype), torch.randn(3, 9, 33).to(dtype)
    target = torch.randint(0, 256, (9, 33), dtype=torch.uint8)

    def results(logits, logvar):
        logits, logvar = logits.detach().requires_grad_(), logvar.detach().requires_grad_()
        values = [
            F.bernoulli_log_prob(logits, target, target_max=255),
            F.gaussian_log_prob(logits, logvar, target, target_max=255),
            F.gaussian_log_prob(logits, logvar[0, 0, 0], target, target_max=255),
        ]
        assert all(value.dtype == torch.float32 for value in values)
        grads = [torch.autograd.grad(value.sin().sum(), logits)[0] for value in values]
        grads.append(
            torch.autograd.grad(F.gaussian_log_prob(logits, logvar, target, target_max=255).sum(), logvar)[0]
        )
        return [v.detach() for v in values], grads

    values, grads = results(logits, logvar)
    values32, grads32 = results(logits.float(), logvar.float())
    assert all(torch.equal(a, b) for a, b in zip(values, values32, strict=True))
    assert all(a.dtype == dtype and torch.equal(a, b.to(dtype)) for a, b in zip(grads, grads32, strict=True))


# Shapes, strides, threads, levels


layouts = st.sampled_from(LAYOUTS)
dtypes = st.sampled_from(list(OPMATH))


@st.composite
def cases(draw) -> tuple[tuple[int, ...], int, int]:
    """A shape (empty, of one, odd, now and then long), the event's axes, and the axes of the target."""
    size = st.one_of(st.integers(0, 5), st.sampled_from([1, 7, 16, 17, 33]))
    shape = tuple(draw(st.lists(size, max_size=4)))
    if draw(st.integers(0, 4)) == 0:
        shape = draw(st.sampled_from([(3, 1025), (2, 16390), (700, 3), (2, 3, 33, 17)]))
    event_dims = draw(st.integers(0, min(3, len(shape))))
    return shape, event_dims, draw(st.integers(event_dims, len(shape)))


def close(got: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype, scale: float = 1.0) -> None:
    assert got.is_contiguous()
    assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
    tolerance = TOLERANCE[dtype]
    scale = max(scale, float(expected.abs().max()) if expected.numel() else 0.0)
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance * scale)


@given(cases(), layouts, layouts, layouts, st.sampled_from(KINDS), dtypes)
def test_bernoulli_against_the_reference(case, layout, target_layout, grad_layout, kind, dtype):
    shape, event_dims, target_dims = case
    logits = in_layout((torch.randn(shape, dtype=torch.float64) * 4).to(dtype), layout)
    target, largest, _ = data(kind, shape[len(shape) - target_dims :])
    target = target.to(OPMATH[dtype]) if kind == "float" else target
    # A negative view of floats has values below 0, which the formula takes as well.
    target = in_layout(target, target_layout)
    got = F.bernoulli_log_prob(logits, target, target_max=largest, event_dims=event_dims)
    expected = bernoulli_reference.bernoulli_log_prob(logits, target, largest or 1, event_dims)
    close(got, expected, OPMATH[dtype])
    grad = in_layout(torch.randn(expected.shape, dtype=expected.dtype), grad_layout)
    arguments = (grad, logits, target, largest or 1, event_dims)
    close(
        torch.ops.fastvae.bernoulli_log_prob_backward(*arguments),
        bernoulli_reference.bernoulli_log_prob_backward(*arguments),
        dtype,
    )


@given(cases(), st.lists(layouts, min_size=4, max_size=4), st.booleans(), st.sampled_from(KINDS), dtypes)
def test_gaussian_against_the_reference(case, chosen, shared, kind, dtype):
    shape, event_dims, target_dims = case
    mean = in_layout(torch.randn(shape, dtype=torch.float64).to(dtype), chosen[0])
    if shared:
        logvar = torch.randn((1, 1, 1, 1, 1), dtype=OPMATH[dtype])
    else:
        logvar = in_layout(torch.randn(shape, dtype=torch.float64).to(dtype), chosen[1])
    target, largest, _ = data(kind, shape[len(shape) - target_dims :])
    target = in_layout(target.to(OPMATH[dtype]) if kind == "float" else target, chosen[2])
    got = F.gaussian_log_prob(mean, logvar, target, target_max=largest, event_dims=event_dims)
    arguments = (mean, logvar, target, largest or 1, event_dims)
    expected = gaussian_reference.gaussian_log_prob(*arguments)
    size = float(mean.numel() / max(expected.numel(), 1))
    close(got, expected, OPMATH[dtype], size)
    grad = in_layout(torch.randn(expected.shape, dtype=expected.dtype), chosen[3])
    for a, b in zip(
        torch.ops.fastvae.gaussian_log_prob_backward(grad, *arguments),
        gaussian_reference.gaussian_log_prob_backward(grad, *arguments),
        strict=True,
    ):
        close(a, b, dtype, float(mean.numel()) if a.numel() == 1 else 1.0)


# Any values


def values_of(*special: float, low: float = -1e38, high: float = 1e38) -> st.SearchStrategy[list[float]]:
    """Some numbers of any size, evenly over the logarithm of it, and some that are worth a try."""
    sizes = st.builds(lambda sign, power: sign * 10.0**power, st.sampled_from([-1, 1]), st.floats(-44, 37.9))
    one = st.one_of(st.sampled_from([0.0, -0.0, 2.0**-149, 2.0**-126, 1.0, *special]), sizes)
    return st.lists(one.map(lambda value: min(max(value, low), high)), max_size=12)


def strewn(extremes: list[float], shape, dtype: torch.dtype) -> torch.Tensor:
    """Normal numbers, with the extremes in some places."""
    values = torch.randn(shape, dtype=torch.float64)
    flat, places = values.view(-1), torch.randperm(values.numel())[: len(extremes)]
    flat[places] = torch.tensor(extremes, dtype=torch.float64)[: len(places)]
    largest = torch.finfo(dtype).max
    return values.clamp(-largest, largest).to(dtype)


def assert_right(got, truth, size, *, largest_term=None, terms: int = 1) -> None:
    """Within 1e-6 of a size and the dtype's rounding; infinite only where a term is as large as they get."""
    information = torch.finfo(got.dtype)
    largest_term = size if largest_term is None else largest_term
    rounding = 0.0 if got.dtype == torch.float32 else information.eps / 2 * truth.abs()
    floor = max(terms * SMALLEST, information.smallest_normal * information.eps)
    near = (got.double() - truth).abs() <= BOUND * size + rounding + floor
    beyond = (got == truth.sign() * math.inf) & (largest_term > information.max / 4)
    assert bool((near | beyond).all()), (got[~(near | beyond)], truth[~(near | beyond)])


shapes = st.sampled_from([(1, 1), (3, 5), (2, 16), (4, 17), (2, 130), (1, 1025)])
narrow = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])
seeds = st.integers(0, 2**32 - 1)
logits_of_any_size = values_of(-17.4, 17.4, 87.4, -88.8, 104.0, 3e38, -3e38, low=-3e38, high=3e38)


@given(shapes, logits_of_any_size, st.sampled_from(KINDS), narrow, seeds)
def test_bernoulli_of_any_logits(shape, extremes, kind, dtype, seed):
    """Values and gradients against float64, whatever stands beside what in a row."""
    torch.manual_seed(seed)
    logits = strewn(extremes, shape, dtype).requires_grad_()
    target, largest, x = data(kind, shape)
    log_prob = F.bernoulli_log_prob(logits, target, target_max=largest)
    truth = bernoulli_truth(logits.detach(), x).sum(-1)
    assert log_prob.dtype == torch.float32
    assert float(log_prob.detach().max()) <= 0
    assert_right(log_prob.detach(), truth, truth.abs(), terms=shape[-1])
    upstream = torch.randn(shape[0])
    (grad,) = torch.autograd.grad(log_prob, logits, upstream)
    slope, size = bernoulli_slope(logits.detach(), x)
    g = upstream.double().unsqueeze(-1)
    assert_right(grad, g * slope, g.abs() * size)


# 1 / sigma is a number of float32 from here on.
LOWEST_LOGVAR = -170.0
# The distance to a byte is counted in steps of 1/255, whose number has to be one of float32.
LARGEST_MEAN = 1.3e36
means_of_any_size = values_of(0.5, 1e19, -1e19, low=-LARGEST_MEAN, high=LARGEST_MEAN)
logvars_of_any_size = values_of(-169.9, -87.4, 87.4, 104.0, 150.0, 176.0, 207.0, low=LOWEST_LOGVAR)


@given(shapes, means_of_any_size, logvars_of_any_size, st.booleans(), st.sampled_from(KINDS), narrow, seeds)
def test_gaussian_of_any_parameters(shape, means, logvars, shared, kind, dtype, seed):
    """Values and gradients against float64, of one log-variance too."""
    torch.manual_seed(seed)
    mean = strewn(means, shape, dtype).requires_grad_()
    if shared:
        logvar = strewn(logvars, (), torch.float32).requires_grad_()
    else:
        logvar = strewn(logvars, shape, dtype).requires_grad_()
    target, largest, x = data(kind, shape)
    log_prob = F.gaussian_log_prob(mean, logvar, target, target_max=largest)
    m, l = mean.detach().double(), logvar.detach().double()
    truth, size = gaussian_terms(m, l, x)
    assert log_prob.dtype == torch.float32
    assert_right(log_prob.detach(), truth.sum(-1), size.sum(-1))
    # Of one sign where infinite terms may be added up.
    upstream = torch.rand(shape[0]) + 0.5 if shared else torch.randn(shape[0])
    grads = torch.autograd.grad(log_prob, (mean, logvar), upstream)
    g, square = upstream.double().unsqueeze(-1), (x - m) ** 2 * (-l).exp()
    slope = g * (x - m) * (-l).exp()
    assert_right(grads[0], slope, slope.abs())
    truth, size = 0.5 * g * (square - 1), 0.5 * g.abs() * (square + 1)
    if shared:
        truth, size, square = truth.sum(), size.sum(), square.max()
    assert_right(grads[1], truth, size, largest_term=square)


def everything(logits, logvar, target, **options) -> list[torch.Tensor]:
    """Values and gradients of both operations, with incoming gradients that are not 1."""
    logits, logvar = logits.detach().requires_grad_(), logvar.detach().requires_grad_()
    one = torch.tensor(0.3, requires_grad=True)
    values = [
        F.bernoulli_log_prob(logits, target, **options),
        F.gaussian_log_prob(logits, logvar, target, **options),
        F.gaussian_log_prob(logits, one, target, **options),
    ]
    loss = sum((value * torch.arange(value.numel()).view(value.shape)).sum() for value in values)
    grads = torch.autograd.grad(loss, (logits, logvar, one))
    return [value.detach() for value in values] + list(grads)


@pytest.mark.parametrize("shape", [(1, 700_000), (700_000, 1), (1000, 700), (3, 40_000)])
def test_thread_counts_give_the_same_bits(shape, threads):
    logits, logvar = torch.randn(shape), torch.randn(shape)
    target = torch.randint(0, 256, shape, dtype=torch.uint8)
    threads(1)
    alone = everything(logits, logvar, target, target_max=255)
    for count in (2, 3):
        threads(count)
        for a, b in zip(alone, everything(logits, logvar, target, target_max=255), strict=True):
            assert torch.equal(a, b), count


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_do_not_change_a_bit(layout):
    logits, logvar = in_layout(torch.randn(30, 18), layout), in_layout(torch.randn(30, 18), layout)
    target = in_layout(torch.randint(0, 256, (30, 18), dtype=torch.uint8), layout)
    got = everything(logits, logvar, target, target_max=255)
    plain = everything(*(t.clone().contiguous() for t in (logits, logvar, target)), target_max=255)
    assert all(torch.equal(a, b) for a, b in zip(got, plain, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_samples_of_the_code_share_the_data(kind):
    """Every one of K samples gets, bit for bit, what it gets alone."""
    logits, logvar = torch.randn(6, 5, 3, 11), torch.randn(6, 5, 3, 11)
    target, largest, _ = data(kind, (5, 3, 11))
    options = {"target_max": largest, "event_dims": 2}
    together = F.bernoulli_log_prob(logits, target, **options)
    densities = F.gaussian_log_prob(logits, logvar, target, **options)
    assert together.shape == densities.shape == (6, 5)
    for k in range(6):
        assert torch.equal(together[k], F.bernoulli_log_prob(logits[k], target, **options))
        assert torch.equal(densities[k], F.gaussian_log_prob(logits[k], logvar[k], target, **options))
    expanded = target.expand(6, 5, 3, 11)
    assert torch.equal(together, F.bernoulli_log_prob(logits, expanded, **options))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("expand", [False, True])
def test_the_data_is_never_repeated(kind, expand, monkeypatch):
    """What backward keeps, and what the kernel reads, is the memory of the data itself."""
    logits = torch.randn(50, 4, 100, requires_grad=True)
    target, largest, _ = data(kind, (4, 100))
    given = target.expand(50, 4, 100) if expand else target
    saved, read = [], []
    forward, backward = _core.bernoulli_forward, _core.bernoulli_backward

    def note(kernel):
        def call(*arguments):
            read.append(arguments[4])
            kernel(*arguments)

        return call

    monkeypatch.setattr(_core, "bernoulli_forward", note(forward))
    monkeypatch.setattr(_core, "bernoulli_backward", note(backward))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        log_prob = F.bernoulli_log_prob(logits, given, target_max=largest)
    log_prob.sum().backward()
    assert {t.untyped_storage().data_ptr() for t in saved} == {logits.data_ptr(), target.data_ptr()}
    assert [(address, rows) for address, _, rows, _ in read] == [(target.data_ptr(), 4)] * 2


def test_gradient_of_a_floating_target():
    logits = torch.randn(7, 4, 5, dtype=torch.float64)
    target = torch.rand(4, 5, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(7, 4, dtype=torch.float64)
    (grad,) = torch.autograd.grad(F.bernoulli_log_prob(logits, target), target, upstream)
    torch.testing.assert_close(grad, (upstream[..., None] * logits).sum(0))
    logvar = torch.randn(7, 4, 5, dtype=torch.float64)
    (grad,) = torch.autograd.grad(F.gaussian_log_prob(logits, logvar, target), target, upstream)
    expected = (upstream[..., None] * (logits - target.detach()) * (-logvar).exp()).sum(0)
    torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("target_dtype", [torch.float64, torch.bfloat16])
def test_a_target_of_another_dtype_is_converted(target_dtype):
    logits = torch.randn(3, 4, 5)
    target = torch.rand(4, 5).to(target_dtype).requires_grad_()
    log_prob = F.bernoulli_log_prob(logits, target)
    assert torch.equal(log_prob, F.bernoulli_log_prob(logits, target.float()))
    (grad,) = torch.autograd.grad(log_prob.sum(), target)
    assert grad.dtype == target_dtype


def test_small_shapes():
    byte = torch.tensor(255, dtype=torch.uint8)
    one = F.bernoulli_log_prob(torch.tensor(0.5), byte, target_max=255)
    assert one.shape == ()
    assert_within(one, torch.tensor(0.5).double().sigmoid().log())
    assert F.gaussian_log_prob(torch.tensor(0.5), torch.tensor(0.1), byte, target_max=255).shape == ()
    # The same number for all of 40 logits, and for 40 means of half precision.
    assert F.bernoulli_log_prob(torch.zeros(40), byte, target_max=255, event_dims=0).shape == (40,)
    for shape in ((3, 0), (0, 4), (0, 0)):
        mean = torch.zeros(shape, requires_grad=True)
        one = torch.tensor(2.0, requires_grad=True)
        log_prob = F.gaussian_log_prob(mean, one, torch.zeros(shape))
        assert torch.equal(log_prob, torch.zeros(shape[0]))
        assert torch.equal(F.bernoulli_log_prob(mean, torch.zeros(shape)), torch.zeros(shape[0]))
        grads = torch.autograd.grad(log_prob.sum(), (mean, one))
        assert grads[0].shape == shape
        assert grads[1] == 0


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_one_log_variance_of_any_shape(shape):
    """Also where the mean has one element, and where it is of half precision."""
    for mean in (torch.randn(4, 5), torch.randn(1, 1), torch.randn(1).bfloat16(), torch.tensor(0.5).half()):
        target = torch.rand(mean.shape)
        logvar = torch.full(shape, 0.7, requires_grad=True)
        log_prob = F.gaussian_log_prob(mean, logvar, target)
        truth, size = gaussian_terms(mean, logvar.detach().squeeze(), target.double())
        events = (truth.sum(-1), size.sum(-1)) if mean.dim() else (truth, size)
        assert_within(log_prob, *events)
        (grad,) = torch.autograd.grad(log_prob.sum(), logvar)
        assert (grad.shape, grad.dtype) == (shape, torch.float32)


@pytest.mark.parametrize("level", _core.levels()[1:])
def test_every_instruction_set_gives_the_same_bits(level):
    """Another process, with a level forced, through the public functions."""
    code = """
import hashlib
import torch
from fastvae import _core
from fastvae import functional as F

torch.manual_seed(0)
logits, logvar = ((torch.randn(3, 50, 33) * 6).requires_grad_() for _ in range(2))
one = torch.tensor(-0.4, requires_grad=True)
target = torch.randint(0, 256, (50, 33), dtype=torch.uint8)
values = [
    F.bernoulli_log_prob(logits, target, target_max=255),
    F.bernoulli_log_prob(logits, target / 255),
    F.gaussian_log_prob(logits, logvar, target, target_max=255),
    F.gaussian_log_prob(logits, one, target, target_max=255),
]
sum(value.square().sum() for value in values).backward()
results = [value.detach() for value in values] + [logits.grad, logvar.grad, one.grad]
print(_core.simd_level(), hashlib.sha256(b"".join(t.numpy().tobytes() for t in results)).hexdigest())
"""
    digests = []
    for forced in (level, _core.levels()[0]):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "FASTVAE_SIMD": forced},
            capture_output=True,
            text=True,
            check=True,
        )
        name, digest = run.stdout.split()
        assert name == forced
        digests.append(digest)
    assert digests[0] == digests[1]


# Bad input


GOOD, BYTES = torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.uint8)


def gaussian(mean, target, **options):
    return F.gaussian_log_prob(mean, 0.0, target, **options)


@pytest.mark.parametrize(
    ("function", "name", "parameters"),
    [(F.bernoulli_log_prob, "bernoulli_log_prob", "logits"), (gaussian, "gaussian_log_prob", "mean")],
    ids=["bernoulli", "gaussian"],
)
@pytest.mark.parametrize(
    ("first", "target", "options", "error", "message"),
    [
        (
            GOOD,
            BYTES,
            {},
            ValueError,
            "uint8 target needs target_max.*target_max=255 for pixels.*1 for zeros",
        ),
        (GOOD, BYTES, {"target_max": 0}, ValueError, "target_max must lie between 1 and 255, got 0"),
        (GOOD, BYTES, {"target_max": 256}, ValueError, "target_max must lie between 1 and 255, got 256"),
        (GOOD, BYTES, {"target_max": 1.0}, TypeError, "target_max must be an integer, got float"),
        (
            GOOD,
            GOOD,
            {"target_max": 255},
            ValueError,
            "target_max is for uint8 targets; values of torch.float32",
        ),
        (GOOD, BYTES.bool(), {"target_max": 255}, ValueError, "target_max is for uint8 targets"),
        (GOOD, BYTES.long(), {}, TypeError, r"target must be a uint8, bool or floating.*int64.*float\(\)"),
        (GOOD, np.zeros((3, 4)), {}, TypeError, r"target must be .*numpy.ndarray; torch.as_tensor"),
        (GOOD, GOOD.to_sparse(), {}, TypeError, "target must be a dense tensor"),
        (GOOD, GOOD.to("meta"), {}, ValueError, "PARAMETERS is on cpu and target on meta"),
        (
            GOOD,
            torch.zeros(4, 3),
            {},
            ValueError,
            r"trailing axes of PARAMETERS.*\(3, 4\) and target \(4, 3\)",
        ),
        (GOOD, torch.zeros(1, 4), {}, ValueError, "trailing axes"),
        (GOOD, torch.zeros(2, 3, 4), {}, ValueError, "trailing axes"),
        (GOOD, torch.zeros(4), {"event_dims": 2}, ValueError, "at least the event's 2"),
        (
            GOOD,
            GOOD,
            {"event_dims": 3},
            ValueError,
            "event_dims must lie between 0 and the number of axes, 2",
        ),
        (GOOD, GOOD, {"event_dims": 1.0}, TypeError, "event_dims must be an integer"),
        (GOOD.long(), GOOD, {}, TypeError, "PARAMETERS must be float32"),
        (GOOD.to_sparse(), GOOD, {}, TypeError, "PARAMETERS must be a dense tensor"),
        (None, GOOD, {}, TypeError, "PARAMETERS must be a torch tensor.*NoneType"),
    ],
)
def test_bad_arguments(function, name, parameters, first, target, options, error, message):
    with pytest.raises(error, match=f"^{name}: .*{message.replace('PARAMETERS', parameters)}"):
        function(first, target, **options)


@pytest.mark.parametrize(
    ("logvar", "error", "message"),
    [
        (
            torch.zeros(4),
            ValueError,
            r"logvar must have the shape of mean, \(3, 4\), or one element, got \(4,\)",
        ),
        (GOOD.double(), TypeError, "one dtype, but mean is torch.float32, logvar is torch.float64"),
        (torch.zeros((), dtype=torch.float64), TypeError, "one dtype"),
        (GOOD.to("meta"), ValueError, "mean is on cpu and logvar on meta"),
        (torch.zeros((), device="meta"), ValueError, "mean is on cpu and logvar on meta"),
        (GOOD.long(), TypeError, "logvar must be float32"),
        (math.nan, ValueError, "a fixed logvar must be a finite number in torch.float32, got nan"),
        (-1e39, ValueError, r"a fixed logvar must be a finite number in torch.float32, got -1e\+39"),
        (None, TypeError, "logvar must be a tensor or a number, got NoneType"),
        (True, TypeError, "logvar must be a tensor or a number, got bool"),
        ("0", TypeError, "logvar must be a tensor or a number, got str"),
    ],
)
def test_bad_log_variances(logvar, error, message):
    with pytest.raises(error, match=f"^gaussian_log_prob: .*{message}"):
        F.gaussian_log_prob(GOOD, logvar, GOOD)


def test_numpy_numbers_are_numbers():
    expected = F.gaussian_log_prob(GOOD, 0.5, BYTES, target_max=255)
    got = F.gaussian_log_prob(GOOD, np.float32(0.5), BYTES, target_max=np.uint8(255), event_dims=np.int64(1))
    assert torch.equal(got, expected)


WIDE = torch.zeros(3000, 4)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("bernoulli_log_prob", (WIDE, torch.zeros(2999, 4), 1, 1)),
        ("bernoulli_log_prob", (WIDE, torch.zeros(4, dtype=torch.float64), 1, 1)),
        ("bernoulli_log_prob", (WIDE, torch.zeros(4, dtype=torch.int64), 1, 1)),
        ("bernoulli_log_prob", (WIDE, torch.zeros(4, dtype=torch.uint8), 0, 1)),
        ("bernoulli_log_prob", (WIDE, torch.zeros(4, dtype=torch.uint8), 256, 1)),
        ("bernoulli_log_prob", (WIDE, torch.zeros(4), 255, 1)),
        ("bernoulli_log_prob", (WIDE, torch.zeros(4), 1, 2)),
        ("bernoulli_log_prob", (WIDE.int(), torch.zeros(4), 1, 1)),
        ("bernoulli_log_prob_backward", (torch.zeros(2), WIDE, WIDE, 1, 1)),
        ("bernoulli_log_prob_backward", (torch.zeros(3000).half(), WIDE, WIDE, 1, 1)),
        ("gaussian_log_prob", (WIDE, torch.zeros(2), WIDE, 1, 1)),
        ("gaussian_log_prob", (WIDE, torch.zeros((), dtype=torch.float64), WIDE, 1, 1)),
        ("gaussian_log_prob", (WIDE, WIDE.half(), WIDE, 1, 1)),
        ("gaussian_log_prob", (WIDE, WIDE, torch.zeros(3, 4), 1, 1)),
        ("gaussian_log_prob_backward", (torch.zeros(1), WIDE, WIDE, WIDE, 1, 1)),
    ],
)
def test_bare_operators_check_what_the_kernels_read(name, arguments):
    """Whoever calls one directly gets past the public checks: still no input ends the process."""
    with pytest.raises((ValueError, RuntimeError)):
        getattr(torch.ops.fastvae, name)(*arguments)


def test_a_target_without_its_memory():
    target = torch.zeros(100, 4)
    target.untyped_storage().resize_(16)
    with pytest.raises(RuntimeError, match="needs 1600 bytes of storage and has 16"):
        F.bernoulli_log_prob(torch.zeros(100, 4), target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": (0, 4)}, "mean: 12 elements at a null address"),
        ({"mean": (GOOD.data_ptr() + 1, 4)}, "mean: address .* is not aligned"),
        ({"target": (0, 4, 3, 255)}, "target: 12 elements at a null address"),
        ({"target": (BYTES.data_ptr(), 4, 2, 255)}, "target: 3 rows are no multiple of its 2"),
        ({"target": (BYTES.data_ptr(), 4, 0, 255)}, "target: 3 rows are no multiple of its 0"),
        ({"logvar": (0, 0)}, "logvar: 1 elements at a null address"),
        ({"rows": 2**62}, "too many"),
        ({"log_prob": (2, (GOOD.data_ptr(), 0))}, "shares memory"),
        ({"log_prob": (2, (BYTES.data_ptr(), 0))}, "shares memory"),
        ({"log_prob": (3, (GOOD.data_ptr(), 0))}, r"per element \(1\) or per row \(2\), got 3"),
        ({"dtype": 9}, "unknown dtype code 9"),
    ],
)
def test_the_binding_checks_before_it_reads(change, message):
    """The private functions take addresses; what can be checked of them is."""
    log_prob, logvar = torch.empty(3), torch.zeros(())
    arguments = {
        "dtype": 0,
        "rows": 3,
        "columns": 4,
        "mean": (GOOD.data_ptr(), 4),
        "logvar": (logvar.data_ptr(), 0),
        "shared": True,
        "target": (BYTES.data_ptr(), 4, 3, 255),
        "log_prob": (2, (log_prob.data_ptr(), 0)),
        "threads": 1,
    }
    _core.gaussian_forward(**arguments)
    with pytest.raises(ValueError, match=message):
        _core.gaussian_forward(**{**arguments, **change})


anything = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.lists(st.floats(), max_size=3),
    st.sampled_from(
        [
            GOOD,
            BYTES,
            BYTES.bool(),
            GOOD.long(),
            GOOD.double(),
            GOOD.to("meta"),
            GOOD.to_sparse(),
            torch.zeros(0),
            torch.zeros(()),
            torch.zeros(4),
            torch.nn.Parameter(GOOD.clone()),
            np.zeros((3, 4), np.float32),
            torch.float32,
            object,
        ]
    ),
)


@given(anything, anything, anything, st.dictionaries(st.sampled_from(["event_dims", "target_max"]), anything))
def test_anything_at_all_gives_a_result_or_an_exception(first, second, third, options):
    for call in (
        lambda: F.bernoulli_log_prob(first, third, **options),
        lambda: F.gaussian_log_prob(first, second, third, **options),
    ):
        with contextlib.suppress(TypeError, ValueError):
            call()
