"""Linear layers of small batches, with their ReLU: each result against the sum in float64."""

from __future__ import annotations

import math

import pytest
import torch

from conftest import INTERPRETED
from fastvae.training import small_layers

SHAPES = [(1, 1, 1), (5, 50, 7), (20, 200, 100), (32, 33, 1), (3, 1500, 6), (17, 9, 1100), (128, 6, 20)]
"""Samples, inputs and outputs."""
if not INTERPRETED:
    SHAPES += [(20, 784, 200), (20, 50, 784), (64, 784, 400), (128, 400, 40)]

EPS = 2.0**-24


@pytest.fixture(autouse=True)
def taken(monkeypatch, device):
    """Has the interpreter take the kernels too; says which were taken."""
    names, takes = [], small_layers._takes

    def says(what, *arguments, **options):
        found = takes(what, *arguments, **options)
        if found:
            names.append(what)
        return found

    monkeypatch.setattr(small_layers, "_takes", says)
    if device.type == "cpu":
        monkeypatch.setattr(small_layers, "_has_kernels", lambda _: True)
    return names


def layer(rows, inputs, outputs, device):
    torch.manual_seed(rows + inputs + outputs)
    x, weight, bias = torch.randn(rows, inputs), torch.randn(outputs, inputs), torch.randn(outputs)
    return [tensor.to(device) for tensor in (x, weight, bias, torch.randn(rows, outputs))]


def assert_sums(found, terms, dim):
    """Sums in float32: roundings of both signs add up to less than a few, whatever their order is."""
    terms = terms.cpu()
    expected, size = terms.sum(dim), terms.abs().sum(dim)
    assert found.shape == expected.shape
    assert found.dtype is torch.float32
    assert ((found.cpu() - expected).abs() <= 8 * EPS * size).all()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("relu", [False, True])
def test_a_layer_and_its_gradients_are_those_of_float64(device, shape, relu, taken):
    x, weight, bias, grad = layer(*shape, device)
    y = small_layers.forward(x, weight, bias, relu=relu)
    x64, w64, b64 = x.double(), weight.double(), bias.double()
    products = torch.cat((x64[:, None] * w64, b64.expand(len(x), 1, -1).mT), -1)
    if relu:
        assert (y >= 0).all()
        assert torch.equal(y == 0, small_layers.forward(x, weight, bias, relu=False) <= 0)
        products = torch.where((y > 0)[..., None], products, 0)
    assert_sums(y, products, -1)

    passed = torch.where(y > 0, grad, 0).double() if relu else grad.double()
    behind = y if relu else None
    assert_sums(small_layers.of_input(grad, behind, weight), passed[..., None] * w64, 1)
    of_weight, of_bias = small_layers.of_weight(grad, behind, x, weight)
    assert_sums(of_weight, passed[..., None] * x64[:, None], 0)
    assert_sums(of_bias, passed, 0)
    if math.prod(shape) < 8e6:
        assert set(taken) == {"forward", "of_input", "of_weight"}


@pytest.mark.parametrize("shape", [(5, 50, 7), (20, 200, 100), (17, 9, 1100)], ids=str)
def test_another_call_has_the_same_bits(device, shape):
    x, weight, bias, grad = layer(*shape, device)

    def results():
        y = small_layers.forward(x, weight, bias, relu=True)
        return y, small_layers.of_input(grad, y, weight), *small_layers.of_weight(grad, y, x, weight)

    for one, other in zip(results(), results(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 3e38, 1e-45])
def test_numbers_at_the_ends_go_where_torchs_go(device, value):
    """Nothing of what lies past an end is multiplied with them."""
    x, weight, bias, grad = layer(5, 50, 7, device)
    x[1, 3], weight[2, 4], grad[3, 5] = value, value, value
    kind = "cpu"
    y = small_layers.forward(x, weight, bias, relu=True)
    torch.testing.assert_close(
        y.to(kind),
        torch.relu(x.to(kind) @ weight.to(kind).T + bias.to(kind)),
        rtol=1e-5,
        atol=1e-5,
        equal_nan=True,
    )
    passed = torch.ops.aten.threshold_backward(grad, y, 0).to(kind)
    found = [small_layers.of_input(grad, y, weight), *small_layers.of_weight(grad, y, x, weight)]
    expected = [passed @ weight.to(kind), passed.T @ x.to(kind), passed.sum(0)]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.to(kind), other, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_a_relu_gives_no_gradient_where_it_gave_0(device):
    x, weight, _, grad = layer(5, 50, 7, device)
    y = torch.zeros_like(grad)
    y[2, 3] = math.nan
    of_input = small_layers.of_input(grad, y, weight)
    of_weight, of_bias = small_layers.of_weight(grad, y, x, weight)
    assert of_input.any(1).tolist() == [False, False, True, False, False]
    assert of_weight.any(1).tolist() == (of_bias != 0).tolist() == [number == 3 for number in range(7)]


@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "kernels"),
    [
        (0, 5, 3, set()),
        (129, 5, 3, {"forward", "of_input"}),
        (2, 4096, 3, {"forward", "of_input", "of_weight"}),
        (2, 4097, 3, {"of_input", "of_weight"}),
        (2, 3, 4096, {"forward", "of_input", "of_weight"}),
        (2, 3, 4097, {"forward", "of_weight"}),
    ],
)
def test_what_is_too_large_or_nothing_is_torchs(device, rows, inputs, outputs, kernels, taken):
    x, weight, bias, grad = layer(rows, inputs, outputs, device)
    y = small_layers.forward(x, weight, bias, relu=True)
    found = [y, small_layers.of_input(grad, y, weight), *small_layers.of_weight(grad, y, x, weight)]
    assert set(taken) == kernels
    passed = torch.where(y > 0, grad, 0)
    expected = [torch.relu(x @ weight.T + bias), passed @ weight, passed.T @ x, passed.sum(0)]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", small_layers.MOST_PRODUCTS)
def test_layers_are_small_up_to_a_number_of_products(what):
    most = small_layers.MOST_PRODUCTS[what]
    rows, outputs = 50, most // 50 // 1000
    assert rows * outputs * 1000 == most

    def small(rows, outputs):
        x, weight = torch.empty(rows, 1000, device="meta"), torch.empty(outputs, 1000, device="meta")
        return small_layers._is_small(what, x, weight, 1000)

    assert small(rows, outputs)
    assert not small(rows, outputs + 1)
    assert not small(rows + 1, outputs)


def test_matrices_that_are_not_contiguous_are_torchs(device, taken):
    x, weight, bias, grad = layer(5, 50, 7, device)
    expected = small_layers.forward(x, weight, bias, relu=True)
    taken.clear()
    apart = torch.stack((x, x), -1)[..., 0]
    wide = torch.stack((weight, weight), -1)[..., 0]
    torch.testing.assert_close(small_layers.forward(apart, weight, bias, relu=True), expected)
    torch.testing.assert_close(small_layers.forward(x, wide, bias, relu=True), expected)
    torch.testing.assert_close(small_layers.of_input(grad, None, wide), grad @ weight)
    torch.testing.assert_close(small_layers.of_weight(grad, None, apart, weight)[0], grad.T @ x)
    repeated = grad[:1].expand(5, 7)
    torch.testing.assert_close(small_layers.of_weight(repeated, None, x, weight)[0], repeated.T @ x)
    assert not taken
