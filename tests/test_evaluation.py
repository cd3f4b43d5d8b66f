"""The bound is evaluated at beta = 1, on any batches, and active units are Burda's."""

import math
import warnings
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fastvae.evaluation import CodeStatistics, active_units, evaluate, log_likelihood
from fastvae.models import VAE, Bernoulli, ModelSpec, build_model
from fastvae.objectives import elbo, kl_capacity, kl_weight


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(ModelSpec((6,), 3, hidden_dims=(8,)))


@pytest.fixture
def x():
    return torch.rand(50, 6, generator=torch.Generator().manual_seed(1))


def test_the_elbo_is_the_mean_of_the_terms():
    recon, kl = torch.tensor([-3.0, -5.0]), torch.tensor([1.0, 2.0])
    assert elbo(recon, kl).item() == -5.5
    assert elbo(recon, kl, beta=4.0).item() == -10.0
    with pytest.raises(ValueError, match=r"one shape, .* got \(2,\) and \(2, 2\); sum each over the axes"):
        elbo(recon, torch.ones(2, 2))
    assert elbo(recon, kl, torch.tensor([4.0])).item() == -10.0
    with pytest.raises(ValueError, match=r"beta must be one number for all, got a tensor of shape \(2,\)"):
        elbo(recon, kl, torch.ones(2))
    with pytest.raises(TypeError, match="beta must be a number or a scalar tensor, got bool"):
        elbo(recon, kl, True)


def test_the_bound_with_a_capacity_draws_the_mean_kl_to_it():
    recon, kl = torch.tensor([-10.0, -4.0]), torch.tensor([7.0, 1.0], requires_grad=True)
    for capacity, slope in ((3.0, -1.0), (torch.tensor(3.0), -1.0), (torch.tensor([6.0]), 1.0), (4, 0.0)):
        for beta in (2.0, torch.tensor([2.0])):
            bound = elbo(recon, kl, beta, capacity)
            assert bound.shape == ()
            assert bound.item() == -7 - 2 * abs(4 - float(capacity))
            assert torch.autograd.grad(bound, kl)[0].tolist() == [slope, slope]
    assert elbo(recon, kl, 2.0, 0).item() == elbo(recon, kl, 2.0).item()
    with pytest.raises(
        ValueError, match=r"capacity must be one number for all, got a tensor of shape \(2,\)"
    ):
        elbo(recon, kl, capacity=torch.ones(2))
    with pytest.raises(TypeError, match="capacity must be a number or a scalar tensor, got bool"):
        elbo(recon, kl, capacity=True)
    with pytest.raises(TypeError, match="capacity must be a number or a scalar tensor, got NoneType"):
        elbo(recon, kl, capacity=None)
    for capacity in (-3, math.inf, math.nan):
        with pytest.raises(ValueError, match="capacity must be a finite number of at least 0, got"):
            elbo(recon, kl, capacity=capacity)
        with pytest.raises(ValueError, match=r"^kl_capacity: capacity must be a finite number of at least 0"):
            kl_capacity(0, 20, capacity=capacity, warmup=0.5)


def test_warm_up_is_a_straight_line_over_a_fraction_of_all_steps():
    weights = [kl_weight(step, 20, beta=2.0, warmup=0.5) for step in range(20)]
    assert weights[:10] == pytest.approx([0.2 * (i + 1) for i in range(10)])
    assert weights[10:] == [2.0] * 10
    assert kl_weight(0, 20, beta=2.0, warmup=0.0) == 2.0
    assert kl_weight(19, 20, beta=2.0, warmup=1.0) == 2.0
    for warmup in (10, -0.1, float("nan")):
        with pytest.raises(ValueError, match=r"a fraction of all steps, got .*; for n steps write n / total"):
            kl_weight(0, 20, beta=2.0, warmup=warmup)
        with pytest.raises(ValueError, match=r"^kl_capacity: warmup must lie between 0 and 1"):
            kl_capacity(0, 20, capacity=2.0, warmup=warmup)


def test_cycles_are_warm_ups_of_equal_parts_of_the_training():
    one = [kl_weight(step, 5, beta=2.0, warmup=0.6) for step in range(5)]
    four = [kl_weight(step, 20, beta=2.0, warmup=0.6, cycles=4) for step in range(20)]
    assert one == pytest.approx([2 / 3, 4 / 3, 2, 2, 2])
    assert four == pytest.approx(one * 4)
    # A DataLoader may have more batches than it said.
    assert kl_weight(20, 20, beta=2.0, warmup=0.6, cycles=4) == 2.0
    with pytest.raises(ValueError, match="cycles must be at least 1, got 0"):
        kl_weight(0, 20, beta=2.0, warmup=0.6, cycles=0)
    with pytest.raises(TypeError, match="cycles must be an integer, got float"):
        kl_weight(0, 20, beta=2.0, warmup=0.6, cycles=2.0)


@given(total=st.integers(1, 200), cycles=st.integers(1, 20), warmup=st.floats(0, 1))
def test_the_weight_of_cycles_grows_within_each_and_begins_again_with_the_next(total, cycles, warmup):
    """Also where the steps are no multiple of the cycles."""
    weights = [kl_weight(step, total, beta=3.0, warmup=warmup, cycles=cycles) for step in range(total)]
    assert all(0 < weight <= 3.0 for weight in weights)
    falls = [step for step in range(1, total) if weights[step] < weights[step - 1]]
    begins = {-(-cycle * total // cycles) for cycle in range(1, cycles)}
    assert set(falls) <= begins
    if warmup * total / cycles >= 2:
        assert set(falls) == begins


def test_a_capacity_grows_in_a_straight_line():
    aimed_at = [kl_capacity(step, 20, capacity=5.0, warmup=0.5) for step in range(21)]
    assert aimed_at == pytest.approx([0.5 * min(step + 1, 10) for step in range(21)])
    assert kl_capacity(0, 20, capacity=5.0, warmup=0.0) == 5.0


def test_an_evaluation_does_not_depend_on_the_batches(model, x):
    whole = evaluate(model, [x], seed=4)
    parts = evaluate(model, x.split(7), seed=4)
    assert parts == pytest.approx(whole, rel=1e-6)
    assert whole["samples"] == 50
    assert evaluate(model, [x], seed=5)["recon"] != whole["recon"]


def test_an_evaluation_is_the_bound_at_beta_one(model, x):
    terms = model(x, seed=4)
    result = evaluate(model, [x], seed=4)
    assert result["elbo"] == result["recon"] - result["kl"]
    assert result["recon"] == pytest.approx(terms.recon.double().mean().item(), rel=1e-6)
    assert result["kl"] == pytest.approx(terms.kl.double().mean().item(), rel=1e-6)


def test_evaluation_leaves_the_mode_and_the_statistics_alone(x):
    encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Dropout(), nn.Linear(6, 6))
    model = VAE(encoder, nn.Linear(3, 6), Bernoulli(), latent_dim=3, input_shape=(6,))
    before = encoder[0].running_mean.clone()
    first, second = evaluate(model, [x]), evaluate(model, [x])
    assert first == second
    assert model.training
    assert torch.equal(encoder[0].running_mean, before)


def test_each_part_of_a_model_keeps_its_mode(x):
    """A part may be frozen by eval(), and do something when it changes."""

    class Merging(nn.Linear):
        merged = False

        def train(self, mode=True):
            self.merged = not mode
            return super().train(mode)

    encoder = nn.Sequential(nn.Sequential(nn.BatchNorm1d(6), nn.Dropout()), Merging(6, 6))
    model = VAE(encoder, nn.Linear(3, 6), Bernoulli(), latent_dim=3, input_shape=(6,))
    encoder[0].eval()
    encoder[0][1].train()
    before = {name: part.training for name, part in model.named_modules()}
    assert set(before.values()) == {True, False}
    for function in (evaluate, partial(log_likelihood, num_samples=2)):
        function(model, [x])
        assert {name: part.training for name, part in model.named_modules()} == before
        assert not encoder[1].merged


def test_a_frozen_script_module_has_no_mode(x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        encoder = torch.jit.freeze(torch.jit.script(nn.Linear(6, 6)).eval())
    model = VAE(encoder, nn.Linear(3, 6), Bernoulli(), latent_dim=3, input_shape=(6,))
    assert evaluate(model, [x])["samples"] == 50


@pytest.mark.parametrize("seed", [None, "generator"])
def test_a_drawn_key_is_one_for_all_batches(model, x, seed):
    def of(batches):
        generator = torch.Generator().manual_seed(5)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            return evaluate(model, batches, seed=generator if seed else None)

    assert of(x.split(7)) == pytest.approx(of([x]), rel=1e-6)


def test_batches_without_samples_count_for_nothing(model, x):
    for function in (evaluate, lambda *args: log_likelihood(*args, num_samples=2).tolist()):
        assert function(model, [x[:0], x, x[:0]]) == function(model, [x])


@pytest.mark.parametrize("function", [evaluate, partial(log_likelihood, num_samples=2)])
def test_batches_are_tensors_one_after_the_other(model, function):
    with pytest.raises(TypeError, match=r"must be an iterable of batches, got a tensor; one batch is \[x\]"):
        function(model, torch.zeros(2, 6))
    with pytest.raises(TypeError, match=r"got tuple; of \(samples, labels\) take .*: \(x for x, \*_"):
        function(model, [(torch.zeros(2, 6), torch.zeros(2))])
    assert model.training


@pytest.mark.parametrize("function", [evaluate, partial(log_likelihood, num_samples=2)])
def test_what_a_model_or_a_batch_cannot_be_is_told(model, function, x):
    """Pixels from 0 to 255 would have a positive log-probability of being drawn from a Bernoulli variable."""
    with pytest.raises(ValueError, match="the Bernoulli likelihood needs values between 0 and 1"):
        function(model, [x, 255 * x])
    with pytest.raises(TypeError, match=r"must be a fastvae\.VAE, got SimpleNamespace; .* is its \.model$"):
        function(SimpleNamespace(model=model), [x])
    with pytest.raises(TypeError, match=r"must be a fastvae\.VAE, got Linear$"):
        function(nn.Linear(6, 3), [x])


def test_what_stands_for_a_model_is_taken(model, x):
    """As what torch.compile gives, which is another module around it."""

    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside = model

        def __getattr__(self, name):
            return super().__getattr__(name) if name == "inside" else getattr(self.inside, name)

    assert evaluate(Around(), [x], seed=4) == evaluate(model, [x], seed=4)


def test_a_batch_may_be_of_whole_numbers(x):
    """Of a model that looks up its data in a table, say."""

    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(10, 6)

        def forward(self, x):
            return self.table(x).sum(1)

    class Own(Bernoulli):
        def log_prob(self, params, x):
            return super().log_prob(params, x / 10)

    model = VAE(Table(), nn.Linear(3, 6), Own(), latent_dim=3, input_shape=(6,))
    assert evaluate(model, [(9 * x).long()])["samples"] == 50


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 6)]])
@pytest.mark.parametrize("function", [evaluate, partial(log_likelihood, num_samples=2)])
def test_no_data_raises(model, function, batches):
    with pytest.raises(ValueError, match="there is no data"):
        function(model, batches)


def test_more_draws_than_a_key_has_raise_before_any_work(model):
    with pytest.raises(ValueError, match=r"num_samples must be at most 2\*\*32, .* got 4294967297"):
        log_likelihood(model, [], num_samples=2**32 + 1)


def test_active_units_are_the_codes_whose_mean_varies():
    means = torch.randn(2000, 4, generator=torch.Generator().manual_seed(2))
    means *= torch.tensor([1.0, 0.2, 0.05, 0.0])
    assert active_units(means) == 2
    assert active_units(means, threshold=0.5) == 1
    # A large constant mean is not activity.
    assert active_units(means * 0.05 + 1000) == 0
    with pytest.raises(ValueError, match=r"must be \(N, latent_dim\) with N at least 2, got \(1, 4\)"):
        active_units(means[:1])


def test_statistics_merge_without_cancellation():
    codes = torch.randn(1001, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64) + 1e6
    statistics = CodeStatistics(3)
    for part in codes.split(64):
        statistics.add(part)
    torch.testing.assert_close(statistics.variance(), codes.var(0), rtol=1e-9, atol=0)
    torch.testing.assert_close(statistics.mean, codes.mean(0), rtol=1e-14, atol=0)
