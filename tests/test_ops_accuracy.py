"""The kernels against float64 truth, over the whole range the documentation promises."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import torch

from fastvae import functional as F
from fastvae import noise
from fastvae.ops.gaussian_kl import reference as kl_reference
from fastvae.ops.reparametrize import reference as reparametrize_reference

N = 200_000
KL_BOUND = 1e-6
HALVES = [torch.bfloat16, torch.float16]


def exp_excess(x: torch.Tensor) -> torch.Tensor:
    """e^x - 1 - x in float64, good to 1e-12."""
    series = x * x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6 * (1 + x / 7)))))
    return torch.where(x.abs() < 1e-2, series, torch.expm1(x) - x)


def kl_truth(mu, logvar, prior_mu=None, prior_logvar=None):
    mu, logvar = mu.double(), logvar.double()
    prior_mu = torch.zeros_like(mu) if prior_mu is None else prior_mu.double()
    prior_logvar = torch.zeros_like(mu) if prior_logvar is None else prior_logvar.double()
    return 0.5 * ((mu - prior_mu) ** 2 * (-prior_logvar).exp() + exp_excess(logvar - prior_logvar))


def relative_error(value, truth) -> float:
    return float(((value.double() - truth) / truth).abs().max())


def logvars(kind: str) -> torch.Tensor:
    u = torch.rand(N)
    return {
        "wide": u * 40 - 20,
        "unit": u * 4 - 2,
        "near zero": (torch.rand(N) * 2 - 1) * 10 ** (-8 * u),
    }[kind]


def mus(kind: str) -> torch.Tensor:
    return torch.zeros(N) if kind == "zero" else torch.randn(N)


@pytest.mark.parametrize("mu_kind", ["zero", "normal"])
@pytest.mark.parametrize("kind", ["wide", "unit", "near zero"])
@pytest.mark.parametrize("implementation", ["kernel", "reference"])
def test_kl_of_every_element(kind, mu_kind, implementation):
    """Within 1e-6 of the truth where 1 + l - e^l has no correct digit, and never negative."""
    mu, logvar = mus(mu_kind), logvars(kind)
    if implementation == "kernel":
        kl = F.gaussian_kl(mu, logvar, reduction="none")
    else:
        kl = kl_reference.gaussian_kl(mu, logvar, 1, "none")
    assert float(kl.min()) >= 0
    assert relative_error(kl, kl_truth(mu, logvar)) < KL_BOUND


@pytest.mark.parametrize("columns", [1, 2, 3, 16, 17, 100, 1000, 20_000, 50_000])
@pytest.mark.parametrize("kind", ["wide", "near zero"])
def test_kl_sums(kind, columns):
    mu, logvar = mus("normal").view(-1, columns) if N % columns == 0 else None, logvars(kind)
    if mu is None:
        rows = N // columns
        mu, logvar = mus("normal")[: rows * columns].view(rows, columns), logvar[: rows * columns]
    logvar = logvar.view(mu.shape)
    truth = kl_truth(mu, logvar)
    assert relative_error(F.gaussian_kl(mu, logvar), truth.sum(-1)) < KL_BOUND
    assert relative_error(F.gaussian_kl(mu, logvar, reduction="sum"), truth.sum()) < KL_BOUND
    assert relative_error(F.gaussian_kl(mu, logvar, reduction="mean"), truth.mean()) < KL_BOUND
    batchmean = F.gaussian_kl(mu, logvar, reduction="batchmean")
    assert relative_error(batchmean, truth.sum(-1).mean()) < KL_BOUND


@pytest.mark.parametrize("kind", ["wide", "unit", "near zero"])
def test_kl_gradients(kind):
    mu, logvar = mus("normal").requires_grad_(), logvars(kind).requires_grad_()
    upstream = torch.randn(N)
    grads = torch.autograd.grad(F.gaussian_kl(mu, logvar, reduction="none"), (mu, logvar), upstream)
    assert relative_error(grads[0], upstream.double() * mu.detach().double()) < KL_BOUND
    truth = upstream.double() * 0.5 * torch.expm1(logvar.detach().double())
    assert relative_error(grads[1], truth) < KL_BOUND


@pytest.mark.parametrize("gap", [20.0, 1e-1, 1e-3, 1e-5])
def test_kl_from_a_prior(gap):
    """The difference of two logarithms is rounded; the kernel makes up for it."""
    mu, prior_mu = torch.randn(N), torch.randn(N)
    logvar = torch.rand(N) * 40 - 20
    prior_logvar = logvar + (torch.rand(N) * 2 - 1) * gap
    prior_logvar = prior_logvar.clamp(-20, 20)
    tensors = [t.requires_grad_() for t in (mu, logvar, prior_mu, prior_logvar)]
    kl = F.gaussian_kl(*tensors, reduction="none")
    values = [t.detach() for t in tensors]
    assert float(kl.detach().min()) >= 0
    assert relative_error(kl.detach(), kl_truth(*values)) < KL_BOUND
    assert relative_error(kl_reference.gaussian_kl_prior(*values, 1, "none"), kl_truth(*values)) < KL_BOUND
    grads = torch.autograd.grad(kl.sum(), tensors)
    m, l, p, k = (t.double() for t in values)
    growth, square = torch.expm1(l - k), (m - p) ** 2 * (-k).exp()
    assert relative_error(grads[0], (m - p) * (-k).exp()) < KL_BOUND
    assert torch.equal(grads[2], -grads[0])
    nonzero = growth != 0
    assert relative_error(grads[1][nonzero], growth[nonzero] / 2) < KL_BOUND
    # Growth and square may cancel: the error is relative to their sizes.
    error = (grads[3].double() + (growth + square) / 2).abs() / (growth.abs() + square)
    assert float(error[nonzero].max()) < KL_BOUND


def test_kl_in_float64_against_forty_digits():
    mpmath.mp.dps = 40
    logvar = torch.cat(
        [
            torch.rand(300, dtype=torch.float64) * 40 - 20,
            (torch.rand(300, dtype=torch.float64) - 0.5) * 10 ** (-12 * torch.rand(300, dtype=torch.float64)),
        ]
    )
    kl = F.gaussian_kl(torch.zeros_like(logvar), logvar, reduction="none")
    assert kl.dtype == torch.float64
    for value, l in zip(kl.tolist(), logvar.tolist(), strict=True):
        truth = (mpmath.expm1(l) - mpmath.mpf(l)) / 2
        assert abs(mpmath.mpf(value) - truth) < 1e-15 * truth


def ulps(value: torch.Tensor, truth: torch.Tensor, size: torch.Tensor) -> float:
    """The largest error in float32 ulps of ``size``."""
    spacing = torch.from_numpy(np.spacing(size.float().numpy())).double()
    return float(((value.double() - truth).abs() / spacing).max())


@pytest.mark.parametrize("spread", [40.0, 4.0, 300.0], ids=["wide", "unit", "subnormal and huge sigma"])
@pytest.mark.parametrize("mu_kind", ["zero", "normal", "as large as the step"])
def test_z_in_ulps(spread, mu_kind):
    """Within two ulp of the larger of |mu| and |sigma eps|, also where the ulps of their sum are larger."""
    logvar = (torch.rand(N) - 0.5) * spread
    eps = noise.normal((1, N), 5)[0].double()
    step = (logvar.double() / 2).exp() * eps
    mu = (step * torch.rand(N) * 1.2).float() if mu_kind == "as large as the step" else mus(mu_kind)
    finite = step.abs() < 3e38
    z = F.reparametrize(mu[None], logvar[None], seed=5)[0]
    size = torch.maximum(mu.double().abs(), step.abs())
    assert ulps(z[finite], (mu.double() + step)[finite], size[finite]) < 2


def test_z_gradient():
    mu, logvar = torch.randn(1, N), (torch.rand(1, N) * 40 - 20).requires_grad_()
    upstream = torch.randn(1, N)
    (grad,) = torch.autograd.grad(F.reparametrize(mu, logvar, seed=5), logvar, upstream)
    step = (logvar.detach().double() / 2).exp() * noise.normal((1, N), 5).double()
    truth = upstream.double() * step / 2
    kept = truth != 0  # one noise value in 2^24 is zero
    assert relative_error(grad[kept], truth[kept]) < KL_BOUND


def test_z_in_float64():
    mu, logvar = torch.randn(1, 2000, dtype=torch.float64), torch.randn(1, 2000, dtype=torch.float64)
    eps = noise.normal((1, 2000), 5, dtype=torch.float64)
    z = F.reparametrize(mu, logvar, seed=5)
    assert z.dtype == torch.float64
    assert torch.allclose(z, mu + (logvar / 2).exp() * eps, rtol=4e-16, atol=4e-16)


@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_is_float32_rounded_once(dtype):
    """Bit for bit: arithmetic in float32, the KL left in it."""
    mu, logvar = torch.randn(50, 33).to(dtype), torch.randn(50, 33).to(dtype)
    z, kl = F.reparametrize_kl(mu, logvar, seed=5)
    z32, kl32 = F.reparametrize_kl(mu.float(), logvar.float(), seed=5)
    assert z.dtype == dtype
    assert kl.dtype == torch.float32
    assert torch.equal(z, z32.to(dtype))
    assert torch.equal(kl, kl32)
    mu.requires_grad_(), logvar.requires_grad_()
    mu32, logvar32 = mu.detach().float().requires_grad_(), logvar.detach().float().requires_grad_()
    grads = torch.autograd.grad(F.gaussian_kl(mu, logvar).sum(), (mu, logvar))
    grads32 = torch.autograd.grad(F.gaussian_kl(mu32, logvar32).sum(), (mu32, logvar32))
    for grad, grad32 in zip(grads, grads32, strict=True):
        assert grad.dtype == dtype
        assert torch.equal(grad, grad32.to(dtype))


EXTREMES = [math.inf, -math.inf, math.nan, 200.0, -300.0, 100.0, 0.0]


def assert_agree(got, expected):
    """Equal where not finite, close where finite."""
    assert torch.allclose(got, expected, rtol=1e-6, atol=0, equal_nan=True), (got, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mu", [0.5, math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("logvar", EXTREMES)
def test_extremes_are_those_of_the_formula(mu, logvar, dtype):
    """What the kernels give for infinities and NaN, and where, is what the reference gives."""
    m = torch.tensor([[0.25, mu, 1.0]], dtype=dtype)
    l = torch.tensor([[0.5, logvar, 0.0]], dtype=dtype)
    seed = torch.tensor(3)
    assert_agree(F.reparametrize(m, l, seed=3), reparametrize_reference.reparametrize(m, l, seed, 0, 0, 1))
    kl = F.gaussian_kl(m, l, reduction="none")
    assert_agree(kl, kl_reference.gaussian_kl(m, l, 1, "none"))
    ones = torch.ones_like(kl)
    for got, expected in zip(
        torch.ops.fastvae.gaussian_kl_backward(ones, m, l, 1, "none"),
        kl_reference.gaussian_kl_backward(ones, m, l, 1, "none"),
        strict=True,
    ):
        assert_agree(got, expected)
    assert_agree(
        torch.ops.fastvae.reparametrize_backward(ones, l, seed, 0, 0, 1),
        reparametrize_reference.reparametrize_backward(ones, l, seed, 0, 0, 1),
    )
    prior = torch.zeros_like(m)
    assert_agree(F.gaussian_kl(m, l, prior, prior, reduction="none"), kl)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mu", [0.5, math.inf, math.nan])
@pytest.mark.parametrize("logvar", EXTREMES)
def test_an_extreme_value_stays_in_its_dimension(mu, logvar, dtype):
    """The KL per dimension is that of the formula in the column of an extreme, and its own elsewhere."""
    m, l = torch.randn(70, 35, dtype=dtype), torch.randn(70, 35, dtype=dtype)
    clean = torch.ops.fastvae.gaussian_kl(m, l, 1, "dimension")
    m[41, 33], l[41, 33] = mu, logvar
    prior = torch.zeros_like(m)
    kl = torch.ops.fastvae.gaussian_kl(m, l, 1, "dimension")
    others = torch.arange(35) != 33
    assert torch.equal(kl[others], clean[others])
    assert_agree(kl, kl_reference.gaussian_kl(m, l, 1, "dimension"))
    from_prior = torch.ops.fastvae.gaussian_kl_prior(m, l, prior, prior, 1, "dimension")
    assert_agree(from_prior, kl)
    assert_agree(kl_reference.gaussian_kl_prior(m, l, prior, prior, 1, "dimension"), from_prior)
    assert torch.equal(
        torch.ops.fastvae.reparametrize_kl(m, l, torch.tensor(3), 0, 0, 1, "dimension")[1].nan_to_num(),
        kl.nan_to_num(),
    )
    upstream = torch.randn(35, dtype=dtype)
    for got, expected in zip(
        torch.ops.fastvae.gaussian_kl_backward(upstream, m, l, 1, "dimension"),
        kl_reference.gaussian_kl_backward(upstream, m, l, 1, "dimension"),
        strict=True,
    ):
        assert_agree(got, expected)
    options = (upstream, m, l, prior, prior, 1, "dimension")
    got = torch.ops.fastvae.gaussian_kl_prior_backward(*options)
    expected = kl_reference.gaussian_kl_prior_backward(*options)
    for a, b in zip(got[:3], expected[:3], strict=True):
        assert_agree(a, b)
    # That of prior_logvar is minus the sum of two terms, which may cancel.
    terms = 0.5 * upstream.abs() * (torch.expm1(l).abs() + m * m)
    finite = expected[3].isfinite()
    assert bool(((got[3] - expected[3]).abs() <= 1e-6 * terms)[finite].all())
    assert torch.equal(got[3][~finite].nan_to_num(), expected[3][~finite].nan_to_num())


def test_an_unused_output_has_no_gradient():
    """A zero gradient times an infinite sigma would be NaN: an output that is not used must not count."""
    mu, logvar = torch.zeros(1, 3, requires_grad=True), torch.full((1, 3), 250.0, requires_grad=True)
    _, kl = F.reparametrize_kl(mu, logvar, seed=1)
    (grad,) = torch.autograd.grad(kl.sum(), mu)
    assert torch.equal(grad, torch.zeros_like(mu))
    z, _ = F.reparametrize_kl(mu, torch.full((1, 3), 100.0, requires_grad=True), seed=1)
    (grad,) = torch.autograd.grad(z.sum(), mu)
    assert torch.equal(grad, torch.ones_like(mu))


def test_a_bad_value_stays_in_its_row():
    mu, logvar = torch.randn(5, 40), torch.randn(5, 40)
    clean_z, clean_kl = F.reparametrize_kl(mu, logvar, seed=1)
    logvar[2, 7] = math.nan
    mu[3, 0] = math.inf
    z, kl = F.reparametrize_kl(mu, logvar, seed=1)
    good = [0, 1, 4]
    assert torch.equal(z[good], clean_z[good])
    assert torch.equal(kl[good], clean_kl[good])
    assert torch.isnan(kl[2])
    assert torch.isinf(kl[3])
    assert int(torch.isnan(z).sum()) == 1
    assert int(torch.isinf(z).sum()) == 1
