"""A training that was cut and resumed ends where one that was never cut does, and nothing else is resumed."""

import json
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastvae.data import open_data
from fastvae.errors import FileFormatError, NonFiniteWarning, RunNotWrittenWarning
from fastvae.models import Gaussian
from fastvae.training import load, native_adam, resumption, train
from fastvae.training.progress import Progress
from fastvae.training.resumption import STATE, fingerprint
from test_device_training import PIXELS, TABLE, TIMED, assert_same_run, recorders

__all__ = ["recorders"]  # a fixture

SMALL = {
    "latent_dim": 3,
    "hidden_dims": (8,),
    "epochs": 4,
    "batch_size": 16,
    "progress": False,
    "device": "cpu",
}


def run(data=PIXELS, **changes):
    return train(data, **(SMALL | changes))


def steps_of_an_epoch(result):
    config = result.config
    return -(-config.data.samples // config.training.batch_size)


class CutError(Exception):
    """What ends a training that nothing is to be written of any more."""


@pytest.fixture
def cut(monkeypatch):
    """A function that runs something and ends its training after so many steps, by Ctrl-C or by an error."""

    def cutting(steps, what, error=KeyboardInterrupt):
        taken = []

        def advance(*_):
            taken.append(1)
            if len(taken) == steps:
                raise error

        with monkeypatch.context() as during:
            during.setattr(Progress, "advance", advance)
            if error is KeyboardInterrupt:
                result = what()
                assert result.interrupted
                return result
            with pytest.raises(error):
                what()
        return None

    return cutting


@pytest.fixture(autouse=True)
def _copies(monkeypatch):
    """Copy the state after each epoch, however short."""
    monkeypatch.setattr("fastvae.training.run_folder.FEWEST_SECONDS_KEPT", 0.0)
    monkeypatch.setattr("fastvae.training.run_folder.WRITING_SHARE", float("inf"))
    # Pictures are no part of this.
    monkeypatch.setattr("fastvae.training.run_folder._draw", lambda *_: None)


@pytest.fixture
def written_after_each_epoch(monkeypatch):
    monkeypatch.setattr("fastvae.training.run_folder.FEWEST_SECONDS", 0.0)


def assert_same_bits(one, other):
    """The same weights, and the same history but for the time it took."""
    assert len(one.history) == len(other.history)
    for record, expected in zip(one.history, other.history, strict=True):
        for key in record.keys() - TIMED:
            assert record[key] == expected[key], (record["epoch"], key)
    state, expected = one.model.state_dict(), other.model.state_dict()
    assert state.keys() == expected.keys()
    for name, value in state.items():
        assert torch.equal(value, expected[name]), name


class Net(nn.Module):
    """An encoder that draws numbers of torch's and keeps running statistics."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 6)
        )

    def forward(self, x):
        return self.layers(x)


def net():
    torch.manual_seed(0)
    return Net()


class Jittered(Dataset):
    """A data set with an augmentation."""

    def __len__(self):
        return 60

    def __getitem__(self, index):
        return (torch.from_numpy(PIXELS[index]) + 0.1 * torch.rand(1)).clamp(0, 1)


def loader():
    return DataLoader(TensorDataset(torch.from_numpy(PIXELS)), batch_size=16, shuffle=True)


KINDS = {
    "usual": dict,
    "drawn pixels": lambda: {"binarize": "dynamic"},
    "warmup and free bits": lambda: {"warmup": 0.75, "free_bits": 0.1, "beta": 2.0},
    "learned variance": lambda: {"data": TABLE},
    "predicted variance": lambda: {"data": TABLE, "variance": "predicted"},
    "plain autoencoder": lambda: {"variational": False},
    "weight decay": lambda: {"weight_decay": 0.1},
    "convolutions": lambda: {"model": "conv", "hidden_dims": (3, 4)},
    "modules of one's own": lambda: {"encoder": net(), "hidden_dims": None},
    "a likelihood of one's own": lambda: {"data": TABLE, "likelihood": Gaussian("learned")},
    "an augmented data set": lambda: {"data": Jittered()},
    "workers": lambda: {"data": Jittered(), "workers": 2},
    "a loader": lambda: {"data": loader(), "validation": None},
    "without validation": lambda: {"validation": None},
    "bfloat16": lambda: {"precision": "bfloat16"},
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_run_that_was_cut_ends_as_one_that_was_not(kind, cut, tmp_path):
    whole = run(**kind())
    in_the_third = 2 * steps_of_an_epoch(whole) + 1
    interrupted = cut(in_the_third, lambda: run(**kind(), output_dir=tmp_path / "run"))
    assert [record["epoch"] for record in interrupted.history] == [1, 2, 3]
    resumed = run(**kind(), output_dir=tmp_path / "run", resume=True)
    assert not resumed.interrupted
    assert_same_bits(resumed, whole)
    if not resumed.config.model.custom:
        assert_same_bits(load(tmp_path / "run", device="cpu"), whole)


@pytest.mark.parametrize("epochs", [0, 1, 2, 3])
@pytest.mark.parametrize("more", [1, 3])
def test_it_may_be_cut_anywhere_and_more_than_once(epochs, more, cut, tmp_path):
    whole = run()
    of_an_epoch = steps_of_an_epoch(whole)
    first = cut(epochs * of_an_epoch + more, lambda: run(output_dir=tmp_path / "run"))
    assert len(first.history) == epochs + 1
    again = cut(1, lambda: run(output_dir=tmp_path / "run", resume=True))
    assert len(again.history) == epochs + 1
    assert_same_bits(run(output_dir=tmp_path / "run", resume=True), whole)


def test_what_ends_the_process_costs_what_was_not_written(written_after_each_epoch, cut, tmp_path):
    whole = run()
    cut(2 * steps_of_an_epoch(whole) + 2, lambda: run(output_dir=tmp_path / "run"), error=CutError)
    assert len(load(tmp_path / "run").history) == 2
    resumed = []

    def record(self, images, *, done=0):
        resumed.append(done / images)

    with pytest.MonkeyPatch.context() as during:
        during.setattr(Progress, "start", record)
        assert_same_bits(run(output_dir=tmp_path / "run", resume=True), whole)
    assert resumed == [2 / 4]


def test_twice_two_epochs_are_four(tmp_path):
    run(output_dir=tmp_path / "run", epochs=2)
    assert_same_bits(run(output_dir=tmp_path / "run", epochs=4, resume=True), run(epochs=4))


def test_a_run_that_has_all_its_epochs_stays_as_it_is(tmp_path):
    whole = run(output_dir=tmp_path / "run")
    again = run(output_dir=tmp_path / "run", resume=True)
    assert again.history == whole.history
    assert_same_bits(again, whole)
    assert_same_bits(load(tmp_path / "run", device="cpu"), whole)


@pytest.mark.parametrize("make", [False, True])
def test_without_a_run_there_one_begins(make, tmp_path, capsys):
    if make:
        (tmp_path / "run").mkdir()
    result = run(output_dir=tmp_path / "run", resume=True, progress=True)
    assert "no run to resume yet: a new one" in capsys.readouterr().err
    assert_same_bits(result, run())
    run(output_dir=tmp_path / "run", resume=True, progress=True, epochs=5)
    assert "resumed after epoch 4" in capsys.readouterr().err


def test_ctrl_c_says_where_resume_goes_on(cut, tmp_path, capsys):
    for resume, taken, epoch in ((False, 2, 0), (True, 7, 1), (True, 2, 1)):
        cut(taken, lambda now=resume: run(output_dir=tmp_path / "run", resume=now, progress=True))
        assert f"resume goes on with it after epoch {epoch}\n" in capsys.readouterr().err


def test_without_resume_a_run_begins_anew(cut, tmp_path):
    cut(7, lambda: run(output_dir=tmp_path / "run"))
    assert_same_bits(run(output_dir=tmp_path / "run"), run())


def test_the_torch_kernels_of_adam_are_resumed_too(cut, tmp_path, monkeypatch):
    monkeypatch.setattr(native_adam, "takes", lambda _: False)
    whole = run(data=TABLE)
    cut(2 * steps_of_an_epoch(whole) + 1, lambda: run(data=TABLE, output_dir=tmp_path / "run"))
    assert_same_bits(run(data=TABLE, output_dir=tmp_path / "run", resume=True), whole)


@pytest.mark.parametrize("first", ["ours", "torch's"])
def test_other_kernels_of_adam_go_on_to_rounding(first, cut, tmp_path, monkeypatch):
    """As where a run moves to another device."""
    takes = native_adam.takes
    monkeypatch.setattr(native_adam, "takes", lambda own: first == "ours" and takes(own))
    whole = run()
    cut(2 * steps_of_an_epoch(whole) + 1, lambda: run(output_dir=tmp_path / "run"))
    monkeypatch.setattr(native_adam, "takes", lambda own: first != "ours" and takes(own))
    assert_same_run(run(output_dir=tmp_path / "run", resume=True), whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_streamed_data_is_resumed_with_its_augmentation(workers, cut, tmp_path, monkeypatch):
    monkeypatch.setattr("fastvae.data.datasets.RESIDENT_BYTES", 0)
    assert fingerprint(open_data(Jittered())) is None
    whole = run(data=Jittered())
    cut(2 * steps_of_an_epoch(whole) + 1, lambda: run(data=Jittered(), output_dir=tmp_path / "run"))
    resumed = run(data=Jittered(), output_dir=tmp_path / "run", resume=True, workers=workers)
    assert_same_bits(resumed, whole)


def test_captured_steps_are_resumed_to_rounding(recorders, cut, tmp_path):
    changes = {"compile": "graph", "warmup": 0.9, "binarize": "dynamic", "batch_size": 5}
    whole = run(**changes)
    cut(9, lambda: run(**changes, output_dir=tmp_path / "run"))
    resumed = run(**changes, output_dir=tmp_path / "run", resume=True)
    assert recorders[-1].captures
    assert_same_run(resumed, whole)
    assert_same_run(resumed, run(**(changes | {"compile": False})))


def test_what_was_said_is_not_said_again(cut, tmp_path):
    table = TABLE.copy()

    class Spoiled(nn.Module):
        """Gives NaN for the step that its buffer counts as the second."""

        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(table.shape[1], 6)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += self.training
            return self.layer(x) * torch.where(self.calls == 2, torch.nan, 1.0)

    def spoiled(**changes):
        torch.manual_seed(0)
        return run(data=table, encoder=Spoiled(), hidden_dims=None, validation=None, **changes)

    with pytest.warns(NonFiniteWarning, match="epoch 1: 1 of"):
        whole = spoiled()
    with pytest.warns(NonFiniteWarning, match="epoch 1: 1 of"):
        cut(2 * steps_of_an_epoch(whole) + 1, lambda: spoiled(output_dir=tmp_path / "run"))
    assert_same_bits(spoiled(output_dir=tmp_path / "run", resume=True), whole)


# What is not resumed


@pytest.fixture
def folder(tmp_path):
    run(output_dir=tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 1e-2}, r"learning_rate was 0\.001 and is 0\.01\. Leave resume out to train anew"),
        ({"seed": 1, "beta": 2.0}, r"beta was 1\.0 and is 2\.0; seed was 0 and is 1\."),
        ({"hidden_dims": (9,)}, r"hidden_dims was \(8,\) and is \(9,\)"),
        ({"latent_dim": 4}, "latent_dim was 3 and is 4"),
        ({"model": "conv", "hidden_dims": (3,)}, "model was 'mlp' and is 'conv'; hidden_dims was"),
        ({"encoder": Net(), "hidden_dims": (8,)}, r"modules of your own was \(\) and is \('encoder',\)"),
        ({"validation": None}, "samples was [0-9]+ and is [0-9]+; validation_samples was [0-9]+ and is 0"),
        ({"data": PIXELS[:, :, :3]}, r"the shape of a sample was \(1, 4, 4\) and is \(1, 3, 4\)"),
        ({"data": PIXELS[::-1].copy()}, "was trained on other values than this data has"),
        ({"data": PIXELS / 2}, "was trained on other values than this data has"),
        ({"epochs": 3}, r"has 4 epochs already, and epochs=3 are fewer: it goes on to epochs=5 or more"),
        ({"precision": "bfloat16"}, "precision was 'float32' and is 'bfloat16'"),
    ],
)
def test_another_run_is_not_resumed(changes, message, folder):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ValueError, match=message):
        run(**changes, output_dir=folder, resume=True)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_warmup_belongs_to_the_number_of_epochs(tmp_path):
    run(output_dir=tmp_path / "run", warmup=0.5, epochs=2)
    message = r"made for epochs=2, and warmup=0\.5 is a fraction of all steps.*Resume it with epochs=2"
    with pytest.raises(ValueError, match=message):
        run(output_dir=tmp_path / "run", warmup=0.5, epochs=4, resume=True)
    run(output_dir=tmp_path / "run", warmup=0.5, epochs=2, resume=True)


def test_a_network_with_other_layers_is_not_resumed(tmp_path):
    def with_encoder(encoder, **changes):
        return run(encoder=encoder, hidden_dims=None, output_dir=tmp_path / "run", **changes)

    with_encoder(Net())
    wider = nn.Sequential(nn.Flatten(), nn.Linear(16, 9), nn.Linear(9, 6))
    with pytest.raises(ValueError, match="the run to resume is of another model, so its weights do not fit"):
        with_encoder(wider, resume=True)
    frozen = Net()
    frozen.layers[1].requires_grad_(False)
    with pytest.raises(ValueError, match=r"other parameters were trained: encoder\.layers\.1\.bias, encoder"):
        with_encoder(frozen, resume=True)


def test_resume_needs_a_folder_and_is_no_path(folder):
    with pytest.raises(ValueError, match="resume goes on with the run in output_dir, and there is no"):
        run(resume=True)
    with pytest.raises(TypeError, match=r"resume must be True or False, got .*: the run is"):
        run(output_dir=folder, resume=str(folder))


def test_a_run_without_its_state_is_not_begun_anew(folder):
    (folder / STATE).unlink()
    with pytest.raises(FileFormatError, match=f"holds a run without {STATE}, so it cannot be resumed"):
        run(output_dir=folder, resume=True)


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_state_is_named(keep, folder):
    content = (folder / STATE).read_bytes()
    (folder / STATE).write_bytes(content[:keep])
    with pytest.raises(FileFormatError, match=f"{STATE} is damaged, or no safetensors file"):
        run(output_dir=folder, resume=True)


def rewritten(path, *, tensors=(), **changes):
    """Write a state with other tensors or metadata; None leaves one out."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() | changes
        kept = {name: file.get_tensor(name) for name in file.keys()} | dict(tensors)  # noqa: SIM118
    save_file(
        {name: tensor for name, tensor in kept.items() if tensor is not None},
        path,
        metadata={name: value for name, value in metadata.items() if value is not None},
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "was not written by fastvae"),
        ({"format_version": "2"}, "has format version 2, and this fastvae reads version 1; a newer"),
        ({"config": "{"}, "is damaged: JSONDecodeError"),
        ({"config": "{}"}, "is damaged: KeyError: 'model'"),
        ({"history": None}, "is damaged: KeyError: 'history'"),
        ({"history": '[{"epoch": 1}]'}, "is damaged: ValueError: a record that is none of an epoch"),
        ({"tensors": {"other/name": torch.zeros(1)}}, "is damaged: KeyError: 'other'"),
        ({"tensors": {"square/likelihood": torch.zeros(1)}}, "averages without a mean"),
        ({"tensors": {"mean/likelihood": torch.zeros(1)}}, "is damaged: KeyError: 'likelihood'"),
        ({"tensors": {"powers/encoder.1.bias": torch.zeros(3)}}, "powers that are not two numbers"),
    ],
)
def test_a_state_that_is_none_is_named(changes, message, folder):
    rewritten(folder / STATE, **changes)
    with pytest.raises(FileFormatError, match=message):
        run(output_dir=folder, resume=True)


# The file


def test_the_state_of_another_run_does_not_stay(folder, tmp_path):
    other = run(learning_rate=1e-2)
    run(output_dir=tmp_path / "other").save(folder)
    assert (folder / STATE).exists(), "it is of the same run"
    other.save(folder)
    assert not (folder / STATE).exists()


@pytest.mark.parametrize("content", [b"", b"foreign"])
def test_a_state_that_cannot_be_read_does_not_stay(content, folder):
    (folder / STATE).write_bytes(content)
    load(folder).save(folder)
    assert not (folder / STATE).exists()


def test_a_run_of_more_epochs_keeps_what_it_came_from(written_after_each_epoch, cut, folder):
    """Whatever ends it between the two files of a write."""
    first = (folder / STATE).read_bytes()

    def failing(*_):
        raise CutError

    with pytest.MonkeyPatch.context() as during:
        during.setattr(resumption.TrainingState, "write", failing)
        with pytest.warns(RunNotWrittenWarning, match=r"could not be written .*; training goes on"):
            cut(9, lambda: run(output_dir=folder, epochs=8, resume=True), error=CutError)
    assert (folder / STATE).read_bytes() == first
    assert_same_bits(run(output_dir=folder, epochs=8, resume=True), run(epochs=8))


def test_a_run_is_there_also_where_its_state_is_not(tmp_path, monkeypatch):
    def failing(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(resumption.TrainingState, "write", failing)
    with pytest.warns(RunNotWrittenWarning, match=r"but not what it takes to resume it \(.*No space left"):
        result = run(output_dir=tmp_path / "run")
    assert load(tmp_path / "run").history == result.history


def test_without_a_folder_nothing_is_copied(monkeypatch):
    def failing(*_, **__):
        raise AssertionError

    monkeypatch.setattr(resumption.TrainingState, "of", failing)
    # The package gives the function under this name.
    monkeypatch.setattr(sys.modules["fastvae.training.train"], "fingerprint", failing)
    run()


def test_short_epochs_are_not_all_copied(tmp_path, monkeypatch):
    monkeypatch.setattr("fastvae.training.run_folder.FEWEST_SECONDS_KEPT", 3600.0)
    copied, of = [], resumption.TrainingState.of

    def counted(*args, **options):
        copied.append(len(args[2]))
        return of(*args, **options)

    monkeypatch.setattr(resumption.TrainingState, "of", counted)
    run(output_dir=tmp_path / "run", epochs=6)
    assert copied == [0, 6]


def test_the_state_can_be_read_without_pickle(folder):
    with safe_open(folder / STATE, framework="pt") as file:
        metadata = file.metadata()
        kinds = {name.partition("/")[0] for name in file.keys()}  # noqa: SIM118
    assert json.loads(metadata["config"])["training"]["learning_rate"] == 1e-3
    assert [record["epoch"] for record in json.loads(metadata["history"])] == [1, 2, 3, 4]
    assert kinds == {"model", "mean", "square", "powers"}


def test_a_fingerprint_is_of_the_values_and_their_order():
    values = np.random.default_rng(0).random((500, 3), np.float32)
    digest = fingerprint(open_data(values))
    assert digest == fingerprint(open_data(torch.from_numpy(values)))
    moved = values.copy()
    moved[[0, 1]] = moved[[1, 0]]
    assert digest not in {fingerprint(open_data(moved)), fingerprint(open_data(values * 2))}
