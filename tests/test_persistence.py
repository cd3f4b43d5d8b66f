"""Results do what they say, and come back from disk as they were or with an error that says why not."""

import json
import os
import signal
import stat
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from fastvae.data import open_data
from fastvae.errors import FileFormatError, RunNotWrittenError, RunNotWrittenWarning
from fastvae.models import Bernoulli, Gaussian, build_model
from fastvae.training import TrainedVAE, load, train, weights
from fastvae.training.atomic import replacing, replacing_together
from fastvae.training.interrupts import uninterrupted
from fastvae.training.persistence import MODEL

PIXELS = np.random.default_rng(0).random((40, 1, 4, 4), dtype=np.float32)
SMALL = {
    "latent_dim": 3,
    "hidden_dims": (8,),
    "epochs": 2,
    "batch_size": 16,
    "progress": False,
    "device": "cpu",
}


def run(data=PIXELS, **changes):
    return train(data, **(SMALL | changes))


@pytest.fixture(scope="module")
def result():
    return run()


@pytest.fixture
def folder(result, tmp_path):
    return result.save(tmp_path / "run")


# What a result does


def test_pictures_with_channels_last_are_told_what_to_do():
    pictures = np.random.default_rng(0).random((60, 3, 4, 4), np.float32)
    vae = train(pictures, latent_dim=2, hidden_dims=(4,), epochs=1, device="cpu", progress=False)
    turned = pictures.transpose(0, 2, 3, 1)
    with pytest.raises(ValueError, match=r"put the channels first, x.transpose\(0, 3, 1, 2\), of a tensor"):
        vae.encode(turned)
    with pytest.raises(ValueError, match=r"x.transpose\(2, 0, 1\), of a tensor x.permute\(2, 0, 1\)"):
        vae.encode(turned[0])


def test_samples_depend_on_their_number_only(result):
    many = result.sample(150, seed=2)
    assert many.shape == (150, 1, 4, 4)
    assert torch.equal(many[:10], result.sample(10, seed=2))
    assert torch.equal(many[70:140], result.sample(70, seed=2, row_offset=70))
    assert not torch.equal(many, result.sample(150, seed=3))
    drawn = result.sample(150, seed=2, sampled=True)
    assert set(drawn.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(drawn[70:140], result.sample(70, seed=2, row_offset=70, sampled=True))


def test_samples_are_decoded_unit_noise(result):
    """Over many codes, what the decoder gets has the moments of the prior."""
    codes = []
    handle = result.model.decoder.register_forward_hook(lambda _module, args, _output: codes.append(args[0]))
    result.sample(6400)
    handle.remove()
    z = torch.cat(codes)
    assert float(z.mean().abs()) < 5 / z.numel() ** 0.5
    assert abs(float(z.var()) - 1) < 5 * (2 / z.numel()) ** 0.5


def test_encode_gives_means_and_draws_only_when_asked(result):
    x = torch.from_numpy(PIXELS)
    codes = result.encode(PIXELS)
    with torch.no_grad():
        mu, logvar = result.model.posterior(x)
    assert codes.shape == (40, 3)
    torch.testing.assert_close(codes, mu, rtol=0, atol=1e-6)
    assert torch.equal(codes, result.encode(PIXELS))
    drawn = result.encode(PIXELS, sample=True, seed=1)
    torch.testing.assert_close(result.posterior(PIXELS), (mu, logvar), rtol=0, atol=1e-6)
    spread = (drawn - mu) / (0.5 * logvar).exp()
    assert abs(float(spread.std()) - 1) < 5 / (2 * spread.numel()) ** 0.5
    assert not torch.equal(drawn, result.encode(PIXELS, sample=True, seed=2))
    assert torch.equal(drawn[0], result.encode(PIXELS[0], sample=True, seed=1))


def test_one_sample_is_as_good_as_many(result):
    codes, images = result.encode(PIXELS), result.reconstruct(PIXELS)
    assert images.shape == PIXELS.shape
    for one in (PIXELS[5], torch.from_numpy(PIXELS[5])):
        assert torch.equal(result.encode(one), codes[5])
        assert [tuple(part.shape) for part in result.posterior(one)] == [(3,), (3,)]
        assert torch.equal(result.reconstruct(one), images[5])
    assert torch.equal(result.decode(codes[5]), images[5])


def test_an_axis_of_one_is_a_matter_of_taste(result):
    assert torch.equal(result.encode(PIXELS[5, 0]), result.encode(PIXELS)[5])
    assert result.reconstruct(PIXELS[5, 0]).shape == (1, 4, 4)
    assert torch.equal(result.encode(PIXELS[:, 0]), result.encode(PIXELS))
    assert result.evaluate(PIXELS[:, 0]) == result.evaluate(PIXELS)


def test_pixels_are_scaled_as_in_training():
    data = (PIXELS * 255).astype(np.uint8)
    result = run(data)
    assert torch.equal(result.encode(data), result.encode(data.astype(np.float32) / 255))
    dark = np.minimum(data, 1)
    assert torch.equal(result.encode(dark), result.encode(dark.astype(np.float32) / 255))


def test_codes_may_be_any_numbers_in_any_layout(result):
    codes = np.random.default_rng(0).normal(size=(5, 3))
    expected = result.decode(torch.from_numpy(codes))
    for given in (codes[::-1], codes[::-1].tolist(), np.asfortranarray(codes[::-1])):
        assert torch.equal(result.decode(given), expected.flip(0))
    assert result.decode(codes[:0]).shape == (0, 1, 4, 4)
    assert result.traverse(None, 0, []).shape == (0, 1, 4, 4)
    assert torch.equal(result.traverse(None, 0, np.arange(3.0)[::-1]), result.traverse(None, 0, [2, 1, 0]))


def test_another_shape_raises(result):
    with pytest.raises(
        ValueError, match=r"takes samples of shape \(1, 4, 4\), .* has samples of shape \(5, 5\)"
    ):
        result.encode(np.zeros((3, 5, 5), dtype=np.float32))
    with pytest.raises(ValueError, match=r"values must be a row of numbers, got shape \(1, 2\)"):
        result.traverse(None, 0, [[1.0, 2.0]])
    with pytest.raises(ValueError, match="row_offset must not be negative, got -1"):
        result.sample(2, row_offset=-1)
    with pytest.raises(ValueError, match=r"codes must be of shape \(N, 3\) or \(3,\), got \(2, 4\)"):
        result.decode(torch.zeros(2, 4))


def test_interpolation_is_a_straight_line_between_the_means(result):
    a, b = PIXELS[0], PIXELS[1]
    line = result.interpolate(a, b, steps=5)
    assert line.shape == (5, 1, 4, 4)
    assert torch.equal(line[0], result.reconstruct(a))
    torch.testing.assert_close(line[4], result.reconstruct(b), rtol=0, atol=1e-6)
    middle = (result.encode(a) + result.encode(b)) / 2
    torch.testing.assert_close(line[2], result.decode(middle), rtol=0, atol=1e-6)
    assert result.interpolate(PIXELS[:7], PIXELS[7:14], steps=4).shape == (7, 4, 1, 4, 4)
    with pytest.raises(ValueError, match="a and b must hold as many samples each"):
        result.interpolate(PIXELS[:7], PIXELS[:6])
    with pytest.raises(ValueError, match="steps must be at least 2"):
        result.interpolate(a, b, steps=1)


def test_a_traversal_moves_one_code(result):
    line = result.traverse(None, 1, [-2.0, 0.0, 2.0])
    assert torch.equal(line[2], result.decode([0.0, 2.0, 0.0]))
    codes = result.encode(PIXELS[3])
    codes[2] = 1.5
    assert torch.equal(result.traverse(PIXELS[3], 2, [1.5])[0], result.decode(codes))
    assert result.traverse().shape == (9, 1, 4, 4)
    with pytest.raises(IndexError, match=r"dim must lie in \[0, 3\), got 3"):
        result.traverse(None, 3)
    with pytest.raises(ValueError, match="traverse starts from one sample, got 40"):
        result.traverse(PIXELS)


def test_results_are_float32_on_the_cpu_without_history(result):
    for tensor in (result.sample(2), result.encode(PIXELS), result.reconstruct(PIXELS), result.traverse()):
        assert tensor.dtype == torch.float32
        assert tensor.device.type == "cpu"
        assert not tensor.requires_grad


def test_a_test_set_that_comes_with_the_data_is_what_is_evaluated(result):
    data = open_data(PIXELS)
    data.test = open_data(PIXELS[:7])
    assert result.evaluate(data) == result.evaluate(PIXELS[:7])


def test_the_log_likelihood_of_each_sample(result):
    each = result.log_likelihood(PIXELS, num_samples=20, seed=3)
    assert each.shape == (40,)
    assert each.dtype is torch.float64
    assert result.evaluate(PIXELS, num_samples=20, seed=3)["log_likelihood"] == each.mean().item()
    one = result.log_likelihood(PIXELS[0], num_samples=20, seed=3)
    assert one.shape == ()
    torch.testing.assert_close(one, each[0], rtol=1e-6, atol=0)
    table = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    usual = run(table)
    table[7, 2] = 150.0
    assert usual.log_likelihood(table).argmin() == 7
    with pytest.raises(ValueError, match="needs values between 0 and 1"):
        result.log_likelihood(PIXELS * 255)
    with pytest.raises(ValueError, match="num_samples"):
        result.log_likelihood(PIXELS, num_samples=0)
    with pytest.raises(ValueError, match="a plain autoencoder gives data no probability"):
        run(variational=False).log_likelihood(PIXELS)


def test_codes_of_what_is_no_number_are_refused(result):
    bad = PIXELS.copy()
    bad[[3, 5], 0, 1, 2] = np.nan
    for method in (result.encode, result.posterior, result.reconstruct):
        with pytest.raises(ValueError, match=r"NaN or infinite.*3, 5|3 and 5"):
            method(bad)


def test_evaluate_refuses_data_the_likelihood_cannot_have(result):
    with pytest.raises(ValueError, match="the Bernoulli likelihood needs values between 0 and 1"):
        result.evaluate(PIXELS * 3)
    assert result.evaluate(PIXELS)["samples"] == 40


# To disk and back


@pytest.mark.parametrize("name", ["", "config.json", "model.safetensors"])
def test_a_run_comes_back_as_it_was(result, folder, name):
    back = load(folder / name, device="cpu")
    assert isinstance(back, TrainedVAE)
    assert back.config == result.config
    assert back.history == result.history
    assert not back.model.training
    assert torch.equal(back.sample(5), result.sample(5))
    assert torch.equal(back.encode(PIXELS), result.encode(PIXELS))
    assert back.evaluate(PIXELS) == result.evaluate(PIXELS)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "conv", "hidden_dims": (4,)},
        {"likelihood": "gaussian"},
        {"variance": "predicted"},
        {"variance": 0.25},
        {"variational": False},
        {"hidden_dims": None},
        {"binarize": "threshold"},
    ],
)
def test_every_kind_of_model_comes_back(changes, tmp_path):
    result = run(**changes, epochs=1)
    back = load(result.save(tmp_path / "run"), device="cpu")
    assert back.config == result.config
    assert torch.equal(back.sample(5, sampled=True), result.sample(5, sampled=True))
    assert back.evaluate(PIXELS) == result.evaluate(PIXELS)


def own_encoder():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 6))


def test_modules_of_ones_own_are_passed_to_load(tmp_path):
    result = run(encoder=own_encoder())
    folder = result.save(tmp_path / "run")
    with pytest.raises(ValueError, match=r"trained with an encoder of your own.*pass encoder="):
        load(folder)
    back = load(folder, device="cpu", encoder=own_encoder())
    assert torch.equal(back.encode(PIXELS), result.encode(PIXELS))
    with pytest.raises(ValueError, match="has the built-in decoder: leave decoder= out"):
        load(folder, encoder=own_encoder(), decoder=nn.Linear(3, 16))
    with pytest.raises(FileFormatError, match="the weights do not fit the modules you passed"):
        load(folder, encoder=nn.Sequential(nn.Flatten(), nn.Linear(16, 6), nn.Linear(6, 6)))


def test_a_likelihood_of_fastvae_that_was_passed_may_be_passed_again(tmp_path):
    given = Gaussian("predicted")
    result = run(likelihood=given)
    folder = result.save(tmp_path / "run")
    again = Gaussian("predicted")
    back = load(folder, device="cpu", likelihood=again)
    assert back.model.likelihood is again
    assert torch.equal(back.sample(3), result.sample(3))
    for other in (Gaussian(), Bernoulli()):
        with pytest.raises(
            ValueError, match=r"trained with the gaussian likelihood of variance 'predicted', not"
        ):
            load(folder, likelihood=other)
    learned = run(likelihood=Gaussian()).save(tmp_path / "learned")
    mine = Gaussian()
    load(learned, device="cpu", likelihood=mine)
    assert mine.log_variance != 0


def test_weights_shared_by_two_modules_come_back(tmp_path):
    def shared():
        encoder, decoder = nn.Linear(5, 6), nn.Sequential(nn.Linear(3, 6), nn.Linear(6, 5))
        middle = nn.Linear(6, 6)
        return nn.Sequential(encoder, middle), nn.Sequential(decoder[0], middle, decoder[1])

    data = np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)
    encoder, decoder = shared()
    result = run(data, encoder=encoder, decoder=decoder, hidden_dims=None)
    folder = result.save(tmp_path / "run")
    encoder, decoder = shared()
    back = load(folder, device="cpu", encoder=encoder, decoder=decoder)
    assert torch.equal(back.reconstruct(data), result.reconstruct(data))


class Keeps(nn.Module):
    """An encoder with a state of any kind."""

    def __init__(self, buffers=(), extra=None):
        super().__init__()
        self.inner = own_encoder()
        for name, buffer in dict(buffers).items():
            self.register_buffer(name, buffer)
        if extra is not None:
            self.extra = extra

    def forward(self, x):
        return self.inner(x)


class KeepsExtra(Keeps):
    def get_extra_state(self):
        return self.extra

    def set_extra_state(self, state):
        self.extra = state


COMPLEX = torch.complex(torch.arange(3.0), torch.arange(1.0, 4.0))


def views():
    whole = torch.arange(12.0).reshape(3, 4)
    return {
        "expanded": torch.tensor([2.0]).expand(5),
        "upper": whole[:2],
        "lower": whole[2:],
        "turned": whole.t(),
        "overlapping": whole[1:],
        "complex": COMPLEX,
        "conjugate": COMPLEX.conj(),
        "imaginary": COMPLEX.imag,
        "negated": COMPLEX.conj().imag,
        "empty": torch.zeros(0),
        "none": torch.zeros(0),
    }


def test_views_of_one_memory_come_back(tmp_path):
    result = run(encoder=Keeps(views()), output_dir=tmp_path / "run")
    blank = {name: torch.zeros_like(buffer) for name, buffer in views().items()}
    blank["expanded"] = torch.zeros(1).expand(5)
    blank["conjugate"] = torch.zeros(3, dtype=torch.complex64).conj()
    back = load(tmp_path / "run", device="cpu", encoder=Keeps(blank))
    for name, buffer in views().items():
        assert torch.equal(getattr(back.model.encoder, name), buffer), name
    assert torch.equal(back.encode(PIXELS), result.encode(PIXELS))


def test_an_expanded_tensor_comes_back_wherever_it_is(tmp_path):
    def module(value):
        expanded = torch.full((1,), value).expand(5)
        encoder = Keeps({"one": expanded, "other": expanded})
        encoder.scale = nn.Parameter(torch.full((1,), value).expand(3), requires_grad=False)
        encoder.register_buffer("constant", torch.ones(1).expand(9), persistent=False)
        return encoder

    run(encoder=module(2.0), output_dir=tmp_path / "run")
    back = load(tmp_path / "run", device="cpu", encoder=module(0.0)).model.encoder
    assert back.one.tolist() == back.other.tolist() == [2.0] * 5
    assert back.scale.tolist() == [2.0] * 3
    assert back.one is back.other
    assert back.constant.stride() == (0,), "what no file holds is left as it was"


def test_the_layout_of_a_tensor_is_left_as_it_was(tmp_path):
    """It decides how a product rounds."""

    def module():
        encoder = Keeps({"turned": torch.arange(12.0).reshape(3, 4).t()})
        encoder.inner[1] = nn.utils.parametrizations.orthogonal(encoder.inner[1])
        return encoder

    result = run(encoder=module(), output_dir=tmp_path / "run")
    back = load(tmp_path / "run", device="cpu", encoder=module())
    for name, tensor in back.model.state_dict().items():
        assert tensor.stride() == result.model.state_dict()[name].stride(), name
    assert torch.equal(back.encode(PIXELS), result.encode(PIXELS))


def test_modules_of_inference_mode_are_loaded(tmp_path):
    result = run(encoder=own_encoder(), output_dir=tmp_path / "run")
    with torch.inference_mode():
        back = load(tmp_path / "run", device="cpu", encoder=own_encoder())
    assert torch.equal(back.encode(PIXELS), result.encode(PIXELS))


def as_of_old(folder, removed):
    """Rewrite a run as it was before files had marks, and views of other tensors were left out of them."""
    path = folder / "model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys() if name not in removed}  # noqa: SIM118
        kept = {key: file.metadata()[key] for key in ("format", "format_version", "model")}
    save_file(tensors, path, metadata=kept | removed)
    config = json.loads((folder / "config.json").read_text())
    del config["run"]
    (folder / "config.json").write_text(json.dumps(config))


def test_a_run_of_an_earlier_version_is_loaded(tmp_path):
    def module(values):
        return Keeps({"whole": values, "part": values[:2]})

    result = run(encoder=module(torch.arange(5.0)), output_dir=tmp_path / "run")
    as_of_old(tmp_path / "run", {"encoder.part": "encoder.whole"})
    back = load(tmp_path / "run", device="cpu", encoder=module(torch.zeros(5)))
    assert back.model.encoder.part.tolist() == [0.0, 1.0]
    assert torch.equal(back.encode(PIXELS), result.encode(PIXELS))
    apart = Keeps({"whole": torch.zeros(5), "part": torch.zeros(2)})
    with pytest.raises(FileFormatError, match=r"missing: encoder\.part"):
        load(tmp_path / "run", device="cpu", encoder=apart)
    (tmp_path / "run" / "latent.png").write_bytes(b"")
    back.save(tmp_path / "run")
    assert (tmp_path / "run" / "latent.png").exists(), "a picture of this run"


def test_parameters_that_are_slices_of_one_tensor_come_back(tmp_path):
    def sliced():
        encoder = own_encoder()
        whole = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))
        encoder.append(nn.LayerNorm(6))
        encoder[2].weight, encoder[2].bias = nn.Parameter(whole[0]), nn.Parameter(whole[1])
        return encoder

    result = run(encoder=sliced(), output_dir=tmp_path / "run")
    back = load(tmp_path / "run", device="cpu", encoder=sliced())
    assert torch.equal(back.encode(PIXELS), result.encode(PIXELS))


def test_extra_state_that_is_a_tensor_comes_back(tmp_path):
    run(encoder=KeepsExtra(extra=torch.tensor([3.0])), output_dir=tmp_path / "run")
    back = load(tmp_path / "run", encoder=KeepsExtra(extra=torch.tensor([0.0])))
    assert back.model.encoder.extra.tolist() == [3.0]


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (lambda: KeepsExtra(extra={"a": 1}), r"keeps a dict as encoder\._extra_state"),
        (lambda: Keeps({"eye": torch.eye(3).to_sparse()}), r"keeps a sparse tensor as encoder\.eye"),
        (
            lambda: Keeps({"big": torch.zeros(2, dtype=torch.complex128)}),
            r"encoder\.big is of torch\.complex128",
        ),
    ],
)
def test_a_state_that_no_file_can_hold_raises_before_any_work(encoder, message, tmp_path):
    with pytest.raises(TypeError, match=message):
        run(encoder=encoder(), output_dir=tmp_path / "run")
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError, match=message):
        run(encoder=encoder()).save(tmp_path / "run")


def test_loading_leaves_the_random_state_alone(folder):
    before = torch.get_rng_state()
    load(folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_files_are_what_they_say(folder, result):
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "model.safetensors",
    ]
    config = json.loads((folder / "config.json").read_text())
    assert config["format"] == "fastvae"
    assert config["training"]["batch_size"] == 16
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert set(file.keys()) == set(result.model.state_dict())


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "model.safetensors"])
@pytest.mark.parametrize("keep", [0, 0.3, 0.9])
def test_a_truncated_file_is_named(folder, name, keep):
    path = folder / name
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    if name == "metrics.jsonl" and not keep:
        assert load(folder).history == []
        return
    with pytest.raises(FileFormatError, match=name):
        load(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize(
    "content", [b"PK\x03\x04 zip", b"[1, 2]", b'{"a": 1}', b"\x80\x04pickle", b"\xff" * 9]
)
def test_a_foreign_file_is_named(folder, name, content):
    (folder / name).write_bytes(content)
    with pytest.raises(FileFormatError, match=name):
        load(folder)


@pytest.mark.parametrize(
    "line", ["{}", '{"epoch": 1}', "[" * 10**5, '{"epoch": "one", "elbo": 1, "recon": 1, "kl": 1}']
)
def test_metrics_that_are_none_are_refused(folder, line):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(FileFormatError, match=r"metrics\.jsonl is damaged"):
        load(folder)


def test_what_json_cannot_hold_is_written_as_null(tmp_path, result):
    history = [result.history[0] | {"val_elbo": float("-inf"), "val_recon": float("nan")}]
    folder = TrainedVAE(result.model, result.config, history).save(tmp_path / "run")
    assert load(folder).history == [history[0] | {"val_elbo": None, "val_recon": None}]


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "model.safetensors"])
def test_a_folder_in_place_of_a_file_is_named(folder, name):
    (folder / name).unlink()
    (folder / name).mkdir()
    with pytest.raises(FileFormatError, match=name):
        load(folder)


def test_a_missing_file_is_named(folder, tmp_path):
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"has no model\.safetensors"):
        load(folder)
    with pytest.raises(FileFormatError, match=r"is no fastvae run: it has no config\.json"):
        load(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such run folder"):
        load(tmp_path / "nowhere")


def test_weights_of_someone_else_are_refused(folder):
    save_file({"weight": torch.zeros(3)}, folder / "model.safetensors")
    with pytest.raises(FileFormatError, match=r"model\.safetensors was not written by fastvae"):
        load(folder)


def test_files_of_two_runs_are_refused(folder, tmp_path):
    other = run(latent_dim=4, epochs=1).save(tmp_path / "other")
    os.replace(other / "model.safetensors", folder / "model.safetensors")  # noqa: PTH105
    with pytest.raises(FileFormatError, match="they come from two runs"):
        load(folder)


def test_files_of_two_trainings_of_one_model_are_refused(folder, tmp_path):
    other = run(learning_rate=0.1, epochs=1).save(tmp_path / "other")
    os.replace(other / "model.safetensors", folder / "model.safetensors")  # noqa: PTH105
    with pytest.raises(FileFormatError, match=r"were not written together: they come from two runs"):
        load(folder)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        (None, "format_version", 99),
        (None, "model", None),
        (None, "training", 3),
        ("model", "preset", "resnet"),
        ("model", "latent_dim", "many"),
        ("model", "surprise", 1),
        ("training", "batch_size", 0),
    ],
)
def test_an_edited_config_is_refused(folder, section, key, value):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    (config if section is None else config[section])[key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(FileFormatError, match=r"config\.json"):
        load(folder)


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    path.write_text("old")

    def fail():
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fail()
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_while_writing_names_the_file(tmp_path):
    path = tmp_path / "a.npy"
    with pytest.raises(OSError, match="No space left") as caught, replacing(path):
        full_disk()
    assert caught.value.filename == str(path)


def write_together(paths, word):
    with replacing_together(*paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text(word)


def test_files_take_their_places_together(tmp_path, monkeypatch):
    paths = [tmp_path / "a", tmp_path / "b"]
    write_together(paths, "old")
    calls = []
    monkeypatch.setattr(os, "fsync", lambda _: calls.append(1) or (full_disk() if len(calls) == 2 else None))
    with pytest.raises(OSError, match="No space left") as caught:
        write_together(paths, "new")
    assert caught.value.filename == str(paths[1])
    assert [path.read_text() for path in paths] == ["old", "old"]
    write_together(paths, "new")
    assert [path.read_text() for path in paths] == ["new", "new"]
    assert sorted(tmp_path.iterdir()) == paths


@pytest.mark.parametrize("was_there", [True, False])
def test_a_rename_that_fails_puts_back_what_the_others_replaced(was_there, tmp_path, monkeypatch):
    """As of a file that another process has open on Windows."""
    paths = [tmp_path / "a", tmp_path / "b"]
    if was_there:
        write_together(paths, "old")
    replace = Path.replace

    def refuse(self, target):
        if target == paths[1]:
            raise PermissionError(13, "Access is denied", str(self))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError) as caught:
        write_together(paths, "new")
    assert caught.value.filename == str(paths[1])
    assert sorted(tmp_path.iterdir()) == (paths if was_there else [])
    assert [path.read_text() for path in paths if was_there] == ["old", "old"][: 2 * was_there]


def test_no_file_can_take_the_place_of_a_folder(tmp_path):
    for path, error in [(tmp_path, IsADirectoryError), (tmp_path / "none" / "a.npy", FileNotFoundError)]:
        with pytest.raises(error) as caught, replacing(path):
            pytest.fail("before the block")
        assert caught.value.filename == str(path)


# Run folders


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_files_of_a_run_have_the_mode_of_the_umask(umask, tmp_path):
    before = os.umask(umask)
    try:
        run(output_dir=tmp_path / "run", epochs=1)
    finally:
        os.umask(before)
    paths = list((tmp_path / "run").iterdir())
    assert len(paths) > 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in paths} == {0o666 & ~umask}
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o777 & ~umask


def test_a_run_folder_holds_the_run_and_its_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    result = run(output_dir=tmp_path / "a" / "run")
    names = {path.name for path in (tmp_path / "a" / "run").iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "model.safetensors", "samples.png", "curves.png"}
    assert torch.equal(load(tmp_path / "a" / "run").sample(3), result.sample(3))


def test_an_interrupted_run_is_written(tmp_path):
    class Impatient(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = own_encoder()
            self.calls = 0

        def forward(self, x):
            self.calls += torch.is_grad_enabled()
            if self.calls == 8:
                self.calls = 0
                raise KeyboardInterrupt
            return self.inner(x)

    result = run(encoder=Impatient(), output_dir=tmp_path / "run", epochs=100)
    assert result.interrupted
    back = load(tmp_path / "run", encoder=Impatient())
    assert back.interrupted
    assert back.history == result.history
    assert [record["epoch"] for record in back.history] == [1, 2, 3]


def test_the_run_is_written_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr("fastvae.training.run_folder.FEWEST_SECONDS", 0.0)
    written = []
    monkeypatch.setattr(TrainedVAE, "save", lambda self, _path: written.append(len(self.history)))
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    monkeypatch.setattr("fastvae.training.run_folder.WRITING_SHARE", float("inf"))
    run(output_dir=tmp_path / "run", epochs=3)
    assert written == [1, 2, 3, 3]


def full_disk(*_, **__):
    raise OSError(28, "No space left on device")


def test_a_full_disk_at_the_end_keeps_the_result_in_the_error(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RunNotWrittenError, match=r"No space left.*config\.json") as caught:
        run(output_dir=tmp_path / "run")
    monkeypatch.undo()
    assert "error.result.save(another_folder)" in caught.value.__notes__[0]
    assert len(load(caught.value.result.save(tmp_path / "other")).history) == 2
    assert not list((tmp_path / "run").iterdir()), "no half file"


def test_the_same_model_is_written_as_the_same_bytes(tmp_path, result):
    files = [result.save(tmp_path / str(number)) / MODEL for number in range(8)]
    assert len({file.read_bytes() for file in files}) == 1
    with safe_open(files[0], framework="pt") as file:
        assert file.metadata()["format"] == "fastvae"


def test_names_of_any_letters_are_written(tmp_path):
    encoder = nn.Sequential()
    encoder.add_module("größe\N{GREEK SMALL LETTER MU}\u2028", own_encoder())
    result = run(encoder=encoder, output_dir=tmp_path / "run")
    again = nn.Sequential()
    again.add_module("größe\N{GREEK SMALL LETTER MU}\u2028", own_encoder())
    assert torch.equal(load(tmp_path / "run", encoder=again).sample(3), result.sample(3))


def test_weights_that_safetensors_cannot_write_are_an_oserror(tmp_path, result, monkeypatch):
    def fail(*_, **__):
        raise SafetensorError("IoError: No space left on device")

    monkeypatch.setattr("fastvae.training.weights.save_file", fail)
    with pytest.raises(OSError, match=r"IoError: No space left.*/run/"):
        result.save(tmp_path / "run")


def test_a_full_disk_on_the_way_does_not_end_the_training(tmp_path, monkeypatch):
    monkeypatch.setattr("fastvae.training.run_folder.FEWEST_SECONDS", 0.0)
    monkeypatch.setattr("fastvae.training.run_folder.WRITING_SHARE", float("inf"))
    saves = []
    save = TrainedVAE.save

    def saved(self, path):
        saves.append(path)
        return full_disk() if len(saves) == 1 else save(self, path)

    monkeypatch.setattr(TrainedVAE, "save", saved)
    with pytest.warns(RunNotWrittenWarning, match=r"could not be written .*No space left.*training goes on"):
        run(output_dir=tmp_path / "run", epochs=3)
    assert len(load(tmp_path / "run").history) == 3


def interrupting(monkeypatch, *, times, calls):
    """Have Ctrl-C pressed while the weights of a run are written, in some of the writes."""
    write = weights.save_file
    done = []

    def pressed(tensors, path, **options):
        done.extend([1] if MODEL in path.name else [])
        if MODEL in path.name and len(done) in calls:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
        return write(tensors, path, **options)

    monkeypatch.setattr(weights, "save_file", pressed)


@pytest.fixture
def listening(monkeypatch):
    """A process that Ctrl-C interrupts, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    after = signal.signal(signal.SIGINT, before)
    assert after is signal.default_int_handler


def test_an_interrupted_last_write_is_whole(tmp_path, monkeypatch, listening):
    interrupting(monkeypatch, times=1, calls={1})
    result = run(output_dir=tmp_path / "run")
    assert not result.interrupted
    assert load(tmp_path / "run").history == result.history


def test_ctrl_c_twice_in_the_last_write_keeps_the_result_in_the_error(tmp_path, monkeypatch, listening):
    first = run(output_dir=tmp_path / "run", epochs=1)
    interrupting(monkeypatch, times=2, calls={1})
    with pytest.raises(
        RunNotWrittenError, match=r"could not be written to .* \(KeyboardInterrupt\)"
    ) as caught:
        run(output_dir=tmp_path / "run")
    assert len(caught.value.result.history) == 2
    assert load(tmp_path / "run").history == first.history


def test_an_interrupted_write_on_the_way_is_whole_and_ends_the_training(tmp_path, monkeypatch, listening):
    monkeypatch.setattr("fastvae.training.run_folder.FEWEST_SECONDS", 0.0)
    monkeypatch.setattr("fastvae.training.run_folder.WRITING_SHARE", float("inf"))
    interrupting(monkeypatch, times=1, calls={2})
    result = run(output_dir=tmp_path / "run", epochs=50)
    assert result.interrupted
    assert len(load(tmp_path / "run").history) == len(result.history) == 2


def test_saving_is_whole_before_it_is_interrupted(tmp_path, monkeypatch, listening, result):
    interrupting(monkeypatch, times=1, calls={1})
    with pytest.raises(KeyboardInterrupt):
        result.save(tmp_path / "run")
    assert load(tmp_path / "run").history == result.history


def test_ctrl_c_does_not_hide_why_a_write_failed(tmp_path, monkeypatch, listening):
    def fail(_tensors, path, **_options):
        if MODEL in path.name:
            signal.raise_signal(signal.SIGINT)
        full_disk()

    monkeypatch.setattr(weights, "save_file", fail)
    with pytest.raises(RunNotWrittenError, match="No space left"):
        run(output_dir=tmp_path / "run")


def test_sigterm_waits_for_a_write_where_a_function_handles_it(tmp_path, monkeypatch, result):
    """Also where Ctrl-C is ignored, as in the background of a shell."""

    class TerminatedError(BaseException):
        pass

    def end(*_):
        raise TerminatedError

    write = weights.save_file

    def terminated(tensors, path, **options):
        signal.raise_signal(signal.SIGTERM)
        write(tensors, path, **options)

    monkeypatch.setattr(weights, "save_file", terminated)
    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, end),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
    }
    try:
        with pytest.raises(TerminatedError):
            result.save(tmp_path / "run")
        assert signal.getsignal(signal.SIGTERM) is end
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert load(tmp_path / "run").history == result.history


def test_a_handler_of_ones_own_is_called_once_at_the_end(listening):
    calls = []
    signal.signal(signal.SIGINT, lambda number, frame: calls.append((number, frame is not None)))
    try:
        with uninterrupted():
            with uninterrupted():
                signal.raise_signal(signal.SIGINT)
            assert not calls
        assert calls == [(signal.SIGINT, True)]
        with uninterrupted():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            assert len(calls) == 2
        assert len(calls) == 2
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_model_replaced_while_it_is_read_is_refused(folder, tmp_path, monkeypatch):
    other = run(learning_rate=0.1).save(tmp_path / "other")

    def slowly(spec, **parts):
        os.replace(other / "model.safetensors", folder / "model.safetensors")  # noqa: PTH105
        return build_model(spec, **parts)

    monkeypatch.setattr("fastvae.training.persistence.build_model", slowly)
    with pytest.raises(FileFormatError, match="was replaced while the run was read"):
        load(folder)


def test_a_state_that_cannot_be_given_at_the_end_keeps_the_result_in_the_error(tmp_path):
    class Broken(KeepsExtra):
        def get_extra_state(self):
            return torch.zeros(1) if self.training else {"a": 1}

    with (
        pytest.warns(
            RunNotWrittenWarning, match=r"keeps a dict as encoder\._extra_state.*; training goes on"
        ),
        pytest.raises(RunNotWrittenError, match=r"keeps a dict as encoder\._extra_state") as caught,
    ):
        run(encoder=Broken(), output_dir=tmp_path / "run")
    assert len(caught.value.result.history) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, full_disk, ZeroDivisionError])
def test_the_run_is_there_whatever_happens_to_its_pictures(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error() from None

    monkeypatch.setattr("fastvae.plots.write_pictures", fail)
    told = (
        nullcontext() if error is KeyboardInterrupt else pytest.warns(RunNotWrittenWarning, match="pictures")
    )
    with told:
        result = run(output_dir=tmp_path / "run")
    assert load(tmp_path / "run").history == result.history


def test_without_matplotlib_the_run_is_written_and_said_to_lack_pictures(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    run(output_dir=tmp_path / "run", progress=True)
    assert 'pip install "fastvae[plots]"' in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("*.png"))


def test_a_folder_of_other_things_is_left_alone(tmp_path, result):
    (tmp_path / "thesis.tex").write_text("important")
    for attempt in (lambda: run(output_dir=tmp_path), lambda: result.save(tmp_path)):
        with pytest.raises(
            ValueError, match="is not empty and holds no fastvae run; choose a new or an empty"
        ):
            attempt()
    with pytest.raises(ValueError, match="is a file; a run is written to a folder"):
        run(output_dir=tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_that_cannot_be_used_raises_before_any_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("important")
    closed = tmp_path / "closed"
    closed.mkdir()
    may_write = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: path != closed and may_write(path, mode))
    for path, error, message in [
        (tmp_path / "file" / "run", ValueError, "file is a file"),
        (closed, PermissionError, "nothing can be written to this folder: '.*closed'"),
        (closed / "runs" / "run", PermissionError, "nothing can be written to this folder: '.*closed'"),
    ]:
        with pytest.raises(error, match=message):
            train("nowhere.npy", output_dir=path)


def without_parameters():
    return nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Upsample(scale_factor=2), nn.Flatten())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.npy"}, "nowhere"),
        ({"data": np.full((20, 3), np.nan)}, "NaN"),
        ({"model": "resnet"}, "resnet"),
        ({"encoder": nn.Linear(3, 3)}, "the encoder failed"),
        (
            {
                "encoder": nn.Flatten(),
                "latent_dim": 8,
                "decoder": without_parameters(),
                "hidden_dims": None,
            },
            "there is nothing to train",
        ),
    ],
)
def test_a_run_that_does_not_begin_makes_no_folder(changes, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run(**changes, output_dir=tmp_path / "runs" / "run")
    assert not list(tmp_path.iterdir())


def test_the_home_folder_has_its_short_name(tmp_path, monkeypatch, result):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert result.save("~/run") == tmp_path / "run"
    assert load("~/run").config == result.config


def test_an_earlier_run_is_replaced(tmp_path):
    run(latent_dim=2, epochs=1).save(tmp_path)
    second = run(latent_dim=4, epochs=1)
    second.save(tmp_path)
    assert load(tmp_path).config == second.config


def test_pictures_of_an_earlier_run_do_not_stay(tmp_path):
    pytest.importorskip("matplotlib")
    run(latent_dim=2, epochs=1).save(tmp_path / "run")
    (tmp_path / "run" / "latent.png").write_bytes(b"")
    (tmp_path / "run" / "mine.png").write_bytes(b"")
    run(latent_dim=4, epochs=1, output_dir=tmp_path / "run")
    names = {path.name for path in (tmp_path / "run").glob("*.png")}
    assert "latent.png" not in names
    assert {"mine.png", "samples.png"} < names


def test_pictures_of_another_run_do_not_stay_where_none_are_drawn(tmp_path, result):
    result.save(tmp_path / "run")
    for name in ("latent.png", "samples.png", "mine.png"):
        (tmp_path / "run" / name).write_bytes(b"")
    result.save(tmp_path / "run")
    assert len(list((tmp_path / "run").glob("*.png"))) == 3, "they are of this run"
    (tmp_path / "run" / "traversal.png").mkdir()  # as good as one that cannot be removed
    run(latent_dim=4, epochs=1).save(tmp_path / "run")
    assert sorted(path.name for path in (tmp_path / "run").glob("*.png")) == ["mine.png", "traversal.png"]
