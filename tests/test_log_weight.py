"""Samples with their log weights: right against float64, the bits of `reparametrize`, and composable."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from fastvae import functional as F
from fastvae import noise
from fastvae.ops.reparametrize_log_weight import reference

SHAPE, K, SEED = (6, 5), 3, 3
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
HALVES = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
# torch.compile and torch.jit warn about parts of torch itself.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script:FutureWarning"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]


def eps_of(shape, num_samples=K, draw=0, row_offset=0, event_dims=1, seed=SEED):
    """The noise of every sample in float64."""
    options = {"row_offset": row_offset, "event_dims": event_dims, "dtype": torch.float64}
    return torch.stack([noise.normal(shape, seed, draw=draw + k, **options) for k in range(num_samples)])


def densities(mu, logvar, eps):
    """z and log p(z) - log q(z | x) of each element, by the densities of torch.distributions, in float64."""
    mu, logvar = mu.double(), logvar.double()
    sigma = (logvar / 2).exp()
    z = mu + sigma * eps
    normal = torch.distributions.Normal
    return z, normal(0.0, 1.0).log_prob(z) - normal(mu, sigma).log_prob(z)


def plain(mu, logvar):
    z, terms = densities(mu, logvar, eps_of(SHAPE))
    return z, terms.sum(-1)


def fused(mu, logvar):
    return F.reparametrize_log_weight(mu, logvar, num_samples=K, seed=SEED)


def losses(function):
    """Losses that use both outputs or one, and do not end at the operation."""

    def both(mu, logvar):
        z, log_weight = function(mu, logvar)
        return (z.sin().sum(-1) + log_weight.square()).sum()

    def z_alone(mu, logvar):
        return function(mu, logvar)[0].sin().sum()

    def weight_alone(mu, logvar):
        return torch.logsumexp(function(mu, logvar)[1], 0).square().sum()

    return both, z_alone, weight_alone


every_loss = pytest.mark.parametrize(
    ("loss", "plain_loss"), list(zip(losses(fused), losses(plain), strict=True)), ids=["both", "z", "weight"]
)


def inputs(dtype=torch.float64, requires_grad=True, shape=SHAPE):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(requires_grad)
        for _ in range(2)
    )


def assert_all_close(got, expected, tolerance=1e-10):
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(41, 7), (1, 1), (3, 401), (2, 17000), (5, 2, 3, 4), (9000, 2)])
def test_every_sample_has_the_bits_of_reparametrize(dtype, shape):
    mu, logvar = inputs(dtype, requires_grad=False, shape=shape)
    options = {"seed": 2**63 + 5, "row_offset": 2**40, "event_dims": len(shape) - 1}
    z, log_weight = F.reparametrize_log_weight(mu, logvar, num_samples=4, draw=9, **options)
    assert z.shape == (4, *shape)
    assert z.dtype == dtype
    assert z.is_contiguous()
    assert log_weight.shape == (4, shape[0])
    assert log_weight.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    for k in range(4):
        assert torch.equal(z[k], F.reparametrize(mu, logvar, draw=9 + k, **options))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(41, 7), (3, 401), (2, 17000), (40, 3)])
@pytest.mark.parametrize("implementation", [F.reparametrize_log_weight, reference.reparametrize_log_weight])
def test_log_weights_against_float64(dtype, shape, implementation):
    """Within a few roundings of the sizes that are added: eight terms of a sum, a few operations each."""
    mu, logvar = inputs(dtype, requires_grad=False, shape=shape)
    if implementation is F.reparametrize_log_weight:
        _, log_weight = implementation(mu, logvar, num_samples=K, seed=SEED)
    else:
        _, log_weight = implementation(mu, logvar, torch.tensor(SEED), 0, 0, 1, K)
    eps = eps_of(shape)
    z, terms = densities(mu, logvar, eps)
    sizes = (eps.square() + logvar.double().abs() + z.square()).sum(-1) / 2
    error = ((log_weight.double() - terms.sum(-1)).abs() / sizes).max()
    # The density of torch.distributions cancels in float64 as well.
    assert error < (1e-13 if dtype == torch.float64 else 5e-7)


@pytest.mark.parametrize("size", [1e-3, 1e-6, 0.0])
def test_no_digit_is_lost_where_the_posterior_is_near_the_prior(size):
    """The textbook form, log p - log q, has no digit left here; each element is off by a few roundings."""
    mu, logvar = (t * size for t in inputs(torch.float32, requires_grad=False, shape=(5000, 1)))
    _, log_weight = F.reparametrize_log_weight(mu, logvar, num_samples=2, seed=SEED)
    eps = eps_of(mu.shape, 2)
    m, l = mu.double(), logvar.double()
    step = torch.expm1(l / 2) * eps
    first, second = l / 2, (m + step) * (2 * eps + m + step) / 2
    error = (log_weight.double() - (first - second).sum(-1)).abs()
    assert bool(
        (error <= 3e-7 * (first.abs() + (m.abs() + step.abs()) * (2 * eps.abs() + 1e-3)).sum(-1)).all()
    )
    if size == 0.0:
        assert not log_weight.any()


def test_the_mean_log_weight_is_minus_the_kl():
    mu, logvar = (t[:3] for t in inputs(requires_grad=False))
    _, log_weight = F.reparametrize_log_weight(mu, logvar, num_samples=50_000, seed=SEED)
    error = log_weight.std(0) / 50_000**0.5
    assert bool(((log_weight.mean(0) + F.gaussian_kl(mu, logvar)).abs() < 4 * error).all())


def test_weights_average_to_one():
    """E_q[p(z) / q(z | x)] = 1, for a posterior that is wider than the prior."""
    mu, logvar = torch.tensor([[0.3, -0.2]]), torch.tensor([[0.5, 0.2]])
    _, log_weight = F.reparametrize_log_weight(mu, logvar, num_samples=50_000, seed=SEED)
    weight = log_weight.double().exp()
    assert abs(weight.mean() - 1) < 4 * weight.std() / 50_000**0.5


@every_loss
def test_gradients(loss, plain_loss):
    mu, logvar = inputs()
    torch.testing.assert_close(loss(mu, logvar), plain_loss(mu, logvar), rtol=1e-12, atol=1e-12)
    assert_all_close(
        torch.autograd.grad(loss(mu, logvar), (mu, logvar)),
        torch.autograd.grad(plain_loss(mu, logvar), (mu, logvar)),
    )


@every_loss
def test_gradcheck_and_gradgradcheck(loss, plain_loss):
    assert torch.autograd.gradcheck(loss, inputs())
    assert torch.autograd.gradgradcheck(loss, inputs())


@pytest.mark.parametrize("event_dims", [0, 1, 2])
def test_gradcheck_of_every_event(event_dims):
    def function(mu, logvar):
        return F.reparametrize_log_weight(mu, logvar, num_samples=2, seed=1, event_dims=event_dims, draw=5)

    assert torch.autograd.gradcheck(function, inputs())
    assert function(*inputs())[1].shape == (2, *SHAPE[: 2 - event_dims])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_samples", [1, 8, 9, 50])
@pytest.mark.parametrize("shape", [(41, 7), (3, 5000), (2000, 3)])
def test_gradients_against_float64(dtype, num_samples, shape):
    mu, logvar = inputs(dtype, shape=shape)
    z, log_weight = F.reparametrize_log_weight(mu, logvar, num_samples=num_samples, seed=SEED)
    g_z, g_weight = torch.randn_like(z), torch.randn_like(log_weight)
    eps = eps_of(shape, num_samples)
    m, sigma = mu.detach().double(), (logvar.detach().double() / 2).exp()
    a, b, value = g_z.double(), g_weight.double().unsqueeze(-1), m + sigma * eps
    cases = {
        "both": ((g_z, g_weight), a - b * value, 0.5 * (a * sigma * eps + b * (1 - value * sigma * eps))),
        "z": ((g_z, None), a, 0.5 * a * sigma * eps),
        "weight": ((None, g_weight), -b * value, 0.5 * b * (1 - value * sigma * eps)),
    }
    # The error is relative to the terms, whose sums may cancel.
    step = (sigma * eps).abs()
    of_weight = b.abs() * (m.abs() + step)
    sizes = {
        "both": (a.abs() + of_weight, ((a.abs() + of_weight) * step + b.abs()) / 2),
        "z": (a.abs(), a.abs() * step / 2),
        "weight": (of_weight, (of_weight * step + b.abs()) / 2),
    }
    for name, (upstream, *truths) in cases.items():
        used = [(out, g) for out, g in zip((z, log_weight), upstream, strict=True) if g is not None]
        got = torch.autograd.grad(
            [out for out, _ in used], (mu, logvar), [g for _, g in used], retain_graph=True
        )
        for gradient, truth, size in zip(got, truths, sizes[name], strict=True):
            assert gradient.dtype == dtype
            # One rounding of the result, and of subnormal halves an absolute one.
            rounding = HALVES.get(dtype, 0.0) * truth.sum(0).abs() + 2.0**-25 * (dtype == torch.float16)
            error = ((gradient.double() - truth.sum(0)).abs() - rounding).clamp(0)
            bound = 2e-15 if dtype == torch.float64 else 6e-7
            # Not a quotient: a drawn number may be 0, and the size with it.
            assert bool((error <= bound * size.sum(0)).all()), name


def test_gradients_of_many_samples_add_up_as_samples_one_by_one():
    """A sum in float32 alone would be off by a part in 1e5 here."""
    mu, logvar = inputs(torch.float32, shape=(3, 20))
    _, log_weight = F.reparametrize_log_weight(mu, logvar, num_samples=3000, seed=SEED)
    got = torch.autograd.grad(log_weight.sum(), (mu, logvar))
    wide = tuple(t.detach().double().requires_grad_() for t in (mu, logvar))
    _, log_weight = F.reparametrize_log_weight(*wide, num_samples=3000, seed=SEED)
    for a, b in zip(got, torch.autograd.grad(log_weight.sum(), wide), strict=True):
        assert float(((a.double() - b).abs() / (b.abs() + 3000)).max()) < 1e-7


def test_an_unused_output_has_no_gradient_at_all():
    """A zero times an infinite sigma would be NaN."""
    mu, logvar = torch.zeros(2, 3, requires_grad=True), torch.full((2, 3), 400.0, requires_grad=True)
    grad, _ = torch.autograd.grad(fused(mu, logvar)[0].sum(), (mu, logvar))
    assert torch.equal(grad, torch.full((2, 3), float(K)))


def test_nothing_but_parameters_and_seed_is_saved():
    saved = []
    mu, logvar = inputs(torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        fused(mu, logvar)
    assert [t.data_ptr() for t in saved[:2]] == [mu.data_ptr(), logvar.data_ptr()]
    assert [t.numel() for t in saved[2:]] == [1]


MEMORY = """
import sys
sys.path.insert(0, {benches!r})
import torch
import harness
from fastvae import functional as F
mu, logvar = (torch.randn(1024, 128, requires_grad=True) for _ in range(2))
incoming = torch.randn(50, 1024, 128), torch.randn(50, 1024)
def forward(_=None):
    return F.reparametrize_log_weight(mu, logvar, num_samples=50, seed=3)
def backward(outputs):
    return torch.autograd.grad(outputs, (mu, logvar), incoming)
candidates = dict(
    forward=harness.Candidate("forward", forward), backward=harness.Candidate("backward", backward, forward)
)
print(harness.peak_bytes(candidates[{kind!r}]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux resets a process's peak of resident memory")
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_nothing_as_large_as_z_is_made_beside_it(kind):
    """Forward adds z and the weights to memory, backward two gradients without samples."""
    script = MEMORY.format(benches=str(Path(__file__).parents[1] / "benches"), kind=kind)
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    if run.stdout.strip() == "None":
        pytest.skip("this system does not let a process reset its peak")
    z, per_sample, parameter = 50 * 1024 * 128 * 4, 50 * 1024 * 4, 1024 * 128 * 4
    results = z + per_sample if kind == "forward" else 2 * parameter
    # Pages, what the allocator rounds to, and stacks of threads; a temporary would be another 25 MiB.
    assert results * 0.9 <= int(run.stdout) <= results + 4 * 2**20


def strided_forms(values):
    """One tensor in the strides that torch gives: halves, transposed, expanded, negated, stepped."""
    yield values
    yield torch.cat([values, values], -1).chunk(2, -1)[1]
    yield values.t().contiguous().t()
    yield torch.stack([values, values], -1)[..., 0]
    yield torch._neg_view(-values)


@pytest.mark.parametrize("dtype", DTYPES)
def test_strides_do_not_matter(dtype):
    mu, logvar = inputs(dtype, requires_grad=False, shape=(11, 19))
    expected = fused(mu, logvar)
    for m, l in zip(strided_forms(mu), strided_forms(logvar), strict=True):
        for got, value in zip(fused(m, l), expected, strict=True):
            assert torch.equal(got, value)
    z, log_weight = torch.randn(K, 11, 19).to(dtype), torch.randn(K, 11).to(expected[1].dtype)
    backward = torch.ops.fastvae.reparametrize_log_weight_backward
    arguments = (mu, logvar, torch.tensor(SEED), 0, 0, 1, K)
    grads = backward(z, log_weight, *arguments)
    z_forms = (z, z.mT.contiguous().mT, torch._neg_view(-z), torch.cat([z, z], -1)[..., :19])
    for g_z in z_forms:
        for g_weight in (log_weight, log_weight.t().contiguous().t(), torch._neg_view(-log_weight)):
            got = backward(g_z, g_weight, *arguments)
            assert all(torch.equal(a, b) for a, b in zip(got, grads, strict=True))
    # What sum() sends back: one number, expanded.
    one = torch.ones((), dtype=log_weight.dtype).expand(K, 11)
    for a, b in zip(
        backward(None, one, *arguments), backward(None, one.contiguous(), *arguments), strict=True
    ):
        assert torch.equal(a, b)


def test_an_expanded_posterior():
    mu, logvar = torch.randn(5).expand(4, 5), torch.randn(1, 1).expand(4, 5)
    for got, expected in zip(fused(mu, logvar), fused(mu.contiguous(), logvar.contiguous()), strict=True):
        assert torch.equal(got, expected)


@given(
    rows=st.integers(0, 40),
    columns=st.integers(0, 70),
    num_samples=st.integers(1, 20),
    draw=st.integers(0, 2**32 - 20),
    row_offset=st.integers(0, 2**62),
    dtype=st.sampled_from(DTYPES),
    threads=st.integers(1, 3),
)
def test_any_shape_and_any_draw(rows, columns, num_samples, draw, row_offset, dtype, threads):
    """Samples made together, one by one or a part at a time are the same bits, forward and weights."""
    generator = torch.Generator().manual_seed(rows * 71 + columns)
    mu, logvar = (torch.randn(rows, columns, generator=generator).to(dtype) for _ in range(2))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        z, log_weight = F.reparametrize_log_weight(
            mu, logvar, num_samples=num_samples, seed=1, draw=draw, row_offset=row_offset
        )
    finally:
        torch.set_num_threads(before)
    for k in range(num_samples):
        one, weight = F.reparametrize_log_weight(
            mu, logvar, num_samples=1, seed=1, draw=draw + k, row_offset=row_offset
        )
        assert torch.equal(z[k], one[0])
        assert torch.equal(log_weight[k], weight[0])
    if rows > 1:
        _, rest = F.reparametrize_log_weight(
            mu[1:], logvar[1:], num_samples=num_samples, seed=1, draw=draw, row_offset=row_offset + 1
        )
        assert torch.equal(log_weight[:, 1:], rest)


@pytest.mark.parametrize("shape", [(300, 999), (3, 200_000), (1, 7)])
def test_thread_counts_give_the_same_bits(shape, threads):
    def everything(count):
        threads(count)
        mu, logvar = inputs(torch.float32, shape=shape)
        z, log_weight = F.reparametrize_log_weight(mu, logvar, num_samples=11, seed=SEED)
        grads = torch.autograd.grad(z.sin().sum() + log_weight.square().sum(), (mu, logvar))
        return z.detach(), log_weight.detach(), *grads

    expected = everything(1)
    for count in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(everything(count), expected, strict=True))


DIGEST = """
import hashlib, torch
from fastvae import functional as F
digest = hashlib.sha256()
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for shape in ((41, 7), (2, 17000), (1000, 1)):
        mu, logvar = (torch.randn(shape).to(dtype).requires_grad_() for _ in range(2))
        z, w = F.reparametrize_log_weight(mu, logvar, num_samples=10, seed=3)
        loss = z.double().square().sum() + w.double().square().sum()
        for t in (z, w, *torch.autograd.grad(loss, (mu, logvar))):
            digest.update(t.detach().contiguous().view(torch.uint8).numpy().tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits():
    from fastvae import _core

    digests = set()
    for level in _core.levels():
        environment = os.environ | {"FASTVAE_SIMD": level}
        run = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout)
    assert len(digests) == 1


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (4, 0), (0, 0)])
def test_empty(rows, columns):
    mu, logvar = (torch.zeros(rows, columns, requires_grad=True) for _ in range(2))
    z, log_weight = fused(mu, logvar)
    assert z.shape == (K, rows, columns)
    assert log_weight.shape == (K, rows)
    assert not log_weight.any()
    (grad,) = torch.autograd.grad(z.sum() + log_weight.sum(), mu)
    assert grad.shape == mu.shape


def test_a_scalar_is_one_latent():
    mu, logvar = torch.tensor(0.5), torch.tensor(-1.0)
    z, log_weight = fused(mu, logvar)
    assert z.shape == log_weight.shape == (K,)


def test_extreme_parameters_stay_in_their_row():
    mu, logvar = torch.zeros(4, 20), torch.zeros(4, 20)
    logvar[0, 3], logvar[1, 3], mu[2, 3] = -torch.inf, torch.nan, torch.inf
    z, log_weight = fused(mu, logvar)
    assert bool((log_weight[:, 0] == -torch.inf).all())
    assert bool(log_weight[:, 1].isnan().all())
    assert bool((log_weight[:, 2] == -torch.inf).all())
    assert not log_weight[:, 3].any()
    assert bool((z[:, 0, 3] == 0).all())


GOOD = torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
        ({"num_samples": -3}, ValueError, "num_samples must be at least 1"),
        ({"num_samples": 2.0}, TypeError, "num_samples must be an integer, got float"),
        ({"num_samples": True}, TypeError, "num_samples must be an integer, got bool"),
        (
            {"num_samples": 2, "draw": 2**32 - 1},
            ValueError,
            r"draw \+ num_samples must be at most 2\^32, got 4294967295 \+ 2; another seed",
        ),
        ({"num_samples": 2, "draw": 2**32}, ValueError, "draw must lie in"),
        ({"num_samples": 2, "row_offset": -1}, ValueError, "row_offset must lie in"),
        ({"num_samples": 2, "event_dims": 3}, ValueError, "event_dims must lie between 0"),
        ({"num_samples": 2, "seed": "a"}, TypeError, "seed must be an int"),
    ],
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        F.reparametrize_log_weight(GOOD, GOOD, **options)


def test_bad_tensors():
    with pytest.raises(TypeError, match="reparametrize_log_weight: mu must be float32"):
        F.reparametrize_log_weight(GOOD.long(), GOOD, num_samples=2)
    with pytest.raises(ValueError, match="same shape"):
        F.reparametrize_log_weight(GOOD, GOOD[:2], num_samples=2)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("reparametrize_log_weight", (GOOD, GOOD[:2], torch.tensor(1), 0, 0, 1, 2)),
        ("reparametrize_log_weight", (GOOD, GOOD, torch.tensor(1), 2**32 - 1, 0, 1, 2)),
        ("reparametrize_log_weight", (GOOD, GOOD, torch.tensor(1), 0, 2**63 - 1, 1, 2)),
        ("reparametrize_log_weight", (GOOD, GOOD, torch.tensor(1), 0, 0, 1, -1)),
        ("reparametrize_log_weight_backward", (None, None, GOOD, GOOD, torch.tensor(1), 0, 0, 1, 2)),
        ("reparametrize_log_weight_backward", (GOOD, None, GOOD, GOOD, torch.tensor(1), 0, 0, 1, 2)),
        (
            "reparametrize_log_weight_backward",
            (None, torch.zeros(2, 2), GOOD, GOOD, torch.tensor(1), 0, 0, 1, 2),
        ),
    ],
)
def test_the_bare_operators_check_what_they_read(name, arguments):
    with pytest.raises((ValueError, RuntimeError)):
        getattr(torch.ops.fastvae, name)(*arguments)


@every_loss
def test_func_transforms(loss, plain_loss):
    mu, logvar = inputs(requires_grad=False)
    tangents = tuple(torch.randn_like(t) for t in (mu, logvar))
    for transform in (
        lambda f: torch.func.grad(f, argnums=(0, 1))(mu, logvar),
        lambda f: torch.func.jvp(f, (mu, logvar), tangents),
        lambda f: (torch.func.hessian(f)(mu, logvar),),
    ):
        assert_all_close(transform(loss), transform(plain_loss))


def test_the_second_derivative_at_any_variance():
    """With s = sigma eps it is -(2 s^2 + mu s) / 4, also where sigma - 1 is -1."""
    logvar = torch.tensor([[-80.0, -40.0, -20.0, -10.0, -2.0, -1.0, -0.5, 0.0, 1.0, 10.0]])
    mu = torch.full_like(logvar, 2.0)
    step = (logvar.double() / 2).exp() * noise.normal(tuple(logvar.shape), 3).double()
    terms = torch.stack((2 * step.square(), mu * step)) / 4
    expected, size = -terms.sum(0), terms.abs().sum(0)

    def loss(logvar):
        return F.reparametrize_log_weight(mu, logvar, seed=3, num_samples=1)[1].sum()

    for transform in (torch.func.hessian, lambda f: torch.func.jacfwd(torch.func.jacfwd(f))):
        found = transform(loss)(logvar)[0, :, 0].diagonal()
        assert ((found - expected[0]).abs() <= 3e-7 * size[0]).all()


def test_vmap_with_one_seed_gives_each_example_what_it_gets_alone():
    mu, logvar = inputs(requires_grad=False)
    z, log_weight = torch.func.vmap(fused)(mu, logvar)
    for i in range(SHAPE[0]):
        assert_all_close([z[i], log_weight[i]], fused(mu[i], logvar[i]), 1e-12)


@pytest.fixture
def compiler():
    """torch.compile with the whole pipeline up to the graph, which needs no C++ compiler."""
    torch.compiler.reset()
    yield lambda f, **options: torch.compile(f, fullgraph=True, backend="aot_eager", **options)
    torch.compiler.reset()


@every_loss
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(loss, plain_loss, dynamic, compiler):
    compiled = compiler(loss, dynamic=dynamic)
    mu, logvar = inputs()
    expected = loss(mu, logvar), *torch.autograd.grad(loss(mu, logvar), (mu, logvar))
    value = compiled(mu, logvar)
    assert_all_close((value, *torch.autograd.grad(value, (mu, logvar))), expected, 1e-12)
    plain_grads = torch.func.grad(plain_loss, argnums=(0, 1))(mu.detach(), logvar.detach())
    got = compiler(torch.func.grad(loss, argnums=(0, 1)))(mu.detach(), logvar.detach())
    assert_all_close(got, plain_grads)


def test_compile_keeps_sample_counts_in_one_graph():
    graphs = []

    def count(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    def step(mu, logvar, samples, draw):
        return F.reparametrize_log_weight(mu, logvar, num_samples=samples, seed=3, draw=draw)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=count)
    mu, logvar = inputs(torch.float32, requires_grad=False)
    for samples, draw in ((3, 4), (5, 7), (8, 12)):
        got, expected = compiled(mu, logvar, samples, draw), step(mu, logvar, samples, draw)
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert len(graphs) == 1


def test_export():
    class Latent(torch.nn.Module):
        def forward(self, mu, logvar):
            return fused(mu, logvar)

    mu, logvar = inputs(torch.float32, requires_grad=False)
    batch = torch.export.Dim("batch")
    program = torch.export.export(Latent(), (mu, logvar), dynamic_shapes=({0: batch}, {0: batch}))
    larger = torch.randn(11, 5), torch.randn(11, 5)
    for got, expected in zip(program.module()(*larger), fused(*larger), strict=True):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpointing(use_reentrant):
    mu, logvar = inputs(torch.float32)

    def block(m, l):
        z, log_weight = F.reparametrize_log_weight(m, l, num_samples=K)
        return z.sin().sum() + torch.logsumexp(log_weight, 0).sum()

    torch.manual_seed(8)
    expected = torch.autograd.grad(block(mu, logvar), (mu, logvar))
    torch.manual_seed(8)
    checkpoint(block, mu, logvar, use_reentrant=use_reentrant).backward()
    assert torch.equal(mu.grad, expected[0])
    assert torch.equal(logvar.grad, expected[1])


def test_autocast():
    layer = torch.nn.Linear(5, 10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mu, logvar = layer(torch.randn(SHAPE)).chunk(2, -1)
        z, log_weight = fused(mu, logvar)
        wide, _ = fused(mu, logvar.float())
    assert z.dtype == torch.bfloat16
    assert log_weight.dtype == wide.dtype == torch.float32
    assert torch.equal(log_weight, fused(mu.float(), logvar.float())[1])
    log_weight.sum().backward()
    assert layer.weight.grad.dtype == torch.float32


def test_the_default_seed_follows_manual_seed():
    mu, logvar = inputs(torch.float32, requires_grad=False)
    torch.manual_seed(2)
    first = F.reparametrize_log_weight(mu, logvar, num_samples=2)[0]
    second = F.reparametrize_log_weight(mu, logvar, num_samples=2)[0]
    torch.manual_seed(2)
    assert torch.equal(first, F.reparametrize_log_weight(mu, logvar, num_samples=2)[0])
    assert not torch.equal(first, second)
    assert not torch.equal(first[0], first[1])


def test_meta_tensors_have_the_shapes():
    mu = torch.zeros(6, 5, device="meta", dtype=torch.bfloat16)
    z, log_weight = F.reparametrize_log_weight(mu, mu, num_samples=4)
    assert z.shape == (4, 6, 5)
    assert (log_weight.shape, log_weight.dtype) == ((4, 6), torch.float32)


def operator_samples():
    seed = torch.tensor(3)
    for dtype in (torch.float32, torch.bfloat16):
        for grad in (False, True):
            mu, logvar = (torch.randn(5, 6).to(dtype).t().detach().requires_grad_(grad) for _ in range(2))
            yield "reparametrize_log_weight", (mu, logvar, seed, 0, 0, 1, K)
        mu, logvar = torch.randn(5, 6).to(dtype).t(), torch.randn(6, 5).to(dtype)
        z, log_weight = torch.randn(K, 6, 5).to(dtype), torch.randn(K, 6)
        for upstream in ((z, log_weight), (None, log_weight), (z, None)):
            yield "reparametrize_log_weight_backward", (*upstream, mu, logvar, seed, 0, 0, 1, K)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(("name", "arguments"), list(operator_samples()))
def test_opcheck(name, arguments):
    torch.library.opcheck(getattr(torch.ops.fastvae, name).default, arguments)


def test_the_bare_operator_is_differentiable():
    mu, logvar = inputs()
    z, log_weight = torch.ops.fastvae.reparametrize_log_weight(mu, logvar, torch.tensor(SEED), 0, 0, 1, K)
    got = torch.autograd.grad(z.sin().sum() + log_weight.square().sum(), (mu, logvar))
    z, log_weight = plain(mu, logvar)
    assert_all_close(got, torch.autograd.grad(z.sin().sum() + log_weight.square().sum(), (mu, logvar)))
