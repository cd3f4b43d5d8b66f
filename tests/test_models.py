"""Networks of every shape, by name or of one's own, around one latent step."""

import pytest
import torch
from torch import nn

from fastvae import functional
from fastvae.models import PRESETS, VAE, Bernoulli, Gaussian, ModelSpec, build_model
from fastvae.models.probe import check_networks


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


SHAPES = [(5,), (8, 8), (1, 8, 8), (1, 28, 28), (3, 13, 9), (2, 1, 1), (4, 33, 2)]


def small(shape=(6,), latent_dim=3, **changes):
    """A model of known weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model(ModelSpec(shape, latent_dim, hidden_dims=(7,), **changes))


@pytest.mark.parametrize("variance", ["learned", "predicted", 0.1, None])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_presets_take_and_give_back_every_shape(shape, preset, variance):
    if preset == "conv" and len(shape) == 1:
        pytest.skip("conv is for images")
    likelihood = "bernoulli" if variance is None else "gaussian"
    model = build_model(ModelSpec(shape, 4, preset=preset, likelihood=likelihood, variance=variance))
    terms = model(torch.rand(3, *shape), seed=1)
    assert terms.recon.shape == terms.kl.shape == (3,)
    assert model.decode(torch.zeros(2, 4)).shape == (2, *shape)
    (terms.kl - terms.recon).mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("preset", PRESETS)
def test_no_network_ends_in_a_squashing_function(preset):
    model = build_model(ModelSpec((1, 8, 8), 4, preset=preset, likelihood="gaussian", variance="learned"))
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.mul_(50)
    mean = model.decode(torch.ones(1, 4)).detach()
    assert float(mean.max()) > 1
    assert float(mean.min()) < 0


def test_hidden_dims_are_the_layers_from_data_to_code():
    model = build_model(ModelSpec((6,), 3, hidden_dims=(20, 10)))
    widths = [m.out_features for m in (*model.encoder, *model.decoder) if isinstance(m, nn.Linear)]
    assert widths == [20, 10, 6, 10, 20, 6]
    conv = build_model(ModelSpec((1, 9, 9), 3, preset="conv", hidden_dims=(2, 3)))
    assert [m.out_channels for m in conv.encoder if isinstance(m, nn.Conv2d)] == [2, 3]


def test_the_terms_are_those_of_the_formula():
    model, x = small(), torch.rand(4, 6)
    mu, logvar = model.encoder(x).chunk(2, -1)
    z, kl = functional.reparametrize_kl(mu, logvar, seed=9)
    terms = model(x, seed=9)
    assert torch.equal(terms.kl, kl)
    assert torch.equal(terms.recon, Bernoulli().log_prob(model.decoder(z), x))


def test_the_noise_of_a_sample_does_not_depend_on_its_batch():
    model, x = small(), torch.rand(1, 6).expand(5, 6)
    whole = model(x, seed=9)
    part = model(x[2:], seed=9, row_offset=2)
    torch.testing.assert_close(part.recon, whole.recon[2:], rtol=1e-6, atol=1e-6)
    assert len(set(whole.recon.tolist())) == 5


def test_an_exported_model_takes_batches_of_any_size():
    model = build_model(ModelSpec((6,), 2, hidden_dims=(8,)))
    batch = torch.export.Dim("batch", min=2)
    exported = torch.export.export(model, (torch.rand(6, 6), 5), dynamic_shapes=({0: batch}, None)).module()
    x = torch.rand(9, 6)
    for got, expected in zip(exported(x, 5), model(x, 5), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_plain_autoencoder_is_the_model_at_zero_variance():
    """The same weights give the same numbers as a variational model whose variance goes to zero."""
    plain, variational = small(variational=False), small()
    with torch.no_grad():
        variational.encoder[-1].weight[3:] = 0
        variational.encoder[-1].bias[3:] = -200
    x = torch.rand(4, 6)
    assert torch.equal(plain(x, seed=1).recon, variational(x, seed=1).recon)
    assert torch.equal(plain(x).kl, torch.zeros(4))


class Pair(nn.Module):
    """Gives mean and log-variance as a pair."""

    def __init__(self, latent_dim):
        super().__init__()
        self.mu, self.logvar = nn.Linear(6, latent_dim), nn.Linear(6, latent_dim)

    def forward(self, x):
        return self.mu(x), self.logvar(x)


class TwoMaps(nn.Module):
    """Gives mean and log-variance of the data as a pair."""

    def __init__(self):
        super().__init__()
        self.mean, self.logvar = nn.Linear(3, 6), nn.Linear(3, 6)

    def forward(self, z):
        return self.mean(z), self.logvar(z)


@pytest.mark.parametrize(
    ("encoder", "decoder", "likelihood", "shape"),
    [
        (Pair(3), nn.Linear(3, 6), Bernoulli(), (6,)),
        (Pair(3), TwoMaps(), Gaussian("predicted"), (6,)),
        (nn.Linear(6, 6), nn.Linear(3, 12), Gaussian("predicted"), (6,)),
        (nn.Sequential(nn.Flatten(), nn.Linear(6, 6)), nn.Linear(3, 6), Gaussian(), (1, 2, 3)),
        (nn.Sequential(nn.Flatten(), nn.LazyLinear(6)), nn.LazyLinear(6), Gaussian(), (1, 2, 3)),
        (
            nn.Linear(6, 6),
            nn.Sequential(nn.Linear(3, 12), nn.Unflatten(1, (2, 6))),
            Gaussian("predicted"),
            (6,),
        ),
        (nn.Linear(6, 6), nn.Sequential(nn.Linear(3, 6), nn.Unflatten(1, (6, 1))), Gaussian(), (6,)),
        (nn.Linear(1, 6), nn.Linear(3, 1), Gaussian(), (1,)),
    ],
)
def test_any_module_serves_as_encoder_and_decoder(encoder, decoder, likelihood, shape):
    model = VAE(encoder, decoder, likelihood, latent_dim=3, input_shape=shape)
    check_networks(model, torch.rand(1, *shape))
    assert model(torch.rand(4, *shape)).recon.shape == (4,)
    assert model.decode(torch.zeros(2, 3)).shape == (2, *shape)


def test_an_encoder_of_means_only_serves_a_plain_autoencoder():
    plain = VAE(
        nn.Linear(6, 3), nn.Linear(3, 6), Gaussian(), latent_dim=3, input_shape=(6,), variational=False
    )
    assert torch.equal(plain(torch.rand(4, 6)).kl, torch.zeros(4))


class Gives(nn.Module):
    """A network that is a function."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def test_an_image_on_its_side_is_refused():
    """It has as many values, in another order."""
    decoder = nn.Sequential(nn.Linear(3, 6), nn.Unflatten(1, (3, 2)))
    model = VAE(nn.Linear(6, 6), decoder, Bernoulli(), latent_dim=3, input_shape=(2, 3))
    with pytest.raises(ValueError, match=r"shape \(B, 2, 3\) or \(B, 6\) .*got shape \(B, 3, 2\)"):
        model.decode(torch.zeros(4, 3))


@pytest.mark.parametrize(
    ("encoder", "decoder", "message"),
    [
        (nn.Linear(6, 20), nn.Linear(3, 6), r"got shape \(B, 20\); pass latent_dim=10"),
        (nn.Linear(6, 3), nn.Linear(3, 6), r"must give a tensor of shape \(B, 6\).*got shape \(B, 3\)"),
        (nn.Linear(5, 6), nn.Linear(3, 6), r"the encoder failed on a .* of shape \(1, 6\).*Flatten"),
        (nn.Linear(6, 6), nn.Linear(3, 5), r"the decoder must give .*\(B, 6\).* got shape \(B, 5\)"),
        (nn.Linear(6, 6), nn.Linear(2, 6), r"the decoder failed on a .* of shape \(1, 3\)"),
        (nn.BatchNorm3d(6), nn.Linear(3, 6), r"the encoder failed on a .*expected 5D input"),
        (
            Gives(lambda x: (x[:, :4], x[:, :4])),
            nn.Linear(3, 6),
            r"\(B, 4\), shape \(B, 4\); pass latent_dim=4",
        ),
        (Gives(lambda x: (x[:, :4], x[:, :2])), nn.Linear(3, 6), r"shape \(B, 4\), shape \(B, 2\)$"),
        (Gives(lambda x: (x[:, :3], None)), nn.Linear(3, 6), r"got a tuple of shape \(B, 3\), NoneType"),
        (Gives(lambda x: {"mu": x}), nn.Linear(3, 6), "got dict"),
        (nn.Linear(6, 6), Gives(lambda z: z.sum()), r"got shape \(\)"),
        (nn.Linear(6, 6), Gives(lambda z: z.repeat(2, 2)), r"the decoder must give .* got shape \(2, 6\)"),
    ],
)
def test_networks_that_do_not_fit_say_what_is_wrong(encoder, decoder, message):
    model = VAE(encoder, decoder, Bernoulli(), latent_dim=3, input_shape=(6,))
    with pytest.raises(ValueError, match=message):
        check_networks(model, torch.rand(1, 6))


def test_weights_of_another_dtype_are_named():
    model = VAE(nn.Linear(6, 4).double(), nn.Linear(2, 6), Bernoulli(), latent_dim=2, input_shape=(6,))
    with pytest.raises(
        ValueError, match=r"weights are torch\.float64: module\.to\(torch\.float32\) makes them"
    ):
        check_networks(model, torch.rand(2, 6))


def test_a_likelihood_is_an_object():
    for given in ("bernoulli", Bernoulli):
        with pytest.raises(
            TypeError, match=r"likelihood must be a Likelihood, such as fastvae\.models\.Bern"
        ):
            VAE(nn.Linear(6, 4), nn.Linear(2, 6), given, latent_dim=2, input_shape=(6,))


def test_the_dry_run_leaves_the_model_as_it_was():
    encoder = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 6))
    model = VAE(encoder, nn.Linear(3, 6), Bernoulli(), latent_dim=3, input_shape=(6,))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    check_networks(model, torch.rand(1, 6))
    assert model.training
    assert encoder[0].training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_table_is_no_image():
    with pytest.raises(
        ValueError, match=r'model="conv" needs images .* got samples of shape \(5,\); model="mlp"'
    ):
        build_model(ModelSpec((5,), 2, preset="conv"))


def test_images_with_their_channels_last_are_pointed_out():
    with pytest.raises(ValueError, match=r"needs the channels first.*x\.transpose\(0, 3, 1, 2\)"):
        build_model(ModelSpec((16, 16, 3), 2, preset="conv"))


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match="model must be one of 'mlp', 'conv', got 'resnet'"):
        build_model(ModelSpec((5,), 2, preset="resnet"))
    with pytest.raises(ValueError, match="likelihood must be one of 'bernoulli', 'gaussian', got 'poisson'"):
        build_model(ModelSpec((5,), 2, likelihood="poisson"))


def test_parts_of_ones_own_must_be_given_and_be_modules():
    custom = ModelSpec((5,), 2, custom=("encoder",))
    with pytest.raises(ValueError, match=r"trained with an encoder of your own.*pass encoder="):
        build_model(custom)
    with pytest.raises(TypeError, match=r"encoder must be a Module, got type; pass an object, Linear\("):
        build_model(custom, encoder=nn.Linear)
    with pytest.raises(ValueError, match="has the built-in decoder: leave decoder= out"):
        build_model(custom, encoder=nn.Linear(5, 4), decoder=nn.Linear(2, 5))
    own = nn.Linear(5, 4)
    assert build_model(custom, encoder=own).encoder is own


@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # torch 2.10, of its file
@pytest.mark.parametrize("options", [{}, {"free_bits": 0.1}], ids=["terms", "free bits"])
def test_an_exported_model_can_be_saved(options, tmp_path):
    model = build_model(ModelSpec(input_shape=(5,), latent_dim=2, hidden_dims=(4,), likelihood="bernoulli"))
    x, seed = torch.rand(3, 5), torch.tensor(3)
    torch.export.save(torch.export.export(model, (x, seed), options), tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    expected = model(x, seed, **options)
    assert type(loaded(x, seed, **options)) is type(expected)
    for term, same in zip(loaded(x, seed, **options), expected, strict=True):
        torch.testing.assert_close(term, same)
