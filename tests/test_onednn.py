"""Linear layers by oneDNN give what torch's give, where they are meant to be, and are gone afterwards."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastvae.training import onednn, train

EPS = torch.finfo(torch.float32).eps
ZEN_5 = "processor : 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n"
ZEN_4 = ZEN_5.replace(": 26", ": 25")
INTEL = "processor : 0\nvendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 207\n"
ARM = "processor : 0\nBogoMIPS : 243.75\nCPU implementer : 0x41\nCPU architecture: 8\n"
PIXELS = np.random.default_rng(0).random((60, 4, 4)).astype(np.float32)
SMALL = {"latent_dim": 2, "hidden_dims": (8,), "epochs": 2, "batch_size": 16, "progress": False}

needs_the_operator = pytest.mark.skipif(not onednn._computes(), reason="this torch has no oneDNN")


@pytest.fixture
def layers(monkeypatch):
    """Have oneDNN take every layer on every processor; gives the shapes of the products it was asked for."""
    monkeypatch.setattr(onednn, "FEWEST_PRODUCTS", 0)
    monkeypatch.setattr(onednn, "is_faster", lambda: True)
    asked, product = [], onednn._product

    def watched(x, weight, bias=None):
        asked.append((tuple(x.shape), tuple(weight.shape)))
        return product(x, weight, bias)

    monkeypatch.setattr(onednn, "_product", watched)
    return asked


def run(**changes):
    return train(PIXELS, **(SMALL | {"device": "cpu"} | changes))


# What it computes


@needs_the_operator
@given(
    rows=st.integers(1, 40),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 70),
    bias=st.booleans(),
    strided=st.booleans(),
    expanded=st.booleans(),
)
def test_values_and_gradients_are_those_of_float64(layers, rows, inputs, outputs, bias, strided, expanded):
    layer = nn.Linear(inputs, outputs, bias=bias)
    x = torch.randn(rows, 2 * inputs)[:, ::2] if strided else torch.randn(rows, inputs)
    x.requires_grad_()
    grad = torch.randn(rows, 1).expand(rows, outputs) if expanded else torch.randn(rows, outputs)
    with onednn.linear_layers(nn.Sequential(layer)):
        y = layer(x)
    # Sums of n products, in any order, are off by n rounding errors of the sum of their sizes at most.
    w, b = layer.weight.double(), layer.bias.double() if bias else torch.zeros(outputs, dtype=torch.float64)
    within(y, x.double() @ w.t() + b, x.double().abs() @ w.abs().t() + b.abs(), inputs + 1)
    of_x, *of_layer = torch.autograd.grad(y, [x, *layer.parameters()], grad)
    exact = grad.double()
    within(of_x, exact @ w, exact.abs() @ w.abs(), outputs)
    within(of_layer[0], exact.t() @ x.double(), exact.abs().t() @ x.double().abs(), rows)
    if bias:
        within(of_layer[1], exact.sum(0), exact.abs().sum(0), rows)
    assert of_layer[0].is_contiguous()


def within(actual, wanted, size, terms):
    assert actual.shape == wanted.shape
    assert bool(((actual.double() - wanted).abs() <= terms * EPS * size).all())


@needs_the_operator
def test_gradients_are_taken_of_what_needs_them(layers):
    layer, x = nn.Linear(3, 4), torch.randn(5, 3)
    with onednn.linear_layers(layer):
        layer(x).sum().backward()
        assert len(layers) == 2  # none of x
        layer.weight.requires_grad_(False)
        layer(x.requires_grad_()).sum().backward()
        assert len(layers) == 4  # none of the weight
    assert x.grad is not None


@needs_the_operator
def test_a_second_derivative_is_refused(layers):
    layer, x = nn.Linear(3, 4), torch.randn(5, 3, requires_grad=True)
    with onednn.linear_layers(layer):
        (of_x,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        of_x.sum().backward()


@pytest.mark.parametrize("what", ["small", "evaluation", "float64", "sequences", "autocast", "subclass"])
def test_what_is_not_for_it_is_left_to_torch(layers, monkeypatch, what):
    class Layer(nn.Linear):
        pass

    layer = Layer(3, 4) if what == "subclass" else nn.Linear(3, 4)
    x = torch.randn(2, 5, 3) if what == "sequences" else torch.randn(5, 3)
    if what == "small":
        monkeypatch.setattr(onednn, "FEWEST_PRODUCTS", 5 * 3 * 4 + 1)
    if what == "float64":
        layer, x = layer.double(), x.double()
    dense = torch.bfloat16 if what == "autocast" else torch.float32
    with (
        torch.set_grad_enabled(what != "evaluation"),
        torch.autocast("cpu", dense, enabled=what == "autocast"),
    ):
        wanted = layer(x)
        with onednn.linear_layers(layer):
            given_ = layer(x)
    assert torch.equal(given_, wanted)
    assert given_.dtype is wanted.dtype
    assert layers == []


@needs_the_operator
@pytest.mark.parametrize(("rows", "taken"), [(4, 0), (5, 1)])
def test_a_layer_is_as_large_as_its_batch(layers, monkeypatch, rows, taken):
    monkeypatch.setattr(onednn, "FEWEST_PRODUCTS", 5 * 3 * 4)
    layer = nn.Linear(3, 4)
    with onednn.linear_layers(layer):
        layer(torch.randn(rows, 3))
    assert len(layers) == taken


@needs_the_operator
def test_rows_that_overlap_are_left_to_torch(layers):
    """The operator refuses some of them."""
    layer, x = nn.Linear(3, 4), torch.randn(7).as_strided((5, 3), (1, 1))
    with onednn.linear_layers(layer):
        layer(x).sum().backward()
    assert layers == []


# Where


@needs_the_operator
def test_the_answer_does_not_depend_on_the_defaults_of_who_asks_first():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert onednn._computes()
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("text", "processor"),
    [
        (ZEN_5, ("AuthenticAMD", 26)),
        (ZEN_4, ("AuthenticAMD", 25)),
        (INTEL, ("GenuineIntel", 6)),
        ("AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD", ("AuthenticAMD", 26)),
        ("Intel64 Family 6 Model 183 Stepping 1, GenuineIntel", ("GenuineIntel", 6)),
        (ARM, ("", 0)),
        ("", ("", 0)),
    ],
)
def test_the_processor_is_read_of_what_the_system_says(text, processor):
    assert onednn._read(text) == processor


@needs_the_operator
@pytest.mark.parametrize(
    ("text", "faster"), [(ZEN_5, True), (ZEN_4, False), (INTEL, False), (ARM, False), ("", False)]
)
def test_it_is_for_processors_on_which_mkl_leaves_half_unused(monkeypatch, text, faster):
    monkeypatch.setattr(onednn, "_processor", lambda: onednn._read(text))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    assert onednn.is_faster() is faster


@needs_the_operator
def test_without_mkl_or_with_onednn_switched_off_torch_does_it(monkeypatch):
    monkeypatch.setattr(onednn, "_processor", lambda: onednn._read(ZEN_5))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    torch.backends.mkldnn.set_flags(False)
    try:
        assert not onednn.is_faster()
    finally:
        torch.backends.mkldnn.set_flags(True)
    assert onednn.is_faster()
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    assert not onednn.is_faster()


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError, None])
def test_an_operator_that_is_not_what_it_was_is_not_used(monkeypatch, error):
    def changed(x, weight, bias=None):
        if error:
            raise error("changed")
        return x @ weight.t()

    monkeypatch.setattr(onednn, "_product", changed)
    assert not onednn._computes()


# In a training


@needs_the_operator
def test_a_training_differs_by_rounding(layers):
    def bounds(result):
        return [record[name] for record in result.history for name in ("recon", "kl", "val_recon", "val_kl")]

    fast = run()
    assert len(layers) > 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onednn, "is_faster", lambda: False)
        assert bounds(fast) == pytest.approx(bounds(run()), rel=1e-5)


@needs_the_operator
def test_afterwards_the_layers_are_torchs_again(layers):
    result = run()
    assert all("forward" not in vars(module) for module in result.model.modules())

    def interrupt(module, inputs):
        raise KeyboardInterrupt

    model = nn.Sequential(nn.Linear(2, 3))
    model[0].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt), onednn.linear_layers(model):
        model(torch.ones(1, 2))
    assert "forward" not in vars(model[0])


def test_nothing_is_left_of_a_beginning_that_was_interrupted(monkeypatch):
    """Between two layers."""
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    given_ = []

    def interrupted(function, layer):
        if given_:
            raise KeyboardInterrupt
        given_.append(layer)
        return function

    monkeypatch.setattr(onednn.functools, "partial", interrupted)
    with pytest.raises(KeyboardInterrupt), onednn.linear_layers(model):
        pass
    assert given_ == [model[0]]
    assert all("forward" not in vars(module) for module in model)


@pytest.mark.parametrize("what", ["own encoder", "inductor", "bfloat16"])
def test_other_trainings_go_without(layers, monkeypatch, what):
    if what == "own encoder":
        run(encoder=nn.Sequential(nn.Flatten(), nn.Linear(16, 4)))
    elif what == "bfloat16":
        run(precision="bfloat16")
    else:
        monkeypatch.setattr(torch, "compile", lambda function, **_: function)
        run(compile="inductor")
    assert layers == []
