"""The loop does what its formulae say, the same way each time, and refuses what cannot work."""

import json
import math
import subprocess
import sys
import warnings
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastvae import noise, ops
from fastvae.data import open_data
from fastvae.errors import NonFiniteError, NonFiniteWarning, OverfittingWarning, PosteriorCollapseWarning
from fastvae.models import Bernoulli, Gaussian, Likelihood, ModelSpec, build_model
from fastvae.objectives import elbo
from fastvae.training import load, train
from fastvae.training.aliases import ALIASES
from fastvae.training.choices import choose_epochs
from fastvae.training.dense import DensePass
from fastvae.training.diagnosis import report_collapse, report_overfitting
from fastvae.training.randomness import Stream, derive


def two_factors(columns, seed):
    """60 rows that two hidden numbers explain, so that codes have something to say."""
    random = np.random.default_rng(seed)
    rows = random.normal(size=(60, 2)) @ random.normal(size=(2, columns))
    return (rows + 0.1 * random.normal(size=rows.shape)).astype(np.float32)


PIXELS = 1 / (1 + np.exp(-3 * two_factors(16, seed=0).reshape(60, 1, 4, 4)))
TABLE = two_factors(5, seed=1)
SMALL = {
    "latent_dim": 2,
    "hidden_dims": (8,),
    "epochs": 2,
    "batch_size": 16,
    "progress": False,
    "device": "cpu",
}


def run(data=PIXELS, **changes):
    return train(data, **(SMALL | changes))


def weights(result):
    return {name: value.clone() for name, value in result.model.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        assert torch.equal(value, b[name]), name


def test_two_lines_from_an_array_to_samples():
    result = train(PIXELS, epochs=1, progress=False)
    assert result.sample(3).shape == (3, 1, 4, 4)


# The loop


def test_the_loop_is_adam_on_the_elbo():
    """A few lines of plain torch give the same weights: order, noise, warm-up and update."""
    result = run(beta=0.7, warmup=0.5, validation=None, seed=5)

    with torch.random.fork_rng():
        torch.default_generator.manual_seed(derive(5, Stream.WEIGHTS))
        model = build_model(ModelSpec((1, 4, 4), 2, hidden_dims=(8,)))
    data, step = torch.from_numpy(PIXELS), 0
    means = [torch.zeros_like(p) for p in model.parameters()]
    squares = [torch.zeros_like(p) for p in model.parameters()]
    for epoch in (1, 2):
        for rows in noise.permutation(60, derive(5, Stream.SHUFFLE, epoch)).split(16):
            recon, kl = model(data[rows], seed=derive(5, Stream.LATENT, step))
            step += 1
            beta = 0.7 * min(1.0, step / 4)
            gradients = torch.autograd.grad((beta * kl - recon).mean(), list(model.parameters()))
            with torch.no_grad():
                for p, g, m, v in zip(model.parameters(), gradients, means, squares, strict=True):
                    m.lerp_(g, 0.1)
                    v.lerp_(g * g, 0.001)
                    p.sub_(1e-3 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=0, atol=1e-6)


@pytest.mark.parametrize("by_kernels", [True, False], ids=["kernels", "autograd"])
def test_the_objective_with_a_capacity(by_kernels, monkeypatch):
    """A plain loop on ``elbo`` gives the same weights."""
    if not by_kernels:
        monkeypatch.setattr(DensePass, "takes", classmethod(lambda *_: False))
    result = run(beta=3.0, warmup=0.5, capacity=0.4, validation=None, seed=5, epochs=3)

    with torch.random.fork_rng():
        torch.default_generator.manual_seed(derive(5, Stream.WEIGHTS))
        model = build_model(ModelSpec((1, 4, 4), 2, hidden_dims=(8,)))
    optimizer = torch.optim.Adam(model.parameters())
    data, step = torch.from_numpy(PIXELS), 0
    for epoch in (1, 2, 3):
        for rows in noise.permutation(60, derive(5, Stream.SHUFFLE, epoch)).split(16):
            recon, kl = model(data[rows], seed=derive(5, Stream.LATENT, step))
            optimizer.zero_grad()
            (-elbo(recon, kl, 3.0, 0.4 * min(1.0, (step + 1) / 6))).backward()
            optimizer.step()
            step += 1
    for name, value in model.state_dict().items():
        torch.testing.assert_close(result.model.state_dict()[name], value, rtol=0, atol=1e-6)
    assert [record["beta"] for record in result.history] == [3.0] * 3


def test_the_kl_ends_near_the_capacity():
    for capacity, recon in ((1.0, -25.5), (6.0, -23.5)):
        changes = {"latent_dim": 6, "batch_size": 64, "hidden_dims": (200,), "learning_rate": 3e-3}
        trained = run("digits", epochs=20, beta=10.0, warmup=0.3, capacity=capacity, **changes)
        assert trained.history[-1]["kl"] == pytest.approx(capacity, rel=0.1)
        # The codes say something with it: without any the reconstruction is -27.
        assert trained.history[-1]["recon"] > recon


def test_each_cycle_of_the_weight_begins_near_zero():
    history = run(warmup=1.0, cycles=2, epochs=4, validation=None).history
    assert [record["beta"] for record in history] == pytest.approx([0.5, 1.0, 0.5, 1.0])


def test_runs_from_before_cycles_and_capacity_load(tmp_path):
    result = run(output_dir=tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    assert (content["training"].pop("cycles"), content["training"].pop("capacity")) == (1, 0)
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert load(tmp_path).config == result.config


def test_the_history_holds_the_terms_of_each_epoch():
    history = run(beta=0.5, warmup=1.0).history
    assert [record["epoch"] for record in history] == [1, 2]
    assert [record["beta"] for record in history] == pytest.approx([0.25, 0.5])
    for record in history:
        assert set(record) == {
            "epoch", "elbo", "recon", "kl", "beta", "val_elbo", "val_recon", "val_kl",
            "images_per_second", "seconds", "skipped_steps",
        }  # fmt: skip
        # At beta = 1, whatever beta is trained with.
        assert record["elbo"] == record["recon"] - record["kl"]
        assert record["val_elbo"] == record["val_recon"] - record["val_kl"]
        assert record["images_per_second"] > 0
        assert record["skipped_steps"] == 0


def test_without_validation_there_are_no_such_numbers():
    assert run(validation=None).history[0]["val_elbo"] is None
    assert run(validation=0).config.data.samples == 60


def test_validation_data_with_a_test_set_means_that_test_set():
    held_out = open_data(PIXELS[:20])
    held_out.test = open_data(PIXELS[:7])
    assert run(validation=held_out).config.data.validation_samples == 7


def test_the_validation_numbers_are_those_of_evaluate():
    result = run(validation=PIXELS[:20], beta=3.0, seed=4)
    assert result.evaluate(PIXELS[:20], seed=4)["elbo"] == result.history[-1]["val_elbo"]


def test_training_improves_the_bound():
    # Held out are all samples: the bound of a handful depends on their noise more than on an epoch.
    history = run(epochs=30, learning_rate=1e-2, validation=PIXELS).history
    assert history[-1]["elbo"] > history[0]["elbo"] + 0.5
    assert history[-1]["val_elbo"] > history[0]["val_elbo"] + 0.5


@pytest.mark.parametrize("batch_size", [59, 1000, 1])
def test_any_batch_size_sees_every_sample_once(batch_size):
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            if torch.is_grad_enabled():
                seen.append(x.flatten(1))
            return (x.flatten(1) * self.scale)[:, :4]

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(16))

    run(encoder=Watch(), epochs=1, batch_size=batch_size, validation=None, hidden_dims=None)
    rows = torch.cat(seen)
    assert sorted(map(tuple, rows.tolist())) == sorted(map(tuple, PIXELS.reshape(60, 16).tolist()))


def test_a_last_batch_of_one_passes_batch_normalisation():
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 4))
    result = run(PIXELS[:33], encoder=encoder, validation=None, hidden_dims=None)
    assert result.history[-1]["skipped_steps"] == 0
    assert encoder[1].num_batches_tracked == 4
    assert not encoder[1].training


@pytest.mark.parametrize("as_loader", [False, True])
def test_batch_normalisation_is_refused_where_every_batch_is_of_one(as_loader):
    """It learns no statistics there: the model would be trained as one that is not normalised."""
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 4))
    data, batch_size = PIXELS[:5], 1
    if as_loader:
        data, batch_size = DataLoader(TensorDataset(torch.from_numpy(data)), batch_size=1), 3
    with pytest.raises(ValueError, match="each of the 5 batches has one sample: take a batch_size of at l"):
        run(data, encoder=encoder, validation=None, hidden_dims=None, batch_size=batch_size)


def test_the_run_says_what_batches_a_loader_had():
    data = TensorDataset(torch.from_numpy(PIXELS))
    for loader, size in (
        (DataLoader(data, batch_size=25), 25),
        (DataLoader(data, batch_sampler=[range(30), range(30, 60)]), 16),  # of any sizes
    ):
        assert run(loader, validation=None, batch_size=16).config.training.batch_size == size


def test_no_scalar_is_read_per_step(monkeypatch):
    """Reading a tensor waits for the device: the count must not grow with the number of steps."""
    reads = []
    data = open_data(torch.from_numpy(PIXELS))
    data.value_range()  # kept by the data set, so that both runs find it
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(self, *arguments, _original=original, **options):
            # The CPU's kernels read their seed, which is on the CPU already.
            if not Path(sys._getframe(1).f_code.co_filename).is_relative_to(Path(ops.__file__).parent):
                reads.append(1)
            return _original(self, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, counted)
    counts = []
    for batch_size in (30, 2):
        run(data, batch_size=batch_size, validation=None)
        counts.append(len(reads))
        reads.clear()
    assert counts[0] == counts[1]


def test_the_model_ends_in_eval_mode_and_its_weights_are_trained_in_place():
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    before = encoder[1].weight.detach().clone()
    result = run(encoder=encoder, hidden_dims=None)
    assert result.model.encoder is encoder
    assert not torch.equal(encoder[1].weight, before)
    assert not any(module.training for module in result.model.modules())


def test_the_learned_variance_reaches_that_of_the_noise():
    """The table is two factors and noise of standard deviation 0.1; the variance starts at 1."""
    result = run(TABLE, latent_dim=2, hidden_dims=(64,), epochs=300, validation=None)
    deviation = (0.5 * result.model.likelihood.log_variance.detach()).exp()
    assert 0.05 < float(deviation) < 0.2


def test_weight_decay_leaves_the_learned_variance_alone():
    frozen = run(TABLE, weight_decay=1000.0, learning_rate=1e-4, validation=None)
    assert abs(float(frozen.model.likelihood.log_variance.detach())) > 1e-5
    assert float(frozen.model.encoder[1].weight.detach().abs().max()) < float(
        run(TABLE, learning_rate=1e-4, validation=None).model.encoder[1].weight.detach().abs().max()
    )


def test_a_plain_autoencoder_from_end_to_end():
    result = run(TABLE, variational=False, epochs=200, learning_rate=1e-2, latent_dim=5, warmup=0.5)
    assert {record["kl"] for record in result.history} == {0.0}
    error = (result.reconstruct(TABLE) - torch.from_numpy(TABLE)).square().mean()
    assert error < 0.1 * TABLE.var()
    assert torch.equal(result.encode(TABLE, sample=True), result.encode(TABLE))
    assert (result.posterior(TABLE)[1] == -torch.inf).all(), "no variance"
    assert result.sample(2).shape == (2, 5)


def test_a_run_does_not_wait_for_torchs_compiler():
    """Importing it takes seconds, and torch.optim's classes do."""
    code = """
import sys, numpy, fastvae
fastvae.train(numpy.eye(4), latent_dim=1, epochs=1, variational=False, progress=False)
assert "torch.optim.adamw" in sys.modules and "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# Reproducibility


class Items(Dataset):
    """Samples read one at a time, with a random shift."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.from_numpy(PIXELS[index]), index


def test_one_seed_gives_one_run_bit_for_bit():
    first, second, other = run(seed=3), run(seed=3), run(seed=4)
    assert_same(weights(first), weights(second))
    for a, b in zip(first.history, second.history, strict=True):
        timed = {"seconds", "images_per_second"}
        assert {k: v for k, v in a.items() if k not in timed} == {
            k: v for k, v in b.items() if k not in timed
        }
    assert not torch.equal(first.model.encoder[1].weight, other.model.encoder[1].weight)


def test_the_number_of_workers_changes_nothing():
    assert_same(weights(run(Items(), workers=0)), weights(run(Items(), workers=2)))


def test_the_shuffling_of_a_loader_is_reproducible():
    def once(seed):
        loader = DataLoader(TensorDataset(torch.from_numpy(PIXELS)), batch_size=16, shuffle=True)
        return weights(run(loader, validation=None, seed=seed))

    torch.manual_seed(1)
    first = once(0)
    torch.manual_seed(2)
    assert_same(first, once(0))


def test_dropout_is_governed_by_the_seed_and_not_by_torchs_generator():
    def once():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 4))
        return weights(run(encoder=encoder, hidden_dims=None))

    torch.manual_seed(1)
    first = once()
    torch.manual_seed(2)
    assert_same(first, once())


def test_the_callers_random_state_is_left_alone():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    result = run()
    result.sample(3)
    result.encode(PIXELS, sample=True)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_random_state_comes_back_after_an_error():
    encoder = nn.Linear(3, 4)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="the encoder failed"):
        run(encoder=encoder, hidden_dims=None)
    assert torch.equal(torch.get_rng_state(), before)


def test_streams_of_one_seed_differ():
    seeds = {derive(0, stream, index) for stream in Stream for index in range(50)}
    assert len(seeds) == 50 * len(Stream)


def test_drawn_pixels_are_new_in_each_epoch_and_the_same_in_each_batch_size():
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(16))

        def forward(self, x):
            if torch.is_grad_enabled():
                seen.append(x.detach().flatten(1))
            return (x.flatten(1) * self.scale)[:, :4]

    def epochs(batch_size):
        seen.clear()
        run(encoder=Watch(), batch_size=batch_size, validation=None, hidden_dims=None, binarize="dynamic")
        return torch.cat(seen).view(2, 60, 16)

    first = epochs(16)
    assert torch.equal(first, epochs(7))
    assert set(first.unique().tolist()) == {0.0, 1.0}
    orders = [noise.permutation(60, derive(0, Stream.SHUFFLE, epoch)).argsort() for epoch in (1, 2)]
    assert not torch.equal(first[0][orders[0]], first[1][orders[1]])
    # Ones come with the probability of the gray value: five standard errors of 1,920 draws.
    assert abs(float(first.mean()) - PIXELS.mean()) < 5 * 0.5 / 1920**0.5


def test_a_threshold_makes_the_encoder_see_binary_pixels():
    result = run(binarize="threshold")
    assert torch.equal(result.encode(PIXELS), result.encode((PIXELS > 0.5).astype(np.float32)))


def test_totals_are_means_over_the_samples_of_steps_that_counted():
    """However many steps wait, whatever the size of the last batch is, and whoever looks between."""
    from fastvae.models import Terms
    from fastvae.training.history import MOST_PENDING, EpochTotals

    totals, unread, kept = EpochTotals(torch.device("cpu")), EpochTotals(torch.device("cpu")), []
    for step in range(2 * MOST_PENDING + 5):
        terms = Terms(torch.randn(3 if step % 50 == 49 else 8), torch.rand(3 if step % 50 == 49 else 8))
        skipped = step % 7 == 3
        if skipped:
            terms.recon[0] = -torch.inf
        else:
            kept.append(terms)
        for each in (totals, unread):
            each.add(terms, torch.tensor(float(skipped)))
        if step % 20 == 0:
            totals.read()
    means = totals.read()
    assert means == unread.read()
    recon, kl = (torch.cat(values).double() for values in zip(*kept, strict=True))
    assert means.samples == len(recon)
    assert means.skipped_steps == totals.steps - len(kept)
    assert means.recon == pytest.approx(float(recon.mean()), rel=1e-12)
    assert means.kl == pytest.approx(float(kl.mean()), rel=1e-12)


@pytest.mark.parametrize("weight", [1.0, 0.3, 0.0, 1, torch.tensor(0.3)])
def test_a_step_begins_backward_with_the_derivatives_of_the_bound(weight):
    """The bits of what autograd makes of it."""
    from fastvae.objectives import elbo
    from fastvae.training.step import loss_slopes

    for size in range(1, 300):
        recon, kl = (torch.randn(size, requires_grad=True) for _ in range(2))
        expected = torch.autograd.grad(-elbo(recon, kl, weight), (recon, kl))
        for got, wanted in zip(loss_slopes(recon, kl, weight), expected, strict=True):
            torch.testing.assert_close(got, wanted, rtol=0, atol=0)


def test_totals_keep_no_memory_of_others():
    """A likelihood may write each batch to the same buffer."""
    from fastvae.models import Terms
    from fastvae.training.history import EpochTotals

    totals, recon, kl = EpochTotals(torch.device("cpu")), torch.empty(4), torch.empty(4)
    for value in (1.0, 2.0):
        totals.add(Terms(recon.fill_(value), kl.fill_(-value)), torch.tensor(0.0))
    assert totals.read()[:2] == (1.5, -1.5)


# Non-finite numbers


class Laplace(Likelihood):
    name = "laplace"

    def log_prob(self, params, x):
        return -(x - params).abs().add(np.log(2)).flatten(1).sum(1)

    def mean(self, params):
        return params

    def sample(self, params, seed=None, *, row_offset=0):
        return params + noise.normal(params.shape, seed, row_offset=row_offset)

    def check_range(self, low, high):
        pass


class Explosive(nn.Module):
    """Gives infinities for samples that begin with more than a limit."""

    def __init__(self, limit):
        super().__init__()
        self.limit = limit
        self.inner = nn.Linear(5, 4)

    def forward(self, x):
        return self.inner(x) / (x[:, :1] < self.limit).float()


def test_a_step_that_is_not_finite_is_skipped_and_counted():
    data = TABLE.copy()
    data[:, 0] = 0
    data[7, 0] = 1
    with pytest.warns(
        NonFiniteWarning, match=r"epoch 1: 1 of 4 steps .* between .* and .*learning_rate"
    ) as caught:
        result = run(data, encoder=Explosive(0.5), validation=None, hidden_dims=None)
    assert [record["skipped_steps"] for record in result.history] == [1, 1]
    assert len([w for w in caught if w.category is NonFiniteWarning]) == 1
    assert all(value.isfinite().all() for value in weights(result).values())
    assert np.isfinite([record["elbo"] for record in result.history]).all()


def test_terms_count_though_they_have_no_gradient():
    """A decoder may be fixed now and then; an infinite KL is noticed also where nothing learns by it."""

    class NowAndThen(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.uses = nn.Linear(2, 5), 0

        def forward(self, z):
            self.uses += 1
            with torch.set_grad_enabled(self.uses % 3 > 0):
                return self.inner(z)

    class Enormous(nn.Module):
        def forward(self, x):
            return torch.cat((1e20 * x[:, :2], x[:, 2:4]), 1)

    assert np.isfinite(run(TABLE, decoder=NowAndThen(), validation=None).history[-1]["elbo"])
    decoder = nn.Sequential(nn.Tanh(), nn.Linear(2, 5))
    with pytest.raises(NonFiniteError, match="4 of 4 steps"):
        run(TABLE, encoder=Enormous(), decoder=decoder, validation=None, hidden_dims=None)


def test_a_hook_that_writes_to_a_gradient_does_so_once():
    """What backward begins with is not what a hook left of it the step before."""

    class Hooked(Laplace):
        def __init__(self, hook):
            super().__init__()
            self.hook = hook

        def log_prob(self, params, x):
            recon = super().log_prob(params, x)
            if recon.requires_grad:
                recon.register_hook(self.hook)
            return recon

    in_place, anew = (
        run(TABLE, likelihood=Hooked(halve), epochs=3)
        for halve in (lambda gradient: gradient.mul_(0.5), lambda gradient: gradient * 0.5)
    )
    assert_same(weights(in_place), weights(anew))


def test_a_skipped_step_is_as_if_it_had_not_been():
    """Neither the weights nor Adam's moments nor its step count move."""
    from fastvae.training.optimizer import CautiousAdam

    def trained(losses):
        model = nn.Linear(2, 1)
        nn.init.constant_(model.weight, 0.5)
        nn.init.constant_(model.bias, 0.5)
        adam = CautiousAdam(model, learning_rate=0.1, weight_decay=0.1)
        skipped = [
            bool(adam.step([model(torch.tensor([[1.0, 2.0]])).square().sum() * loss])) for loss in losses
        ]
        return skipped, model.state_dict()

    nan, inf = float("nan"), float("inf")
    skipped, disturbed = trained([1.0, nan, 2.0, inf, 3.0])
    assert skipped == [False, True, False, True, False]
    assert_same(disturbed, trained([1.0, 2.0, 3.0])[1])


def test_a_parameter_counts_the_steps_in_which_it_has_a_gradient():
    """As torch's own Adam does: one that is used now and then is not corrected as if it were old."""
    from fastvae.training.optimizer import CautiousAdam

    def trained(step_of):
        model = nn.ModuleList([nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)])
        for layer in model:
            nn.init.constant_(layer.weight, 0.5)
        step = step_of(model)
        for used in (2, 1, 1, 2, 1):
            step([layer(torch.tensor([1.0, 2.0])).square().sum() for layer in model[:used]])
        return model.state_dict()

    def torchs(model):
        adam = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1, fused=True)

        def step(losses):
            adam.zero_grad()
            sum(losses).backward()
            adam.step()

        return step

    own = trained(lambda model: CautiousAdam(model, learning_rate=0.1, weight_decay=0.1).step)
    # Its own roundings: a step that is counted wrongly moves a weight by a tenth of itself.
    torch.testing.assert_close(own, trained(torchs), rtol=2e-6, atol=0)


def test_an_epoch_without_a_finite_step_stops_with_an_explanation():
    with pytest.raises(NonFiniteError, match=r"epoch 1: 4 of 4 steps .*Training stopped") as caught:
        run(TABLE, encoder=Explosive(-100), validation=None, hidden_dims=None)
    assert caught.value.result is None


def test_what_was_trained_before_such_an_epoch_is_not_lost():
    class EndsBadly(Explosive):
        calls = 0

        def forward(self, x):
            self.calls += self.training
            self.limit = 100 if self.calls <= 8 else -100
            return super().forward(x)

    torch.manual_seed(0)
    with pytest.raises(NonFiniteError, match="epoch 3: 4 of 4 steps") as caught:
        run(TABLE, encoder=EndsBadly(0), validation=None, hidden_dims=None, epochs=5)
    left = caught.value.result
    torch.manual_seed(0)
    expected = run(TABLE, encoder=Explosive(100), validation=None, hidden_dims=None, epochs=2)
    assert_same(weights(left), weights(expected))
    assert left.interrupted
    assert [record["elbo"] for record in left.history] == [record["elbo"] for record in expected.history]


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, r"Try warmup=0.3, free_bits=0.1, more epochs or a beta below 7$"),
        ({"warmup": 0.5}, r"Try cycles=4, free_bits=0.1, more epochs or a beta below 7$"),
        ({"warmup": 0.5, "cycles": 2, "free_bits": 0.2}, r"Try more epochs or a beta below 7$"),
        ({"warmup": 0.5, "capacity": 0.001}, r"Try a larger capacity or more epochs$"),
    ],
)
def test_a_collapse_is_followed_by_what_was_not_tried(changes, advice):
    settings = replace(run(epochs=1).config.training, beta=7.0, **changes)
    with pytest.warns(PosteriorCollapseWarning, match=advice):
        report_collapse(0.001, settings)


def test_a_collapsed_posterior_is_pointed_out():
    with pytest.warns(PosteriorCollapseWarning, match=r"KL ended at .* Try warmup=0.3"):
        run(beta=10000.0, epochs=60, learning_rate=1e-2)


# Interruption


def test_ctrl_c_gives_what_there_is():
    class Impatient(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 4)
            self.calls = 0

        def forward(self, x):
            if torch.is_grad_enabled():
                self.calls += 1
                if self.calls == 7:
                    raise KeyboardInterrupt
            return self.inner(x)

    result = run(TABLE, encoder=Impatient(), epochs=50, validation=None, hidden_dims=None)
    assert result.interrupted
    assert [record["epoch"] for record in result.history] == [1, 2]
    assert not result.model.training
    assert result.sample(2).shape == (2, 5)


# Choices


@pytest.mark.parametrize(
    ("data", "likelihood"),
    [
        (PIXELS, Bernoulli),
        (PIXELS.reshape(60, 4, 4), Bernoulli),
        ((PIXELS.reshape(60, 16) > 0.5), Bernoulli),
        ((PIXELS * 255).astype(np.uint8), Bernoulli),
        (np.tile(PIXELS.reshape(60, 16), 4), Bernoulli),
        (PIXELS.reshape(60, 16), Gaussian),
        (TABLE, Gaussian),
        (PIXELS - 0.5, Gaussian),
    ],
)
def test_auto_takes_the_likelihood_the_data_looks_like(data, likelihood):
    assert type(run(data, epochs=1).model.likelihood) is likelihood


def test_a_given_variance_means_a_gaussian():
    result = run(variance="predicted")
    assert result.model.likelihood.maps == 2
    assert result.config.model.variance == "predicted"


def test_small_data_is_passed_over_more_often():
    assert [choose_epochs(steps) for steps in (1, 13, 400, 10**6)] == [400, 154, 20, 20]


def test_the_choices_are_told(capsys):
    run(progress=True)
    told = capsys.readouterr().err
    assert "54 samples of shape (1, 4, 4), 6 held out" in told
    assert "bernoulli likelihood (as all values lie between 0 and 1 and look like pixels), 2 epochs" in told
    assert "codes in use" in told
    bar = told.replace("\r", "\n").rpartition("100%")
    assert bar[0].splitlines()[-1].startswith("epoch 2/2"), "the numbers at the end are of the end"
    run(progress=False)
    assert capsys.readouterr().err == ""


def test_a_likelihood_of_ones_own():
    result = run(TABLE, likelihood=Laplace())
    assert type(result.model.likelihood) is Laplace
    assert result.config.model.custom == ("likelihood",)


def test_a_gaussian_given_as_an_object_is_trained_in_place():
    """Its variance may be one that an earlier training learned, or one that is not to move."""
    fixed = Gaussian()
    with torch.no_grad():
        fixed.log_variance.fill_(-1.5)
    fixed.log_variance.requires_grad_(False)
    result = run(TABLE, likelihood=fixed)
    assert result.model.likelihood is fixed
    assert fixed.log_variance == -1.5
    assert result.config.model.custom == (), "a file can hold it"


@contextmanager
def default_dtype():
    torch.set_default_dtype(torch.float64)
    try:
        yield
        assert torch.get_default_dtype() is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def uses(result):
    """What a result does, one of each."""
    return {
        "samples": result.sample(3),
        "drawn samples": result.sample(3, sampled=True),
        "means": result.posterior(PIXELS)[0],
        "log-variances": result.posterior(PIXELS)[1],
        "drawn codes": result.encode(PIXELS, sample=True),
        "decoded": result.decode([[0.0, 1.0]]),
        "interpolated": result.interpolate(PIXELS[0], PIXELS[1]),
        "traversed": result.traverse(PIXELS[0]),
        "from the origin": result.traverse(),
    }


@pytest.mark.parametrize(
    "around",
    [
        pytest.param(torch.no_grad, id="no_grad"),
        pytest.param(torch.enable_grad, id="enable_grad"),
        pytest.param(torch.inference_mode, id="inference_mode"),
        pytest.param(lambda: torch.autocast("cpu", torch.bfloat16), id="autocast"),
        pytest.param(default_dtype, id="default_dtype"),
        # A tensor made without a device would be there, and have no values.
        pytest.param(lambda: torch.device("meta"), id="default_device"),
    ],
)
@pytest.mark.parametrize("changes", [{}, {"data": TABLE}, {"model": "conv"}], ids=["mlp", "table", "conv"])
def test_what_surrounds_a_call_does_not_reach_it(around, changes, tmp_path):
    expected = run(**changes, output_dir=tmp_path / "expected")
    with around():
        found = run(**changes, output_dir=tmp_path / "found")
        loaded = load(tmp_path / "found", device="cpu")
        used = uses(loaded) if "data" not in changes else {}
        bound = loaded.evaluate(changes.get("data", PIXELS), num_samples=3)
        loaded.save(tmp_path / "again")
    assert_same(weights(found), weights(expected))
    assert_same(weights(load(tmp_path / "again", device="cpu")), weights(expected))
    assert not any(tensor.is_inference() for tensor in loaded.model.state_dict(keep_vars=True).values())
    names = {path.name for path in (tmp_path / "found").iterdir()}
    assert names == {path.name for path in (tmp_path / "expected").iterdir()}
    for name, tensor in used.items():
        assert tensor.dtype is torch.float32, name
        assert not tensor.requires_grad, name
        assert not tensor.is_inference(), name
        assert torch.equal(tensor, uses(expected)[name]), name
    assert bound == expected.evaluate(changes.get("data", PIXELS), num_samples=3)


def test_a_dataset_is_read_under_another_default_device():
    expected = run(Items(), validation=None)
    with torch.device("meta"):
        found = run(Items(), validation=None)
    assert_same(weights(found), weights(expected))


def test_weights_of_inference_mode_are_refused():
    """Autograd passes by them, so they would stay as they are."""
    with torch.inference_mode():
        encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(ValueError, match=r"encoder\.1\.weight was made in torch\.inference_mode\(\)"):
        run(encoder=encoder)
    run(encoder=encoder.requires_grad_(False))  # nothing has to reach these


def normalising(frozen, eval_mode):
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 4))
    encoder.requires_grad_(not frozen).train(not eval_mode)
    return encoder


@pytest.mark.parametrize("inside", [False, True], ids=["whole", "part"])
def test_a_frozen_network_in_eval_mode_is_left_as_it_was(inside):
    network = normalising(frozen=True, eval_mode=True)
    head = nn.Linear(4, 4)
    encoder = nn.Sequential(network, head) if inside else network
    x = torch.from_numpy(PIXELS)
    before = network(x)
    seen = []
    network[2].register_forward_hook(lambda module, *_: seen.append(module.training))
    result = run(encoder=encoder, batch_size=10)
    assert not any(seen)
    assert torch.equal(network(x), before)
    assert inside == any(parameter.grad is not None for parameter in head.parameters())
    assert np.isfinite(result.history[-1]["val_elbo"])


@pytest.mark.parametrize(("frozen", "eval_mode"), [(True, False), (False, True)])
def test_any_other_network_is_put_in_train_mode(frozen, eval_mode):
    """A network is often in eval mode by chance, as one that was loaded is."""
    network = normalising(frozen, eval_mode)
    before = network[1].running_mean.clone()
    run(encoder=network)
    assert not torch.equal(network[1].running_mean, before)


class WithSigmoid(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 16))

    def forward(self, z):
        return torch.sigmoid(self.layers(z)).view(-1, 4, 4)


def test_a_decoder_that_ends_in_a_sigmoid_is_refused():
    """pythae's and most tutorials' do; with it no probability comes out below 1/2."""
    as_module = nn.Sequential(nn.Linear(2, 16), nn.Sigmoid())
    for decoder in (WithSigmoid(), as_module):
        with pytest.raises(ValueError, match=r"ends in a sigmoid, .* takes logits .*leave .* out"):
            run(decoder=decoder)
    run(decoder=WithSigmoid(), likelihood="gaussian")


def test_logits_may_begin_between_0_and_1():
    decoder = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 16))
    with torch.no_grad():
        decoder[2].weight.mul_(1e-3)
        decoder[2].bias.fill_(0.5)
    run(decoder=decoder)
    gated = nn.Sequential(nn.Linear(2, 16), nn.Sigmoid(), nn.Linear(16, 16))
    with torch.no_grad():
        gated[2].weight.fill_(1 / 16)
        gated[2].bias.fill_(0.0)
    run(decoder=gated)

    class Probabilities(Bernoulli):
        """A likelihood of one's own, that takes what a sigmoid gives."""

        def log_prob(self, params, x):
            return super().log_prob(params.clamp(1e-6, 1 - 1e-6).logit(), x)

    run(decoder=WithSigmoid(), likelihood=Probabilities())


def test_a_layer_that_is_never_reached_and_has_no_size_is_named():
    class Forgotten(nn.Linear):
        def __init__(self):
            super().__init__(16, 4)
            self.unused = nn.LazyLinear(3)

        def forward(self, x):
            return super().forward(x.flatten(1))

    with pytest.raises(ValueError, match=r"encoder\.unused\.weight has no size yet"):
        run(encoder=Forgotten())


def test_a_data_frame_has_the_columns_of_the_training():
    frame = pd.DataFrame(TABLE, columns=[f"c{i}" for i in range(TABLE.shape[1])])
    turned = frame[frame.columns[::-1]]
    with pytest.raises(ValueError, match="validation: the columns of the data frame are in another order"):
        run(frame, validation=turned)
    result = run(frame, validation=frame[:20])
    with pytest.raises(ValueError, match=r"in another order than in the training: take frame\[\['c0', 'c1'"):
        result.encode(turned)
    with pytest.raises(ValueError, match="without 'c0'; with 'age'"):
        result.evaluate(frame.rename(columns={"c0": "age"}))
    assert torch.equal(result.encode(frame), result.encode(TABLE))


def test_a_warning_that_is_an_error_loses_nothing(tmp_path):
    with pytest.raises(PosteriorCollapseWarning):  # as tests have it
        run(beta=10000.0, epochs=60, learning_rate=1e-2, output_dir=tmp_path / "run")
    assert load(tmp_path / "run", device="cpu").config.training.beta == 10000.0


# Wrong use


@pytest.mark.parametrize(
    ("word", "alias"), [(word, alias) for word, all_ in ALIASES.items() for alias in all_]
)
def test_a_familiar_alias_gets_the_right_word(word, alias):
    with pytest.raises(TypeError, match=rf"there is no '{alias}'; write '{word}'"):
        train(PIXELS, **{alias: 1})


def test_a_misspelt_word_gets_the_right_one():
    with pytest.raises(TypeError, match="there is no 'laten_dim'; write 'latent_dim'"):
        train(PIXELS, laten_dim=2)
    with pytest.raises(TypeError, match="there is no 'xyzzy'; its arguments are latent_dim, model"):
        train(PIXELS, xyzzy=2)
    with pytest.raises(TypeError, match="'input_dim' is not needed: the shape is taken from the data"):
        train(PIXELS, input_dim=16)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 0}, "latent_dim must be a whole number of at least 1, got 0"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1"),
        ({"batch_size": -1}, "batch_size must be a whole number of at least 1"),
        ({"learning_rate": 0}, "learning_rate must be a finite number above 0, got 0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a finite number"),
        ({"beta": -1.0}, "beta must be a finite number of at least 0"),
        ({"weight_decay": -1.0}, "weight_decay must be a finite number of at least 0"),
        ({"warmup": 10}, "warmup must lie between 0 and 1, a fraction of all steps, got 10.*n / epochs"),
        ({"cycles": 0, "warmup": 0.5}, "cycles must be a whole number of at least 1, got 0"),
        ({"cycles": 4}, "cycles=4 repeats the warm-up, and there is none: write warmup= beside it"),
        ({"cycles": 9, "warmup": 0.5}, r"cycles=9 is too many: by warmup=0\.5 the weight grows in 4 of 8"),
        ({"cycles": 3, "warmup": 0.6}, "cycles=3 is too many: .* at least two of them; take fewer cycles"),
        ({"cycles": 2}, "cycles=2 repeats the warm-up, and there is none"),
        ({"cycles": 2, "warmup": 0.5, "beta": 0}, "with beta=0 the KL has no weight, so cycles has no"),
        ({"capacity": 2, "beta": 0}, "with beta=0 the KL has no weight, so capacity has no effect"),
        ({"cycles": 2, "warmup": 0.5, "variational": False}, "cycles are of the KL, which variational=False"),
        ({"capacity": -1}, "capacity must be a finite number of at least 0, got -1"),
        ({"capacity": 1, "free_bits": 0.1}, "capacity and free_bits each say how much the codes may carry"),
        ({"capacity": 1, "cycles": 2, "warmup": 0.5}, "which capacity leaves as it is"),
        ({"capacity": 1, "variational": False}, "capacity is of the KL, which variational=False has not"),
        ({"hidden_dims": ()}, "hidden_dims must name at least one layer"),
        ({"hidden_dims": (4, 0)}, "hidden_dims must be a whole number of at least 1, got 0"),
        ({"binarize": "yes"}, "binarize must be one of 'none', 'dynamic', 'threshold', got 'yes'"),
        ({"seed": 2**64}, "seed must fit in 64 bits"),
        ({"device": "tpu"}, 'device must be "auto", "cpu"'),
        ({"device": "cuda:99"}, "cuda:99 is not there"),
        ({"likelihood": "poisson"}, "likelihood must be one of 'auto', 'bernoulli', 'gaussian', or"),
        ({"likelihood": "bernoulli", "variance": 0.1}, "variance=0.1 belongs to likelihood=\"gaussian\""),
        ({"likelihood": "gaussian", "binarize": "dynamic"}, "it needs likelihood=\"bernoulli\""),
        ({"likelihood": Gaussian(), "variance": 0.1}, "give the variance to the likelihood"),
        ({"validation": 5}, r"validation must be a fraction .* for n samples write n / 60"),
        ({"validation": TABLE}, r"validation has samples of shape \(5,\), the training data of shape"),
        ({"model": "resnet"}, "model must be one of 'mlp', 'conv'"),
        ({"encoder": nn.Linear(16, 4), "decoder": nn.Linear(2, 16)}, "hidden_dims has no meaning beside"),
        ({"encoder": nn.BatchNorm3d(1)}, "the encoder failed on .*: expected 5D input"),
        ({"validation": PIXELS * np.nan}, r"validation: array: 60 of 60 samples hold NaN .*\(row 0, 1"),
        ({"validation": PIXELS * 3}, "validation: the Bernoulli likelihood needs values between 0 and 1"),
    ],
)  # fmt: skip
def test_values_out_of_range_raise_before_any_work(changes, message):
    with pytest.raises(ValueError, match=message):
        run(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latent_dim": 2.5}, "latent_dim must be a whole number, got 2.5"),
        ({"epochs": "3"}, "epochs must be a whole number, got '3'"),
        ({"hidden_dims": "400"}, "hidden_dims must be a whole number"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"seed": True}, "seed must be a whole number, got True"),
        ({"variational": "no"}, "variational must be True or False, got 'no'"),
        (
            {"model": nn.Linear(2, 2)},
            "model must be a name, got Linear; pass networks of your own as encoder=",
        ),
        ({"validation": True}, "validation: expected a NumPy array"),
        ({"device": 3}, "device must be a name"),
        ({"encoder": nn.Linear}, "encoder must be a Module, got type; pass an object"),
        ({"likelihood": 3}, "likelihood must be one of"),
        ({"output_dir": 3}, "the run folder must be a str or a Path"),
    ],
)
def test_values_of_another_kind_raise_before_any_work(changes, message):
    with pytest.raises(TypeError, match=message):
        run(**changes)


def test_numpys_numbers_are_numbers(tmp_path):
    """They come out of searches and config files; what is written is Python's own."""
    plain = run(seed=3, epochs=2, learning_rate=0.5**10, beta=2, hidden_dims=[8, 4], validation=0.25)
    result = run(
        seed=np.int64(3),
        epochs=np.int32(2),
        batch_size=np.int64(16),
        latent_dim=np.int8(2),
        learning_rate=np.float32(0.5**10),
        beta=np.float16(2),
        hidden_dims=np.array([8, 4]),
        validation=np.float32(0.25),
    )
    assert_same(weights(result), weights(plain))
    assert load(result.save(tmp_path)).config == plain.config
    assert all(type(value) is float for key, value in plain.history[0].items() if key not in COUNTS)
    assert type(run(likelihood="gaussian", variance=np.float32(0.5)).config.model.variance) is float


COUNTS = {"epoch", "skipped_steps"}


@pytest.mark.parametrize("shape", [(), (60, 4)])
def test_a_likelihood_must_give_one_number_per_sample(shape):
    class Wrong(Gaussian):
        def log_prob(self, params, x):
            recon = super().log_prob(params, x)
            return recon.sum() if not shape else recon[:, None].expand(-1, 4)

    with pytest.raises(
        ValueError, match=r"log_prob of the gaussian likelihood must give one number per sample"
    ):
        run(TABLE, likelihood=Wrong())


def test_data_outside_the_likelihoods_range_raises():
    with pytest.raises(
        ValueError, match="the Bernoulli likelihood needs values between 0 and 1, but the data lies"
    ):
        run(TABLE, likelihood="bernoulli")
    with pytest.raises(ValueError, match="the Gaussian likelihood needs values of ordinary size"):
        run(TABLE * 1000)
    with pytest.raises(ValueError, match="NaN or infinite"):
        run(np.where(TABLE > 1, np.nan, TABLE))


def test_what_is_held_out_or_evaluated_may_have_outliers():
    """The likelihood can have them; it is training that cannot begin with them."""
    outliers = TABLE.copy()
    outliers[0, 0] = 1000.0
    result = run(TABLE, validation=outliers)
    assert result.evaluate(outliers)["elbo"] < result.evaluate(TABLE)["elbo"] - 1000
    with pytest.raises(ValueError, match=r"validation: .*NaN or infinite"):
        run(TABLE, validation=np.where(TABLE > 1, np.nan, TABLE))


def test_overfitting_is_told_with_the_epoch_to_end_at():
    # So few rows of noise that a network can learn them all.
    few, others = np.random.default_rng(0).normal(size=(2, 20, 30)).astype(np.float32)
    with pytest.warns(OverfittingWarning, match=r"best after epoch \d+, .* ended at .* Try epochs=") as told:
        whole = run(few, validation=others, hidden_dims=(64,), epochs=100, learning_rate=5e-3)
    bounds = [record["val_elbo"] for record in whole.history]
    best = int(np.argmax(bounds))
    assert f"Try epochs={best + 1}," in str(told[0].message)
    assert bounds[best] - bounds[-1] > 1
    shorter = run(few, validation=others, hidden_dims=(64,), epochs=best + 1, learning_rate=5e-3)
    assert shorter.history[-1]["val_elbo"] == bounds[best], "an epoch is the same whatever comes after it"


def test_neither_a_bad_epoch_nor_two_bounds_that_fall_together_are_overfitting():
    def told(held_out, training):
        history = [
            {"epoch": number, "val_elbo": bound, "elbo": elbo}
            for number, (bound, elbo) in enumerate(zip(held_out, training, strict=True), 1)
        ]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            report_overfitting(history)
        return len(caught)

    assert told([-50, -20, -30, -35, -40], [-60, -25, -15, -10, -5]) == 1
    assert told([math.nan, -20, -30, -35, -40], [-60, -25, -15, -10, -5]) == 1
    assert told([-50, -20, -19, -18, -40], [-60, -25, -15, -10, -5]) == 0
    assert told([-45, -48, -50, -51, -52], [-52, -47, -50, -50, -51]) == 0
    assert told([None] * 3, [-52, -47, -50]) == 0
    assert told([-20, -20.3, -20.6, -20.8], [-30, -20, -10, 0]) == 0


def test_a_bound_that_falls_as_asked_for_is_no_overfitting():
    """Without a KL in training, that of both grows."""
    result = run(beta=0.0, epochs=60, learning_rate=1e-2)
    bounds = [record["val_elbo"] for record in result.history]
    assert max(bounds) - bounds[-1] > 5


def test_data_that_no_variance_could_be_learned_from_raises_before_any_work():
    """Percentages, say: Adam's averages would be infinite after a step, and the training stand still."""
    percentages = np.random.default_rng(0).uniform(0, 100, (200, 6)).astype(np.float32)
    with pytest.raises(ValueError, match=r"begins with a log-variance of .*lie between .*: standardise"):
        run(percentages, hidden_dims=None)
    autoencoder = run(percentages, hidden_dims=None, variational=False, likelihood=Gaussian(1.0), epochs=1)
    assert autoencoder.history[-1]["skipped_steps"] == 0
    standardised = (percentages - percentages.mean(0)) / percentages.std(0)
    assert run(standardised, hidden_dims=None).history[-1]["skipped_steps"] == 0


def test_tiny_data_trains_without_validation():
    result = run(PIXELS[:1])
    assert result.config.data.samples == 1
    assert result.config.data.validation_samples == 0


def test_nothing_is_printed_or_warned_of_in_an_ordinary_run(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run()
    assert capfd.readouterr() == ("", "")
