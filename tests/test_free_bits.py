"""KL per dimension and free bits: against float64 and plain torch, with exact zeros below the floor."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fastvae
from fastvae import _core, noise, objectives
from fastvae import functional as F
from fastvae.cli.parser import build_parser
from fastvae.models import VAE, Bernoulli
from fastvae.ops.gaussian_kl import reference
from fastvae.ops.layout import OPMATH
from layouts import LAYOUTS, in_layout

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
SHAPE = (6, 8)
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def inputs(dtype=torch.float64, shape=SHAPE, requires_grad=True):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)
        for _ in range(2)
    )


def plain_elements(mu, logvar):
    mu, logvar = mu.double(), logvar.double()
    return 0.5 * (mu * mu + torch.expm1(logvar) - logvar)


def plain(mu, logvar, floor, group, event_dims=1):
    """The definition: per latent, the sum over groups of max(floor, KL)."""
    kl = plain_elements(mu, logvar).flatten(mu.dim() - event_dims)
    groups = kl.unflatten(-1, (-1, group)).sum(-1)
    return torch.where(groups > floor, groups, floor).sum(-1)


def assert_all_close(got, expected, tolerance=1e-10):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# KL per dimension


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(41, 7), (1, 1), (700, 3), (3, 17000), (70, 1000)])
def test_the_kl_of_each_dimension_is_the_mean_over_the_latents(dtype, shape):
    mu, logvar = inputs(dtype, shape)
    kl = F.gaussian_kl(mu, logvar, reduction="dimension")
    assert kl.shape == shape[1:]
    truth = plain_elements(mu.detach(), logvar.detach()).mean(0)
    bound = 1e-14 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(kl.detach().double(), truth, rtol=bound, atol=1e-12)
    z, fused = F.reparametrize_kl(mu, logvar, seed=3, reduction="dimension")
    assert torch.equal(fused, kl)
    assert torch.equal(z, F.reparametrize(mu, logvar, seed=3))
    prior = torch.zeros_like(mu), torch.zeros_like(mu)
    from_prior = F.gaussian_kl(mu, logvar, *prior, reduction="dimension")
    torch.testing.assert_close(from_prior, kl, rtol=bound, atol=1e-12)
    upstream = torch.randn_like(kl)
    got = torch.autograd.grad(kl, (mu, logvar), upstream)
    every = upstream / shape[0]
    elements = F.gaussian_kl(mu, logvar, reduction="none")
    expected = torch.autograd.grad(elements, (mu, logvar), every.expand(shape))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("event_dims", [0, 1, 2, 3])
def test_the_shape_is_that_of_the_event(event_dims):
    mu, logvar = inputs(shape=(4, 3, 5))
    kl = F.gaussian_kl(mu, logvar, event_dims=event_dims, reduction="dimension")
    assert kl.shape == mu.shape[3 - event_dims :]
    truth = plain_elements(mu, logvar).reshape(-1, *kl.shape).mean(0)
    torch.testing.assert_close(kl, truth, rtol=1e-12, atol=0)
    expected = reference.gaussian_kl(mu, logvar, event_dims, "dimension")
    torch.testing.assert_close(kl, expected / (mu.numel() / kl.numel()), rtol=1e-12, atol=0)


def test_dimensions_have_the_same_bits_on_every_thread_count(threads):
    mu, logvar = inputs(torch.float32, (3000, 300), requires_grad=False)
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append(F.gaussian_kl(mu, logvar, reduction="dimension"))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_no_latents_and_no_dimensions():
    assert F.gaussian_kl(*inputs(shape=(4, 0)), reduction="dimension").shape == (0,)
    assert F.gaussian_kl(*inputs(shape=(0, 4)), reduction="dimension").isnan().all()


# Free bits

FLOORS = [(0.1, 1), (0.4, 1), (1.0, 2), (1.5, 4), (3.0, 8)]
floors = pytest.mark.parametrize(("floor", "group"), FLOORS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("shape", "group"),
    [
        ((41, 7), 1),
        ((41, 7), 7),
        ((9, 48), 3),
        ((9, 48), 16),
        ((5, 90), 45),
        ((3, 17000), 1),
        ((3, 17000), 17),
        ((2, 17000), 17000),
        ((2, 15000), 5000),
        ((3000, 2), 2),
    ],
)
def test_each_group_counts_at_least_its_floor(dtype, shape, group):
    mu, logvar = inputs(dtype, shape)
    elements = plain_elements(mu.detach(), logvar.detach()).unflatten(-1, (-1, group))
    # A floor that about half of the groups reach, between two of them.
    ordered = elements.sum(-1).flatten().sort().values
    middle = len(ordered) // 2
    floor = float(ordered[max(middle - 1, 0) : middle + 1].mean()) * (1.0 if middle else 0.5)
    options = {"free_bits": floor, "group_size": group}
    kl = F.gaussian_kl(mu, logvar, **options)
    bound = 1e-13 if dtype == torch.float64 else 1e-6
    truth = plain(mu.detach(), logvar.detach(), floor, group)
    torch.testing.assert_close(kl.detach().double(), truth, rtol=bound, atol=0)
    z, fused = F.reparametrize_kl(mu, logvar, seed=3, **options)
    assert torch.equal(fused, kl)
    assert torch.equal(z, F.reparametrize(mu, logvar, seed=3))
    # Where a group is above its floor the gradients are those of the KL, and elsewhere exactly 0.
    upstream = torch.randn_like(kl)
    above = (elements.sum(-1, keepdim=True) > floor).expand_as(elements).reshape(shape)
    every = torch.where(above, upstream.unsqueeze(-1), 0.0)
    expected = torch.autograd.grad(F.gaussian_kl(mu, logvar, reduction="none"), (mu, logvar), every)
    got = torch.autograd.grad(kl, (mu, logvar), upstream)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    g_z = torch.randn_like(z)
    fused_grads = torch.autograd.grad((z, fused), (mu, logvar), (g_z, upstream))
    z, elementwise = F.reparametrize_kl(mu, logvar, seed=3, reduction="none")
    expected = torch.autograd.grad((z, elementwise), (mu, logvar), (g_z, every))
    assert all(torch.equal(a, b) for a, b in zip(fused_grads, expected, strict=True))


def test_a_group_at_its_floor_is_free():
    mu, logvar = torch.tensor([[1.0, 1.0, 2.0]], requires_grad=True), torch.zeros(1, 3)
    kl = F.gaussian_kl(mu, logvar, free_bits=0.5)
    assert kl.item() == 0.5 + 0.5 + 2.0
    assert torch.autograd.grad(kl, mu)[0].tolist() == [[0.0, 0.0, 2.0]]
    kl = objectives.free_bits(F.gaussian_kl(mu, logvar, reduction="dimension"), 0.5)
    assert kl.item() == 3.0
    assert torch.autograd.grad(kl, mu)[0].tolist() == [[0.0, 0.0, 2.0]]


@pytest.mark.parametrize("group_size", [1, 2])
def test_what_is_free_passes_no_infinite_gradient_on(group_size):
    """In the kernel, in the reference, and in autograd's own backward of that."""
    mu = torch.tensor([[0.01, 0.02, 2.0, 0.01]], requires_grad=True)
    logvar, upstream = torch.zeros(1, 4, requires_grad=True), torch.tensor([math.inf])
    arguments = (mu, logvar, 1, "sample", 0.3, group_size)
    expected = torch.autograd.grad(reference.gaussian_kl(*arguments), (mu, logvar), upstream)
    kernel = torch.autograd.grad(
        F.gaussian_kl(mu, logvar, free_bits=0.3, group_size=group_size), mu, upstream
    )
    by_hand = reference.gaussian_kl_backward(upstream, *arguments)
    assert kernel[0][0, :3].tolist() == by_hand[0][0, :3].tolist() == [0.0, 0.0, math.inf]
    assert expected[0][0, :3].tolist() == [0.0, 0.0, math.inf]
    assert by_hand[1][0, :2].tolist() == [0.0, 0.0]


def test_no_free_bits_is_the_kl_bit_for_bit():
    mu, logvar = inputs(torch.float32, (50, 24), requires_grad=False)
    for group in (1, 2, 24):
        options = {"free_bits": 0, "group_size": group}
        assert torch.equal(F.gaussian_kl(mu, logvar, **options), F.gaussian_kl(mu, logvar))
        assert torch.equal(F.reparametrize_kl(mu, logvar, seed=1, **options)[1], F.gaussian_kl(mu, logvar))


@floors
def test_reductions(floor, group):
    mu, logvar = inputs()
    rows = plain(mu, logvar, floor, group)
    expected = {"sample": rows, "sum": rows.sum(), "batchmean": rows.mean(), "mean": rows.sum() / mu.numel()}
    for reduction, value in expected.items():
        options = {"free_bits": floor, "group_size": group, "reduction": reduction}
        torch.testing.assert_close(F.gaussian_kl(mu, logvar, **options), value, rtol=1e-12, atol=0)
        torch.testing.assert_close(
            F.reparametrize_kl(mu, logvar, seed=3, **options)[1], value, rtol=1e-12, atol=0
        )
        assert torch.autograd.gradcheck(lambda m, l, o=options: F.gaussian_kl(m, l, **o), (mu, logvar))


@given(
    rows=st.integers(1, 20),
    groups=st.integers(1, 40),
    group=st.integers(1, 40),
    floor=st.floats(0.01, 30),
    dtype=st.sampled_from(DTYPES),
    transposed=st.booleans(),
)
def test_any_shape_and_any_group(rows, groups, group, floor, dtype, transposed):
    """The kernel is the reference, on the same element-wise KL."""
    generator = torch.Generator().manual_seed(rows + 31 * groups)
    mu, logvar = (torch.randn(rows, groups * group, generator=generator).to(dtype) for _ in range(2))
    if transposed:
        mu, logvar = (t.t().contiguous().t() for t in (mu, logvar))
    got = F.gaussian_kl(mu, logvar, free_bits=floor, group_size=group).double()
    truth = plain(mu, logvar, floor, group)
    torch.testing.assert_close(got, truth, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)


@given(
    rows=st.integers(1, 20),
    groups=st.integers(1, 40),
    group=st.integers(1, 40),
    floor=st.floats(0.01, 30),
    dtype=st.sampled_from(DTYPES),
    chosen=st.lists(st.sampled_from(LAYOUTS), min_size=4, max_size=4),
    reduction=st.sampled_from(["sample", "sum"]),
)
def test_strides_do_not_change_a_bit(rows, groups, group, floor, dtype, chosen, reduction):
    """Values and gradients; the incoming ones are transposed, expanded, negated or one number as well."""
    generator = torch.Generator().manual_seed(rows + 31 * groups)

    def tensor(layout, dtype, *shape):
        return in_layout(torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype), layout)

    mu, logvar, grad_z = (tensor(layout, dtype, rows, groups * group) for layout in chosen[:3])
    # One number for each latent: a column of a matrix in the layout, so that it has strides of its own.
    grad_kl = tensor(chosen[3], OPMATH[dtype], rows, 3)[:, 1]
    grad_kl = grad_kl if reduction == "sample" else grad_kl[0]
    parameters, dense = (mu, logvar), tuple(t.clone().contiguous() for t in (mu, logvar))
    kl_options, noise_options = (
        (1, reduction, floor, group),
        (torch.tensor(3), 2, 5, 1, reduction, floor, group),
    )
    ops = torch.ops.fastvae
    assert torch.equal(ops.gaussian_kl(*parameters, *kl_options), ops.gaussian_kl(*dense, *kl_options))
    dense_grads = grad_z.clone().contiguous(), grad_kl.clone().contiguous()
    for got, expected in (
        (ops.reparametrize_kl(*parameters, *noise_options), ops.reparametrize_kl(*dense, *noise_options)),
        (
            ops.gaussian_kl_backward(grad_kl, *parameters, *kl_options),
            ops.gaussian_kl_backward(dense_grads[1], *dense, *kl_options),
        ),
        (
            ops.reparametrize_kl_backward(grad_z, grad_kl, *parameters, *noise_options),
            ops.reparametrize_kl_backward(*dense_grads, *dense, *noise_options),
        ),
    ):
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    # A dense gradient that is right says so for all of them.
    expected = reference.gaussian_kl_backward(dense_grads[1], *dense, *kl_options)
    bound = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    for a, b in zip(ops.gaussian_kl_backward(grad_kl, *parameters, *kl_options), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=bound, atol=0)


def test_bits_do_not_depend_on_threads(threads):
    mu, logvar = inputs(torch.float32, (700, 1024))
    results = []
    for count in (1, 3):
        threads(count)
        z, kl = F.reparametrize_kl(mu, logvar, seed=1, free_bits=8.0, group_size=16)
        results.append((z, kl, *torch.autograd.grad(z.sin().sum() + kl.square().sum(), (mu, logvar))))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


DIGEST = """
import hashlib, torch
from fastvae import functional as F
digest = hashlib.sha256()
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for shape in ((41, 48), (2, 17000), (1000, 1)):
        mu, logvar = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(2))
        for group in {1, min(shape[1], 4), shape[1]}:
            z, kl = F.reparametrize_kl(mu, logvar, seed=3, free_bits=0.5 * group, group_size=group)
            loss = z.double().square().sum() + kl.double().square().sum()
            for t in (z, kl, *torch.autograd.grad(loss, (mu, logvar))):
                digest.update(t.detach().contiguous().view(torch.uint8).numpy().tobytes())
        kl = F.gaussian_kl(mu, logvar, reduction="dimension").detach()
        digest.update(kl.view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits():
    digests = set()
    for level in _core.levels():
        environment = os.environ | {"FASTVAE_SIMD": level}
        run = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout)
    assert len(digests) == 1


def test_nan_is_not_hidden_by_the_floor():
    for group in (1, 2, 20):
        mu, logvar = torch.zeros(3, 20), torch.zeros(3, 20)
        logvar[1, 17] = torch.nan
        kl = F.gaussian_kl(mu, logvar, free_bits=1.0, group_size=group)
        assert kl.isnan().tolist() == [False, True, False]
        assert reference.gaussian_kl(mu, logvar, 1, "sample", 1.0, group).isnan().tolist() == [
            False,
            True,
            False,
        ]


EXTREMES = [math.inf, -math.inf, math.nan, 200.0, -300.0, 80.0, 1e-30, 0.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("group", [1, 2, 20, 40])
@pytest.mark.parametrize("floor", [1e-30, 0.5, 1e30])
def test_extremes_are_those_of_the_formula(floor, group, dtype):
    """A floor below and above every KL, and a group with a value that is huge, tiny, infinite or NaN."""
    mu, logvar = torch.zeros(len(EXTREMES), 40, dtype=dtype), torch.full((len(EXTREMES), 40), 0.125).to(dtype)
    logvar[:, 19] = torch.tensor(EXTREMES, dtype=dtype)
    upstream = torch.randn(len(EXTREMES), dtype=dtype)
    bound = 1e-14 if dtype == torch.float64 else 1e-6
    for place in (logvar, mu):
        options = (mu, logvar, 1, "sample", floor, group)
        got = (
            torch.ops.fastvae.gaussian_kl(*options),
            *torch.ops.fastvae.gaussian_kl_backward(upstream, *options),
        )
        expected = reference.gaussian_kl(*options), *reference.gaussian_kl_backward(upstream, *options)
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=bound, atol=0, equal_nan=True)
        # Next, the same numbers in the mean.
        if place is logvar:
            mu[:, 19], logvar[:, 19] = logvar[:, 19].clone(), 0.125


def fused_loss(floor, group):
    def loss(mu, logvar):
        z, kl = F.reparametrize_kl(mu, logvar, seed=3, free_bits=floor, group_size=group)
        return (z.sin().sum(-1) + kl.square()).sum()

    return loss


def plain_loss(floor, group):
    def loss(mu, logvar):
        z = mu + (logvar / 2).exp() * noise.normal(SHAPE, 3, dtype=mu.dtype)
        return (z.sin().sum(-1) + plain(mu, logvar, floor, group).square()).sum()

    return loss


@floors
def test_gradients_of_every_order_and_transforms(floor, group):
    loss, expected = fused_loss(floor, group), plain_loss(floor, group)
    assert torch.autograd.gradcheck(loss, inputs())
    assert torch.autograd.gradgradcheck(loss, inputs())
    mu, logvar = inputs(requires_grad=False)
    tangents = tuple(torch.randn_like(t) for t in (mu, logvar))
    for transform in (
        lambda f: torch.func.grad(f, argnums=(0, 1))(mu, logvar),
        lambda f: torch.func.jvp(f, (mu, logvar), tangents),
        lambda f: (torch.func.hessian(f)(mu, logvar),),
    ):
        assert_all_close(transform(loss), transform(expected))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(dynamic):
    torch.compiler.reset()
    mu, logvar = inputs()

    def loss(mu, logvar):
        return fused_loss(1.0, 2)(mu, logvar) + F.gaussian_kl(mu, logvar, reduction="dimension").sin().sum()

    value = torch.compile(loss, fullgraph=True, backend="aot_eager", dynamic=dynamic)(mu, logvar)
    got = value, *torch.autograd.grad(value, (mu, logvar))
    assert_all_close(got, (loss(mu, logvar), *torch.autograd.grad(loss(mu, logvar), (mu, logvar))), 1e-12)
    torch.compiler.reset()


def operator_samples():
    seed = torch.tensor(3)
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        opmath = OPMATH[dtype]
        for grad in (False, True):
            mu, logvar = (torch.randn(8, 6).to(dtype).t().detach().requires_grad_(grad) for _ in range(2))
            yield "gaussian_kl", (mu, logvar, 1, "sample", 0.5, 2)
            yield "reparametrize_kl", (mu, logvar, seed, 0, 0, 1, "dimension")
            yield "reparametrize_kl", (mu, logvar, seed, 0, 0, 1, "sum", 0.5, 4)
        mu, logvar, z = (
            torch.randn(8, 6).to(dtype).t(),
            torch.randn(6, 8).to(dtype),
            torch.randn(6, 8).to(dtype),
        )
        kl, total = torch.randn(6, dtype=opmath), torch.randn((), dtype=opmath)
        yield "gaussian_kl_backward", (torch.randn(8, dtype=opmath), mu, logvar, 1, "dimension")
        yield "gaussian_kl_backward", (kl, mu, logvar, 1, "sample", 0.5, 2)
        yield "gaussian_kl_backward", (total.expand(6), mu, logvar, 1, "sample", 0.5, 2)
        yield "reparametrize_kl_backward", (z, kl, mu, logvar, seed, 0, 0, 1, "sample", 0.5, 2)
        yield "reparametrize_kl_backward", (z, total, mu, logvar, seed, 0, 0, 1, "sum", 0.5, 4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("name", "arguments"), list(operator_samples()))
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(torch.ops.fastvae, name).default, arguments)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"free_bits": -0.1}, ValueError, "free_bits must be a finite number of nats, at least 0, got -0.1"),
        ({"free_bits": float("nan")}, ValueError, "free_bits must be a finite number"),
        ({"free_bits": float("inf")}, ValueError, "free_bits must be a finite number"),
        ({"free_bits": "1"}, TypeError, "free_bits must be a number, got str"),
        ({"free_bits": True}, TypeError, "free_bits must be a number, got bool"),
        ({"free_bits": 1, "group_size": 3}, ValueError, "group_size must divide the 8 dimensions.*got 3"),
        ({"group_size": 0}, ValueError, "group_size must divide the 8 dimensions.*got 0"),
        ({"group_size": 2.0}, TypeError, "group_size must be an integer"),
        ({"free_bits": 1, "reduction": "none"}, ValueError, "they go with reduction 'sample', 'sum'"),
        ({"free_bits": 1, "reduction": "dimension"}, ValueError, "got 'dimension'; see fastvae.objectives"),
    ],
)
@pytest.mark.parametrize("function", [F.gaussian_kl, F.reparametrize_kl], ids=lambda f: f.__name__)
def test_bad_options(function, options, error, message):
    with pytest.raises(error, match=f"^{function.__name__}: .*{message}"):
        function(*inputs(), **options)


def test_free_bits_from_another_prior_raise():
    mu, logvar = inputs()
    with pytest.raises(ValueError, match="free_bits go with the standard normal prior"):
        F.gaussian_kl(mu, logvar, mu, free_bits=1.0)


@pytest.mark.parametrize("arguments", [(0.5, 3), (0.5, 0), (0.5, -1)])
def test_the_bare_operator_checks_its_groups(arguments):
    with pytest.raises((ValueError, OverflowError)):
        torch.ops.fastvae.gaussian_kl(*inputs(), 1, "sample", *arguments)
    with pytest.raises(ValueError, match="per sample or in total"):
        torch.ops.fastvae.gaussian_kl(*inputs(), 1, "none", 0.5, 1)


@floors
def test_the_objective_floors_the_batch_average(floor, group):
    mu, logvar = inputs()
    per_dimension = F.gaussian_kl(mu, logvar, reduction="dimension")
    groups = plain_elements(mu, logvar).mean(0).unflatten(-1, (-1, group)).sum(-1)
    expected = torch.where(groups > floor, groups, floor).sum()
    torch.testing.assert_close(objectives.free_bits(per_dimension, floor, group), expected)
    batchmean = F.gaussian_kl(mu, logvar, reduction="batchmean")
    torch.testing.assert_close(objectives.free_bits(per_dimension, 0.0, group), batchmean)
    with pytest.raises(ValueError, match="floor must be at least 0 nats, got -1"):
        objectives.free_bits(per_dimension, -1)
    with pytest.raises(TypeError, match=r"^free_bits: group_size must be an integer, got float"):
        objectives.free_bits(per_dimension, 0.5, 2.0)
    with pytest.raises(ValueError, match="group_size must divide the 8 dimensions, got 3"):
        objectives.free_bits(per_dimension, 0.1, 3)


# In a model and in training


def test_a_model_gives_both_kls():
    model = VAE(torch.nn.Linear(6, 6), torch.nn.Linear(3, 6), Bernoulli(), latent_dim=3, input_shape=(6,))
    x = torch.rand(5, 6)
    terms, floored = model(x, seed=2), model(x, seed=2, free_bits=0.7)
    assert torch.equal(floored.recon, terms.recon)
    assert torch.equal(floored.kl, terms.kl.detach())
    assert not floored.kl.requires_grad
    mu, logvar = model.posterior(x)
    assert torch.equal(floored.floored_kl, F.gaussian_kl(mu, logvar, free_bits=0.7))


OPTIONS = {"latent_dim": 4, "hidden_dims": 16, "validation": None, "progress": False}


@pytest.mark.filterwarnings("ignore::fastvae.errors.PosteriorCollapseWarning")
def test_training_with_free_bits_uses_them_and_reports_the_true_kl(tmp_path):
    x = torch.rand(300, 12).round()
    free = fastvae.train(x, epochs=3, free_bits=2.0, output_dir=tmp_path / "run", **OPTIONS)
    bound = fastvae.train(x, epochs=3, **OPTIONS)
    assert free.history[-1]["kl"] > bound.history[-1]["kl"]
    # With a hidden floor none of these could be below it.
    assert free.history[0]["kl"] < 4 * 2.0
    assert free.history[0]["elbo"] == free.history[0]["recon"] - free.history[0]["kl"]
    assert fastvae.load(tmp_path / "run").config.training.free_bits == 2.0


@pytest.mark.filterwarnings("ignore::fastvae.errors.PosteriorCollapseWarning")
def test_runs_from_before_free_bits_load(tmp_path):
    result = fastvae.train(torch.rand(20, 12), epochs=1, output_dir=tmp_path / "run", **OPTIONS)
    config = tmp_path / "run" / "config.json"
    content = json.loads(config.read_text())
    del content["training"]["free_bits"]
    config.write_text(json.dumps(content))
    assert dataclasses.asdict(fastvae.load(tmp_path / "run").config) == dataclasses.asdict(result.config)


@pytest.mark.filterwarnings("ignore::fastvae.errors.PosteriorCollapseWarning")
def test_training_without_free_bits_is_what_it_was():
    x = torch.rand(20, 12)
    plain_run = fastvae.train(x, epochs=1, **OPTIONS)
    with_zero = fastvae.train(x, epochs=1, free_bits=0, **OPTIONS)
    assert plain_run.history[0]["elbo"] == with_zero.history[0]["elbo"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"free_bits": -1}, "free_bits must be a finite number of at least 0, got -1"),
        ({"free_bits": 1, "variational": False}, "free_bits are of the KL, which variational=False has not"),
    ],
)
def test_bad_training_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        fastvae.train("digits", **options, **OPTIONS)


def test_the_command_has_the_option():
    options = build_parser().parse_args(["train", "digits", "--free-bits", "0.25"])
    assert options.free_bits == 0.25
