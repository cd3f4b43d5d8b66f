"""Dense networks without autograd: the gradients that it gives, the same bits on any thread and level."""

import functools
import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import linear

from fastvae import _core
from fastvae.models import Bernoulli, FlooredTerms, Gaussian, ModelSpec, build_model
from fastvae.training import train
from fastvae.training.dense import DensePass
from fastvae.training.step import loss_slopes, trained_on

LEVELS = [level for level in _core.levels() if level != "portable"]

needs_kernels = pytest.mark.skipif(
    not DensePass.has_kernels(), reason="this processor, or FASTVAE_SIMD, leaves dense layers to torch"
)


# The kernels


def parameters_of(widths, dtype=torch.float32):
    """Weight and bias of each layer, of a size that keeps what they give near 1."""
    pairs = [
        (torch.randn(outputs, inputs) / inputs**0.5, torch.randn(outputs))
        for inputs, outputs in itertools.pairwise(widths)
    ]
    return [tensor.to(dtype) for pair in pairs for tensor in pair]


def by_torch(x, parameters):
    """What each layer gives, a ReLU behind all but the last."""
    given_ = []
    for number in range(0, len(parameters), 2):
        x = linear(x, parameters[number], parameters[number + 1])
        x = x.relu() if number + 2 < len(parameters) else x
        given_.append(x)
    return given_


@given(
    widths=st.lists(st.integers(1, 70) | st.sampled_from([256, 257, 300]), min_size=2, max_size=4),
    samples=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
@settings(max_examples=60)
def test_layers_give_what_torch_gives(widths, samples, seed):
    """Each layer from what the kernels gave before it: no difference of a ReLU is carried on."""
    torch.manual_seed(seed)
    x, parameters, grad = (
        torch.randn(samples, widths[0]),
        parameters_of(widths),
        torch.randn(samples, widths[-1]),
    )
    network = _core.Dense(parameters)
    layers = [_core.Dense(parameters[:end]).forward(x) for end in range(2, len(parameters) + 1, 2)]
    assert torch.equal(network.forward(x), layers[-1])
    layers = [*(layer.relu() for layer in layers[:-1]), layers[-1]]
    of_x, gradients, finite = network.backward(grad, x, True)
    assert finite
    before = x
    for number, (own, weight, bias) in enumerate(zip(layers, parameters[::2], parameters[1::2], strict=True)):
        exact = linear(before.double(), weight.double(), bias.double())
        exact = exact.relu() if number + 1 < len(layers) else exact
        size = linear(before.double().abs(), weight.double().abs(), bias.double().abs())
        assert ((own.double() - exact).abs() <= 300 * 2.0**-24 * size).all()
        before = own
    # Backward through what forward gave, within as many roundings as a number has terms, here and behind it.
    unit = (samples + sum(widths) + 2 * len(widths)) * 2.0**-24
    grad, size = grad.double(), grad.double().abs()

    def near(actual, exact, of_size):
        assert ((actual.double() - exact).abs() <= unit * of_size).all()

    for number in reversed(range(len(layers))):
        weight, inputs = parameters[2 * number].double(), (layers[number - 1] if number else x).double()
        near(gradients[2 * number], grad.t() @ inputs, size.t() @ inputs.abs())
        near(gradients[2 * number + 1], grad.sum(0), size.sum(0))
        grad, size = grad @ weight, size @ weight.abs()
        grad = grad * (inputs > 0) if number else grad
    near(of_x, grad, size)


def test_only_plain_tensors_that_fit_are_taken():
    x, parameters = torch.randn(3, 5), parameters_of([5, 7, 2])
    network = _core.Dense(parameters)
    assert network.forward(x).shape == (3, 2)
    for other in (x.double(), x.t().contiguous().t(), x[0], x[:0], x[:, :4].contiguous()):
        assert network.forward(other) is None
    wrong = parameters_of([5, 6, 2])
    for others in (
        [],
        parameters[:3],
        [parameters[0].double(), *parameters[1:]],
        [parameters[0], parameters[1][:6], *parameters[2:]],
        [*parameters[:2], *wrong[2:]],
        [torch.randn(5, 7).t(), *parameters[1:]],
    ):
        assert _core.Dense(others).forward(x) is None
    network.forward(x)
    grad = torch.randn(3, 2)
    assert network.backward(grad, x, False)[0] is None
    for other in (grad.double(), grad.t().contiguous().t()):
        assert network.backward(other, x, True) is None
    with pytest.raises(ValueError, match="forward took 3 samples of 5 numbers and gave 2, got x of"):
        network.backward(grad[:2], x[:2], True)
    assert _core.Dense(parameters).backward(grad, x, True) is None


def test_a_network_sees_that_a_parameter_changed():
    """Its numbers, its memory, its shape, and its storage."""
    x, parameters = torch.randn(3, 5), parameters_of([5, 7, 2])
    network = _core.Dense(parameters)

    def same():
        return torch.equal(network.forward(x), _core.Dense(parameters).forward(x))

    assert same()
    parameters[0].mul_(2)
    assert same()
    parameters[0].data = torch.randn(7, 5)
    assert same()
    parameters[0].data = torch.randn(5, 7).t()
    assert network.forward(x) is None
    parameters[0].data = torch.randn(7, 5)
    assert same()
    parameters[0].data = torch._neg_view(parameters[0].data)
    assert network.forward(x) is None
    parameters[0].data = torch.randn(7, 5)
    network.forward(x)
    parameters[2].untyped_storage().resize_(4)
    assert network.forward(x) is None
    assert network.backward(torch.randn(3, 2), x, True) is None


def test_gradients_are_written_to_the_same_tensors():
    x, grad = torch.randn(3, 5), torch.randn(3, 2)
    network = _core.Dense(parameters_of([5, 7, 2]))
    network.forward(x)
    _, first, _ = network.backward(grad, x, True)
    before = [gradient.clone() for gradient in first]
    _, second, _ = network.backward(2 * grad, x, True)
    for one, other, old in zip(first, second, before, strict=True):
        assert one is other
        assert torch.equal(one, 2 * old)
    # Batches of another size in between.
    network.forward(x[:1])
    network.backward(grad[:1], x[:1], True)
    network.forward(x)
    assert all(map(torch.equal, network.backward(grad, x, True)[1], before))


def test_backward_is_about_the_last_forward():
    x, grad, parameters = torch.randn(3, 5), torch.randn(3, 2), parameters_of([5, 7, 2])
    network = _core.Dense(parameters)
    network.forward(x)
    parameters[0].data = torch.randn(7, 5)
    assert network.forward(torch.randn(3, 4)) is None
    with pytest.raises(ValueError, match="forward took 0 samples"):
        network.backward(grad, x, True)


def test_gradients_are_not_written_over_what_is_read():
    network = _core.Dense(parameters_of([5, 5]))
    x = torch.randn(5, 5)
    network.forward(x)
    gradients = network.backward(torch.randn(5, 5), x, True)[1]
    network.forward(gradients[0])
    with pytest.raises(ValueError, match="is in the memory of a gradient"):
        network.backward(torch.randn(5, 5), gradients[0], True)
    gradients.clear()
    network.forward(x)
    assert len(network.backward(torch.randn(5, 5), x, True)[1]) == 2


def test_what_is_not_finite_is_said():
    x = torch.randn(3, 5)
    network = _core.Dense(parameters_of([5, 7, 2]))
    network.forward(x)
    for value in (torch.inf, torch.nan):
        grad = torch.randn(3, 2)
        grad[1, 1] = value
        assert not network.backward(grad, x, False)[2]


# A pass


def built(likelihood="bernoulli", variance=None, hidden_dims=(30, 20), **changes):
    spec = {"input_shape": (2, 3, 4), "latent_dim": 5, "hidden_dims": hidden_dims}
    return build_model(ModelSpec(**spec, likelihood=likelihood, variance=variance, **changes))


def data(samples=9):
    return torch.rand(samples, 2, 3, 4)


CASES = {
    "bernoulli": {},
    "gaussian": {"likelihood": "gaussian", "variance": "learned"},
    "gaussian, fixed": {"likelihood": "gaussian", "variance": 0.3},
    "gaussian, predicted": {"likelihood": "gaussian", "variance": "predicted"},
    "plain autoencoder": {"variational": False},
    "one layer": {"hidden_dims": (40,)},
}


@needs_kernels
@pytest.mark.parametrize("free_bits", [0.0, 0.4])
@pytest.mark.parametrize("case", CASES)
def test_a_pass_gives_the_terms_and_gradients_of_autograd(case, free_bits):
    model, x = built(**CASES[case]), data()
    assert DensePass.takes(model)
    slopes = functools.partial(loss_slopes, weight=0.7)
    passed = DensePass(model)(x, 3, slopes, free_bits=free_bits)
    expected = model(x, 3, free_bits=free_bits)
    assert type(passed.terms) is type(expected)
    assert isinstance(expected, FlooredTerms) == bool(free_bits and model.variational)
    for own, wanted in zip(passed.terms, expected, strict=True):
        assert not own.requires_grad
        torch.testing.assert_close(own, wanted.detach(), rtol=1e-5, atol=1e-5)
    roots = [
        (root, slope)
        for root, slope in zip(trained_on(expected), slopes(*trained_on(expected)), strict=True)
        if root.requires_grad
    ]
    torch.autograd.backward(*map(list, zip(*roots, strict=True)))
    parameters = list(model.parameters())
    assert len(passed.of_parameters) == len(parameters)
    for own, parameter in zip(passed.of_parameters, parameters, strict=True):
        torch.testing.assert_close(own, parameter.grad, rtol=1e-4, atol=1e-5)
    assert passed.finite == (not list(model.likelihood.parameters()))


@needs_kernels
def test_a_pass_leaves_nothing_behind():
    model = built()
    DensePass(model)(data(), 3, functools.partial(loss_slopes, weight=1.0))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all("forward" not in vars(module) for module in model.modules())


@needs_kernels
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")  # torch 2.10, of itself
def test_who_watches_sees_torch(watch):
    """Operators are recorded by a profiler or a mode, so then it is autograd's turn."""
    model, slopes = built(), functools.partial(loss_slopes, weight=1.0)
    with watch:
        assert DensePass(model)(data(), 3, slopes) is None
    with torch.profiler.profile():
        assert DensePass(model)(data(), 3, slopes) is None
    assert DensePass(model)(data().double(), 3, slopes) is None


class OwnBernoulli(Bernoulli):
    pass


def with_(change):
    model = built()
    change(model)
    return model


@needs_kernels
@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.encoder[1].register_forward_hook(lambda *_: None),
        lambda model: model.register_forward_pre_hook(lambda *_: None),
        lambda model: model.decoder.register_full_backward_hook(lambda *_: None),
        lambda model: model.encoder[1].weight.register_hook(lambda grad: grad),
        lambda model: model.encoder[1].weight.register_post_accumulate_grad_hook(lambda _: None),
        lambda model: model.encoder[1].bias.requires_grad_(False),
        lambda model: model.double(),
        lambda model: model.encoder.insert(2, nn.Dropout()),
        lambda model: setattr(model.encoder, "2", nn.Tanh()),
        lambda model: setattr(model.encoder, "1", nn.Linear(24, 30, bias=False)),
        lambda model: setattr(model, "likelihood", OwnBernoulli()),
        lambda model: vars(model.decoder).update(forward=lambda z: z),
        lambda model: setattr(model.encoder, "0", nn.Flatten(2)),
        # Used twice, and so once among the parameters.
        lambda model: setattr(model.decoder[0], "bias", model.encoder[1].bias),
    ],
)  # fmt: skip
def test_what_somebody_would_notice_is_left_to_autograd(change):
    assert DensePass.takes(built())
    assert not DensePass.takes(with_(change))


@needs_kernels
def test_a_layer_that_is_used_twice_is_left_to_autograd():
    model = built(hidden_dims=(10, 10, 10))
    assert DensePass.takes(model)
    model.encoder[5] = model.encoder[3]
    assert not DensePass.takes(model)


@needs_kernels
def test_a_patched_class_is_left_to_autograd(monkeypatch):
    model, forward = built(), nn.ReLU.forward
    monkeypatch.setattr(nn.ReLU, "forward", lambda module, x: 2 * forward(module, x))
    assert not DensePass.takes(model)


@needs_kernels
def test_a_default_device_changes_nothing():
    """It is a mode of functions of torch, which many scripts set."""
    before = digest(run())
    with torch.device("cpu"):
        assert DensePass.takes(built())
        assert DensePass(built())(data(), 3, functools.partial(loss_slopes, weight=1.0)) is not None
        assert digest(run()) == before


class Freezing(torch.utils.data.Dataset):
    """Rows; the 400th that is asked for freezes a parameter, in the second epoch of a loader."""

    def __init__(self, parameter):
        self.parameter, self.asked = parameter, 0

    def __len__(self):
        return len(TABLE)

    def __getitem__(self, number):
        self.asked += 1
        if self.asked == 400:
            self.parameter.requires_grad_(False)
        return TABLE[number]


@needs_kernels
def test_a_likelihood_that_somebody_holds_may_be_changed():
    """Frozen in the middle of a training, or with a parameter that is not used, as with autograd."""
    unused, frozen = Gaussian("learned"), Gaussian("learned")
    unused.extra = nn.Parameter(torch.zeros(3))
    assert len(run(TABLE, likelihood=unused).history) == 2
    assert (unused.extra == 0).all()
    assert unused.log_variance.item() != 0
    loader = torch.utils.data.DataLoader(Freezing(frozen.log_variance), batch_size=64)
    assert len(run(loader, likelihood=frozen).history) == 2
    assert not frozen.log_variance.requires_grad
    assert frozen.log_variance.item() != 0


@needs_kernels
def test_hooks_of_all_modules_and_anomalies_too():
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert not DensePass.takes(built())
    finally:
        handle.remove()
    with pytest.warns(UserWarning, match="Anomaly Detection"), torch.autograd.detect_anomaly():
        assert not DensePass.takes(built())
    assert not DensePass.takes(build_model(ModelSpec((1, 8, 8), 2, preset="conv")))
    assert DensePass.takes(built())


# A training


PIXELS = np.random.default_rng(0).integers(0, 256, (150, 5, 5), dtype=np.uint8)
TABLE = np.random.default_rng(1).normal(size=(150, 7)).astype(np.float32)


def run(data=PIXELS, **changes):
    settings_ = {"latent_dim": 3, "hidden_dims": (40, 30), "epochs": 2, "batch_size": 64, "warmup": 0.5}
    return train(data, **(settings_ | {"progress": False, "device": "cpu", "validation": None} | changes))


def digest(result):
    together = b"".join(value.numpy().tobytes() for value in result.model.state_dict().values())
    return hashlib.sha256(together).hexdigest()


@needs_kernels
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"data": TABLE},
        {"free_bits": 0.2},
        {"weight_decay": 0.1},
        {"cycles": 2, "warmup": 1.0},
        {"capacity": 0.2},
        {"capacity": 0.2, "warmup": 0},
    ],
    ids=str,
)
def test_a_training_differs_from_autograds_by_rounding(changes, monkeypatch):
    passes, call = [], DensePass.__call__
    monkeypatch.setattr(DensePass, "__call__", lambda *a, **k: passes.append(1) or call(*a, **k))
    own = run(**changes)
    assert len(passes) == 6
    monkeypatch.setattr(DensePass, "takes", classmethod(lambda *_: False))
    other = run(**changes)
    assert len(passes) == 6
    for ours, theirs in zip(own.history, other.history, strict=True):
        assert ours["recon"] == pytest.approx(theirs["recon"], rel=1e-5)
        assert ours["kl"] == pytest.approx(theirs["kl"], rel=1e-3)


@needs_kernels
@pytest.mark.parametrize("changes", [{}, {"data": TABLE}], ids=["pixels", "table"])
def test_a_training_has_the_same_bits_on_any_number_of_threads(changes, threads):
    """With layers and batches that are large enough for all of them."""
    large = {"hidden_dims": (400, 300), "batch_size": 100, "latent_dim": 20}
    digests = set()
    for count in (1, 2, 3):
        threads(count)
        digests.add(digest(run(**changes, **large)))
    assert len(digests) == 1


@needs_kernels
@pytest.mark.skipif(len(LEVELS) < 2, reason="this processor has one level of vectors")
def test_a_training_has_the_same_bits_at_every_level():
    code = "from test_dense import TABLE, digest, run; print(digest(run()), digest(run(TABLE)))"
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    digests = set()
    for level in LEVELS:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env={**os.environ, "FASTVAE_SIMD": level, "PYTHONPATH": path},
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        digests.add(done.stdout.strip())
    assert len(digests) == 1


@needs_kernels
def test_an_interrupted_training_leaves_a_usual_model(monkeypatch):
    calls, call = [], DensePass.__call__

    def interrupted(*arguments, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return call(*arguments, **options)

    monkeypatch.setattr(DensePass, "__call__", interrupted)
    result = run()
    assert [record["epoch"] for record in result.history] == [1]
    terms = result.model(torch.rand(3, 5, 5), 1)
    (terms.kl - terms.recon).mean().backward()
    assert all(parameter.grad is not None for parameter in result.model.parameters())
