"""Likelihoods are normalised log-probabilities in nats, and say which data they are for."""

import math

import pytest
import torch
from torch.distributions import Bernoulli as TorchBernoulli
from torch.distributions import Normal

from fastvae.models import Bernoulli, Gaussian

SHAPE = (5, 3, 4, 2)


def draw(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_bernoulli_is_the_log_probability_of_binary_data():
    logits, x = draw(SHAPE) * 5, (draw(SHAPE, 1) > 0).float()
    expected = TorchBernoulli(logits=logits.double()).log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(Bernoulli().log_prob(logits, x).double(), expected, rtol=1e-6, atol=1e-5)


def test_bernoulli_of_a_gray_value_is_the_expectation_over_binary_ones():
    logits, x = draw(SHAPE), torch.full(SHAPE, 0.25)
    likelihood = Bernoulli()
    one, zero = torch.ones(SHAPE), torch.zeros(SHAPE)
    expected = 0.25 * likelihood.log_prob(logits, one) + 0.75 * likelihood.log_prob(logits, zero)
    torch.testing.assert_close(likelihood.log_prob(logits, x), expected, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("variance", [1.0, 0.01, 7.5, 2])
def test_gaussian_with_a_fixed_variance(variance):
    mean, x = draw(SHAPE), draw(SHAPE, 1)
    expected = Normal(mean.double(), math.sqrt(variance)).log_prob(x.double()).flatten(1).sum(1)
    torch.testing.assert_close(Gaussian(variance).log_prob(mean, x).double(), expected, rtol=1e-6, atol=1e-5)
    assert not list(Gaussian(variance).parameters())


def test_gaussian_with_a_learned_variance_has_the_right_gradient():
    likelihood, mean, x = Gaussian("learned"), draw(SHAPE), draw(SHAPE, 1)
    likelihood.log_variance.data.fill_(-0.7)
    log_variance = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    expected = Normal(mean.double(), (0.5 * log_variance).exp()).log_prob(x.double()).flatten(1).sum(1)
    given = likelihood.log_prob(mean, x)
    torch.testing.assert_close(given.double(), expected, rtol=1e-6, atol=1e-5)
    given.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(likelihood.log_variance.grad.double(), log_variance.grad, rtol=1e-5, atol=1e-5)


def test_gaussian_with_a_predicted_variance():
    params, x = draw((5, 2, 3, 4, 2)), draw(SHAPE, 1)
    scale = (0.5 * params[:, 1].double()).exp()
    expected = Normal(params[:, 0].double(), scale).log_prob(x.double()).flatten(1).sum(1)
    likelihood = Gaussian("predicted")
    torch.testing.assert_close(likelihood.log_prob(params, x).double(), expected, rtol=1e-6, atol=1e-5)
    assert likelihood.maps == 2
    torch.testing.assert_close(likelihood.mean(params), params[:, 0], rtol=0, atol=0)


def test_a_gaussian_mean_is_not_squashed():
    params = torch.tensor([[-30.0, 0.0, 55.0]])
    assert torch.equal(Gaussian().mean(params), params)


@pytest.mark.parametrize(
    ("likelihood", "params", "mean", "std"),
    [
        (Bernoulli(), torch.full((4000, 6), 1.0), 1 / (1 + math.exp(-1)), None),
        (Gaussian(0.25), torch.full((4000, 6), 3.0), 3.0, 0.5),
        (
            Gaussian("predicted"),
            torch.tensor([3.0, math.log(0.25)])[None, :, None].expand(4000, 2, 6),
            3.0,
            0.5,
        ),
    ],
)
def test_samples_have_the_distribution(likelihood, params, mean, std):
    samples = likelihood.sample(params, seed=3)
    assert samples.shape == (4000, 6)
    std = math.sqrt(mean * (1 - mean)) if std is None else std
    # Five standard errors of 24,000 draws.
    assert abs(float(samples.mean()) - mean) < 5 * std / math.sqrt(samples.numel())
    assert abs(float(samples.std()) - std) < 5 * std / math.sqrt(samples.numel())


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.3)])
def test_a_sample_depends_on_its_row_and_not_on_the_batch(likelihood):
    params = draw((9, 2, 3))
    whole = likelihood.sample(params, seed=11)
    assert torch.equal(likelihood.sample(params[4:], seed=11, row_offset=4), whole[4:])


def test_bernoulli_refuses_data_outside_the_unit_interval():
    Bernoulli().check_range(0.0, 1.0)
    for low, high in [(-0.1, 1.0), (0.0, 255.0)]:
        with pytest.raises(
            ValueError, match=r'between .* and .*; rescale it to \[0, 1\], or use likelihood="gau'
        ):
            Bernoulli().check_range(low, high)


def test_gaussian_takes_any_numbers():
    Gaussian().check_range(-8.0, 50000.0)


@pytest.mark.parametrize("variance", [0, -1.0, math.inf, math.nan, "fixed"])
def test_a_variance_out_of_range_raises(variance):
    with pytest.raises(ValueError, match='variance must be "learned", "predicted" or a positive number'):
        Gaussian(variance)


@pytest.mark.parametrize("variance", [None, [1.0], True])
def test_a_variance_of_another_kind_raises(variance):
    with pytest.raises(TypeError, match='variance must be "learned", "predicted" or a number'):
        Gaussian(variance)


@pytest.mark.parametrize(
    ("likelihood", "per_sample"),
    [
        (Bernoulli(), (3, 4, 2)),
        (Gaussian("learned"), (3, 4, 2)),
        (Gaussian(0.3), (3, 4, 2)),
        (Gaussian("predicted"), (2, 3, 4, 2)),
    ],
)
def test_samples_of_the_code_are_measured_against_one_batch(likelihood, per_sample):
    """Parameters (K, B, ...) against data (B, ...): each of K as it would be alone, also with two maps."""
    params, x = draw((6, 5, *per_sample)), draw(SHAPE, 1).sigmoid()
    together = likelihood.log_prob(params, x)
    assert together.shape == (6, 5)
    for k in range(6):
        assert torch.equal(together[k], likelihood.log_prob(params[k], x))


@pytest.mark.parametrize("variance", ["learned", 0.3, "predicted"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_may_be_of_another_dtype(variance, dtype):
    likelihood = Gaussian(variance).to(dtype)
    shape = (5, 2, 3) if variance == "predicted" else (5, 3)
    log_prob = likelihood.log_prob(draw(shape).to(dtype), draw((5, 3), 1).to(dtype))
    assert log_prob.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
