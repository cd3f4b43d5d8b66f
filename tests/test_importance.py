"""The importance-weighted bound and log-likelihood: the right weights, exactly the samples asked for."""

import json
import math

import pytest
import torch
from torch import nn

import fastvae
from fastvae import functional as F
from fastvae.cli import main
from fastvae.evaluation import evaluate, log_likelihood
from fastvae.models import VAE, Bernoulli, Gaussian, ModelSpec, build_model
from fastvae.objectives import elbo, iwae_bound

K, B = 7, 5


@pytest.fixture
def terms():
    generator = torch.Generator().manual_seed(3)
    return tuple(3 * torch.randn(K, B, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(ModelSpec((6,), 3, hidden_dims=(8,)))


@pytest.fixture
def x():
    return torch.rand(23, 6, generator=torch.Generator().manual_seed(1))


def test_the_bound_is_the_log_of_the_mean_weight(terms):
    recon, log_weight = terms
    expected = (recon + log_weight).exp().mean(0).log().mean()
    torch.testing.assert_close(iwae_bound(recon, log_weight), expected, rtol=1e-13, atol=0)


def test_the_bound_does_not_overflow(terms):
    recon, log_weight = terms
    for shift in (-1e5, 1e5):
        shifted = iwae_bound(recon + shift, log_weight) - shift
        torch.testing.assert_close(shifted, iwae_bound(recon, log_weight), rtol=0, atol=1e-10)


def test_one_sample_is_the_elbo_and_more_are_never_less(terms):
    recon, log_weight = terms
    torch.testing.assert_close(iwae_bound(recon[:1], log_weight[:1]), elbo(recon[0], -log_weight[0]))
    whole = iwae_bound(recon, log_weight)
    # Theorem 1 of the paper: the mean over all subsets of K - 1 is not above it; Jensen for single samples.
    subsets = [torch.arange(K) != k for k in range(K)]
    smaller = torch.stack([iwae_bound(recon[keep], log_weight[keep]) for keep in subsets]).mean()
    assert whole > smaller > (recon + log_weight).mean()


def test_gradients_are_the_normalised_importance_weights(terms):
    """The best sample has the largest weight: weights on the loss would favour the worst."""
    recon, log_weight = (t.requires_grad_() for t in terms)
    grads = torch.autograd.grad(iwae_bound(recon, log_weight), (recon, log_weight))
    log_w = (recon + log_weight).detach()
    weights = log_w.exp() / log_w.exp().sum(0)
    for grad in grads:
        torch.testing.assert_close(grad, weights / B, rtol=1e-12, atol=1e-15)
        assert torch.equal(grad.argmax(0), log_w.argmax(0))
        assert torch.equal(grad.argmin(0), log_w.argmin(0))


def test_the_gradient_of_a_model_is_the_weighted_sum_of_its_samples(model, x):
    """Equation 13 of the paper, through the kernels."""
    parameters = list(model.parameters())

    def log_w():
        mu, logvar = model.posterior(x)
        z, log_weight = F.reparametrize_log_weight(mu, logvar, num_samples=K, seed=1)
        recon = [model.likelihood.log_prob(model.parameters_of(z[k]), x) for k in range(K)]
        return torch.stack(recon), log_weight

    got = torch.autograd.grad(iwae_bound(*log_w()), parameters)
    recon, log_weight = log_w()
    weights = torch.softmax((recon + log_weight).detach().double(), 0)
    expected = torch.autograd.grad((weights * (recon + log_weight)).sum(0).mean(), parameters)
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "shapes", [((K, B), (B,)), ((B,), (B,)), ((0, B), (0, B)), ((K, B), (K, 1)), ((K, B, 2), (K, B, 2))]
)
def test_terms_of_other_shapes_raise(shapes):
    with pytest.raises(ValueError, match=r"recon and log_weight must both be \(K, B\) with K at least 1"):
        iwae_bound(*(torch.zeros(shape) for shape in shapes))


class Linear(VAE):
    """p(z) = N(0, I), p(x | z) = N(W z + b, 1/4): log p(x) and the posterior are known."""

    def __init__(self, exact: bool):
        decoder = nn.Linear(2, 4)
        with torch.no_grad():
            decoder.weight.copy_(torch.randn(4, 2, generator=torch.Generator().manual_seed(5)))
        super().__init__(nn.Identity(), decoder, Gaussian(0.25), latent_dim=2, input_shape=(4,))
        self.exact = exact

    def posterior(self, x):
        w, b = self.decoder.weight.detach(), self.decoder.bias.detach()
        precision = torch.eye(2) + w.T @ w / 0.25
        mu = (x - b) @ w @ torch.linalg.inv(precision) / 0.25
        variance = torch.linalg.inv(precision).diagonal() * (1 if self.exact else 2)
        return mu, variance.log().expand_as(mu).contiguous()

    def truth(self, x):
        w, b = self.decoder.weight.detach().double(), self.decoder.bias.detach().double()
        covariance = w @ w.T + 0.25 * torch.eye(4, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(b, covariance).log_prob(x.double())


def test_the_log_likelihood_of_a_linear_model_is_known():
    model, x = Linear(exact=False), torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    estimate = log_likelihood(model, [x], num_samples=20_000, chunk=5000)
    assert estimate.shape == (9,)
    assert estimate.dtype == torch.float64
    torch.testing.assert_close(estimate, model.truth(x), rtol=0, atol=0.05)
    bound = evaluate(model, [x])["elbo"]
    assert bound < model.truth(x).mean()


def test_an_exact_posterior_needs_one_sample():
    """With q(z | x) = p(z | x) every weight is p(x)."""
    model, x = Linear(exact=True), torch.randn(9, 4, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        model.decoder.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 0.0], [0.0, 1.0]]))
    torch.testing.assert_close(
        log_likelihood(model, [x], num_samples=1), model.truth(x), rtol=1e-5, atol=1e-5
    )


def test_the_estimate_is_the_formula(model, x):
    estimate = log_likelihood(model, [x], num_samples=K, seed=4)
    with torch.no_grad():
        mu, logvar = model.posterior(x)
        z, log_weight = F.reparametrize_log_weight(mu, logvar, num_samples=K, seed=4)
        recon = torch.stack([model.likelihood.log_prob(model.parameters_of(z[k]), x) for k in range(K)])
    log_w = (recon + log_weight).double()
    torch.testing.assert_close(estimate, torch.logsumexp(log_w, 0) - math.log(K), rtol=1e-6, atol=0)
    bound = iwae_bound(recon, log_weight).item()
    assert estimate.mean().item() == pytest.approx(bound, rel=1e-6)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 8, 1000])
def test_the_estimate_depends_on_neither_chunk_nor_batches(model, x, chunk):
    whole = log_likelihood(model, [x], num_samples=K, seed=4, chunk=K)
    got = log_likelihood(model, x.split(5), num_samples=K, seed=4, chunk=chunk)
    torch.testing.assert_close(got, whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("num_samples", [1, 8, 9, 50, 100])
def test_exactly_the_samples_that_were_asked_for_are_used(model, x, num_samples):
    """And no two of them the same, in no more memory than a chunk takes."""
    decoded = []
    model.decoder.register_forward_hook(lambda _module, inputs, _output: decoded.append(inputs[0]))
    log_likelihood(model, x.split(6), num_samples=num_samples, chunk=8)
    assert sum(len(z) for z in decoded) == num_samples * len(x)
    assert max(len(z) for z in decoded) <= 6 * 8
    assert len(torch.cat(decoded).unique(dim=0)) == num_samples * len(x)


@pytest.mark.parametrize("likelihood", [Bernoulli(), Gaussian(0.5), Gaussian("predicted")])
def test_all_codes_of_a_sample_read_the_same_data(x, likelihood, monkeypatch):
    model = build_model(ModelSpec((6,), 3, hidden_dims=(8,)))
    model.likelihood, model.decoder = likelihood, nn.Linear(3, 6 * likelihood.maps)
    read, log_prob = [], type(likelihood).log_prob

    def watched(self, params, data):
        read.append((data.data_ptr(), tuple(data.shape)))
        return log_prob(self, params, data)

    monkeypatch.setattr(type(likelihood), "log_prob", watched)
    log_likelihood(model, [x], num_samples=K, chunk=4)
    assert read == [(x.data_ptr(), tuple(x.shape))] * 2


def test_a_likelihood_of_ones_own_may_know_one_code_for_each_sample(model, x):
    class Own(Bernoulli):
        def log_prob(self, params, x):
            assert params.shape == x.shape
            return super().log_prob(params, x)

    wanted = log_likelihood(model, [x], num_samples=K, seed=4)
    model.likelihood = Own()
    assert torch.equal(log_likelihood(model, [x], num_samples=K, seed=4), wanted)


def test_a_drawn_seed_is_drawn_once(model, x):
    def estimate(chunk):
        generator = torch.Generator().manual_seed(6)
        return log_likelihood(model, x.split(6), num_samples=K, seed=generator, chunk=chunk)

    torch.testing.assert_close(estimate(2), estimate(K), rtol=1e-6, atol=0)


def test_the_mode_is_left_alone(x):
    encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 6))
    model = VAE(encoder, nn.Linear(3, 6), Gaussian(), latent_dim=3, input_shape=(6,))
    first, second = (log_likelihood(model, [x], num_samples=3) for _ in range(2))
    assert torch.equal(first, second)
    assert model.training
    assert encoder[0].num_batches_tracked == 0


@pytest.mark.parametrize("maps", [1, 2])
def test_likelihoods_with_one_and_two_maps(x, maps):
    likelihood = Gaussian("predicted" if maps == 2 else "learned")
    model = VAE(nn.Linear(6, 6), nn.Linear(3, 6 * maps), likelihood, latent_dim=3, input_shape=(6,))
    assert log_likelihood(model, [x], num_samples=3).shape == (23,)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_samples": 0}, ValueError, "num_samples must be at least 1, got 0"),
        ({"num_samples": 2.5}, TypeError, "num_samples must be an integer, got float"),
        ({"num_samples": 2, "chunk": 0}, ValueError, "chunk must be at least 1, got 0"),
    ],
)
def test_bad_numbers_raise(model, x, options, error, message):
    with pytest.raises(error, match=message):
        log_likelihood(model, [x], **options)


def test_no_data_and_plain_autoencoders_raise(model, x):
    with pytest.raises(ValueError, match="there is no data"):
        log_likelihood(model, [], num_samples=2)
    plain = build_model(ModelSpec((6,), 3, hidden_dims=(8,), variational=False))
    with pytest.raises(ValueError, match="a plain autoencoder has no prior"):
        log_likelihood(plain, [x], num_samples=2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    options = {"epochs": 1, "latent_dim": 4, "hidden_dims": 16, "validation": None, "progress": False}
    return fastvae.train("digits", output_dir=folder, **options), folder


def test_a_trained_model_gives_its_log_likelihood(trained):
    result, _ = trained
    without = result.evaluate("digits")
    values = result.evaluate("digits", num_samples=20)
    assert values == without | {"log_likelihood": values["log_likelihood"]}
    assert values["log_likelihood"] > values["elbo"]
    assert result.evaluate("digits", num_samples=20) == values
    with pytest.raises(ValueError, match="num_samples must be a whole number of at least 1, got -1"):
        result.evaluate("digits", num_samples=-1)


def test_a_plain_autoencoder_has_none(x):
    plain = fastvae.train(x, epochs=1, latent_dim=2, hidden_dims=4, variational=False, progress=False)
    with pytest.raises(ValueError, match=r"gives data no probability.*leave num_samples out"):
        plain.evaluate(x, num_samples=2)


def test_the_command_prints_it(trained, capsys):
    result, folder = trained
    expected = result.evaluate("digits", num_samples=3, seed=4)
    options = ["evaluate", str(folder), "digits", "--num-samples", "3", "--seed", "4"]
    assert main([*options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert main(options) == 0
    assert f"log p  {expected['log_likelihood']:10.3f} with 3 samples of the codes" in capsys.readouterr().out
