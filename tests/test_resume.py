"""A training that was cut and resumed ends where one that was never cut does, and nothing else is resumed."""

import json
import math
import os
import signal
import sys
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastvae.data import open_data
from fastvae.errors import FileFormatError, NonFiniteError, NonFiniteWarning, RunNotWrittenWarning
from fastvae.models import Gaussian
from fastvae.training import load, loop, native_adam, resumption, run_folder, train, weights
from fastvae.training.progress import Progress
from fastvae.training.resumption import STATE, fingerprint
from fastvae.training.run_folder import RunFolder
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
    """What ends a training in the middle."""


def failing_with(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.fixture
def listening():
    """A process that Ctrl-C interrupts, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


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
        self.register_buffer("kept", torch.zeros(2))

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


def loader(generator=None):
    return DataLoader(
        TensorDataset(torch.from_numpy(PIXELS)), batch_size=16, shuffle=True, generator=generator
    )


def in_another_order():
    """An encoder whose weights do not lie in memory as they are counted."""
    torch.manual_seed(0)
    turned = nn.Linear(16, 6)
    turned.weight = nn.Parameter(torch.randn(16, 6).t())
    channels_last = nn.Conv2d(1, 2, 3, padding=1).to(memory_format=torch.channels_last)
    return nn.Sequential(channels_last, nn.Conv2d(2, 1, 1), nn.Flatten(), turned)


KINDS = {
    "usual": dict,
    "drawn pixels": lambda: {"binarize": "dynamic"},
    "warmup and free bits": lambda: {"warmup": 0.75, "free_bits": 0.1, "beta": 2.0},
    "cycles": lambda: {"warmup": 0.75, "cycles": 2},
    "capacity": lambda: {"warmup": 0.75, "capacity": 0.5, "beta": 20.0},
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
    "a loader with a generator": lambda: {
        "data": loader(torch.Generator().manual_seed(3)),
        "validation": None,
    },
    "a loader to validate": lambda: {"validation": loader(torch.Generator().manual_seed(3))},
    "weights in another order": lambda: {"encoder": in_another_order(), "hidden_dims": None},
    "without validation": lambda: {"validation": None},
    "bfloat16": lambda: {"precision": "bfloat16"},
}


@pytest.mark.filterwarnings("ignore::fastvae.errors.DrawnOnceWarning")
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


def test_without_resume_a_run_begins_anew_and_says_so(cut, tmp_path, capsys):
    cut(7, lambda: run(output_dir=tmp_path / "run", progress=True))
    assert "replaces" not in capsys.readouterr().err
    assert_same_bits(run(output_dir=tmp_path / "run", progress=True), run())
    assert f"replaces the run of 2 epochs in {tmp_path / 'run'}; resume goes" in capsys.readouterr().err


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


class KilledError(BaseException):
    """What no handler of ours sees, as a signal that kills."""


@pytest.mark.parametrize("before", [STATE, "model.safetensors", "nothing"])
@pytest.mark.parametrize("write", [1, 2])
def test_a_process_killed_in_a_write_is_gone_on_with(
    before, write, written_after_each_epoch, tmp_path, monkeypatch
):
    """The same call each time, also the first."""
    whole, save_file, done = run(), weights.save_file, []

    def killed(tensors, path, **options):
        done.extend([1] if before in path.name else [])
        if before in path.name and len(done) == write:
            raise KilledError
        save_file(tensors, path, **options)

    monkeypatch.setattr(weights, "save_file", killed)
    with pytest.raises(KilledError) if before != "nothing" else nullcontext():
        run(output_dir=tmp_path / "run", resume=True)
    # A process that is gone cleans up nothing.
    for name in ("model.safetensors", STATE, "config.json", "metrics.jsonl"):
        (tmp_path / "run" / f".{name}.0123abcd.tmp").write_bytes(b"cut")
        (tmp_path / "run" / f".{name}.0123abcd.tmp.d").mkdir()
        (tmp_path / "run" / f".{name}.0123abcd.tmp.d" / ".tmpXYZ").write_bytes(b"cut")
    assert_same_bits(run(output_dir=tmp_path / "run", resume=True), whole)
    assert not list((tmp_path / "run").glob(".*"))
    assert_same_bits(load(tmp_path / "run", device="cpu"), whole)


def test_files_of_others_are_left_alone(tmp_path):
    for name in (".model.safetensors.0123.tmp", ".other.0123abcd.tmp"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(ValueError, match="is not empty and holds no fastvae run"):
            run(output_dir=tmp_path, resume=True)
        (tmp_path / name).unlink()


def test_an_error_leaves_the_last_whole_epoch(cut, tmp_path, monkeypatch):
    whole = run()
    cut(2 * steps_of_an_epoch(whole) + 1, lambda: run(output_dir=tmp_path / "run"), error=CutError)
    with monkeypatch.context() as during:
        during.setattr(Progress, "advance", failing_with(CutError))
        with pytest.raises(CutError) as caught:
            run(output_dir=tmp_path / "run", resume=True)
    assert caught.value.__notes__ == [f"resume=True goes on with the run in {tmp_path / 'run'} after epoch 2"]
    assert_same_bits(run(output_dir=tmp_path / "run", resume=True), whole)


def test_an_error_in_the_first_epoch_costs_an_earlier_run_nothing(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(Progress, "advance", failing_with(CutError))
    with pytest.raises(CutError) as caught:
        run(output_dir=folder, learning_rate=1e-2)
    assert not hasattr(caught.value, "__notes__")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_was_trained_before_is_in_the_error(tmp_path, monkeypatch):
    run(output_dir=tmp_path / "run", epochs=2)
    monkeypatch.setattr(loop, "report_skipped", failing_with(NonFiniteError))
    with pytest.raises(NonFiniteError) as caught:
        run(output_dir=tmp_path / "run", resume=True)
    assert [record["epoch"] for record in caught.value.result.history] == [1, 2]


def test_ctrl_c_waits_for_a_copy(tmp_path, monkeypatch, listening):
    whole, of, copied = run(), resumption.TrainingState.of, []

    def pressed(*args, **options):
        copied.append(1)
        if len(copied) == 3:
            signal.raise_signal(signal.SIGINT)
        return of(*args, **options)

    monkeypatch.setattr(resumption.TrainingState, "of", pressed)
    assert len(run(output_dir=tmp_path / "run").history) == 2
    assert len(resumption.read_state(tmp_path / "run").history) == 2
    assert_same_bits(run(output_dir=tmp_path / "run", resume=True), whole)


def test_a_copy_that_was_not_written_is_so_at_the_end(written_after_each_epoch, cut, tmp_path, monkeypatch):
    whole, write, tried = run(), resumption.TrainingState.write, []

    def full_then_not(state, folder):
        tried.append(len(state.history))
        if len(tried) == 1:
            raise OSError(28, "No space left on device")
        write(state, folder)

    monkeypatch.setattr(resumption.TrainingState, "write", full_then_not)
    with pytest.warns(RunNotWrittenWarning, match="training goes on"):
        cut(steps_of_an_epoch(whole) + 1, lambda: run(output_dir=tmp_path / "run"))
    assert tried == [1, 1]
    assert_same_bits(run(output_dir=tmp_path / "run", resume=True), whole)


def test_what_does_not_matter_may_differ(tmp_path):
    whole = run(output_dir=tmp_path / "run", epochs=2)
    np.save(tmp_path / "pixels.npy", PIXELS)
    again = run(
        data=tmp_path / "pixels.npy", output_dir=tmp_path / "run", epochs=2, resume=True, compile=False
    )
    assert whole.config.data.name != again.config.data.name
    assert_same_bits(again, whole)


def test_extra_state_may_have_any_length(tmp_path):
    class Remembers(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.seen = net(), []

        def forward(self, x):
            self.seen += [0] * self.training
            return self.inner(x)

        def get_extra_state(self):
            return torch.tensor(self.seen)

        def set_extra_state(self, state):
            self.seen = state.tolist()

    options = {"hidden_dims": None, "output_dir": tmp_path / "run"}
    run(encoder=Remembers(), epochs=2, **options)
    resumed = Remembers()
    run(encoder=resumed, resume=True, **options)
    whole = Remembers()
    run(encoder=whole, hidden_dims=None)
    assert len(resumed.seen) == len(whole.seen) > 0


def test_tensors_that_were_apart_are_not_resumed_as_one(tmp_path):
    class Previous(nn.Module):
        """Keeps what it had, which is one tensor in the beginning."""

        def __init__(self):
            super().__init__()
            self.inner = net()
            self.register_buffer("now", torch.zeros(3))
            self.register_buffer("before", self.now)

        def forward(self, x):
            if self.training:
                self.before, self.now = self.now, self.now + 1
            return self.inner(x)

    options = {"hidden_dims": None, "output_dir": tmp_path / "run", "epochs": 1}
    run(encoder=Previous(), **options)
    with pytest.raises(
        ValueError, match=r"had tensors apart that are one in this one.*: encoder\.before and"
    ):
        run(encoder=Previous(), resume=True, **options)


def test_a_history_that_json_cannot_hold_is_of_the_same_run(tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys.modules["fastvae.training.train"], "evaluate_on", lambda *_, **__: {"elbo": math.nan, "kl": 1.0}
    )
    monkeypatch.setattr(sys.modules["fastvae.training.train"], "_report_end", lambda *_: None)
    result = run(output_dir=tmp_path / "run", epochs=2)
    assert math.isnan(result.history[0]["val_elbo"])
    load(tmp_path / "run").save(tmp_path / "run")
    assert math.isnan(resumption.read_state(tmp_path / "run").history[1]["val_elbo"])


# What is not resumed


@pytest.fixture
def folder(tmp_path):
    run(output_dir=tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"learning_rate": 1e-2},
            r"learning_rate 0\.001 before and 0\.01 now\. Leave resume out to train anew",
        ),
        ({"seed": 1, "beta": 2.0}, r"beta 1\.0 before and 2\.0 now; seed 0 before and 1 now\."),
        ({"hidden_dims": (9,)}, r"hidden_dims \(8,\) before and \(9,\) now"),
        ({"latent_dim": 4}, "latent_dim 3 before and 4 now"),
        ({"model": "conv", "hidden_dims": (3,)}, "model 'mlp' before and 'conv' now; hidden_dims"),
        ({"encoder": Net(), "hidden_dims": (8,)}, r"modules of your own \(\) before and \('encoder',\) now"),
        (
            {"validation": None},
            "samples to train on 60 before and 67 now; samples held out 7 before and 0 now",
        ),
        ({"data": PIXELS[:, :, :3]}, r"shape of a sample \(1, 4, 4\) before and \(1, 3, 4\) now"),
        ({"data": PIXELS[::-1].copy()}, "was trained on other values than this data has"),
        ({"data": PIXELS / 2}, "was trained on other values than this data has"),
        ({"epochs": 3}, r"has 4 epochs already, and epochs=3 are fewer: it goes on to epochs=5 or more"),
        ({"precision": "bfloat16"}, "precision 'float32' before and 'bfloat16' now"),
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda net: net.layers.append(nn.Linear(6, 6)),
            r"keeps other tensors .*: encoder\.layers\.6\.bias; ",
        ),
        (
            lambda net: net.register_buffer("kept", torch.zeros(2, dtype=torch.float64)),
            r"keeps other tensors .*: encoder\.kept was torch\.float32 of \(2,\) and is torch\.float64 of",
        ),
        (
            lambda net: net.layers[1].requires_grad_(False),
            r"had other parameters trained .*: encoder\.layers\.1\.bias; encoder\.layers\.1\.weight\. Leave",
        ),
    ],
)
def test_a_network_that_differs_is_not_resumed_and_left_as_it_is(change, message, tmp_path):
    def with_encoder(encoder, **changes):
        return run(encoder=encoder, hidden_dims=None, output_dir=tmp_path / "run", epochs=1, **changes)

    with_encoder(net())
    other = net()
    change(other)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        with_encoder(other, resume=True)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_resume_needs_a_folder_and_is_no_path(folder):
    with pytest.raises(ValueError, match="resume goes on with the run in output_dir: name its folder"):
        run(resume=True)
    with pytest.raises(TypeError, match=r"resume must be True or False, got .*: name the folder"):
        run(output_dir=folder, resume=str(folder))


def test_a_loader_that_got_a_generator_is_not_resumed(tmp_path):
    run(data=loader(), validation=None, output_dir=tmp_path / "run", epochs=1)
    again = {"validation": None, "output_dir": tmp_path / "run", "epochs": 1, "resume": True}
    with pytest.raises(ValueError, match=r"had no generator like this, so it cannot be resumed: its order"):
        run(data=loader(torch.Generator().manual_seed(3)), **again)
    run(data=loader(), **again)


def test_a_run_on_other_held_out_data_is_not_resumed(tmp_path):
    held_out = PIXELS[:9]
    run(output_dir=tmp_path / "run", validation=held_out, epochs=1)
    with pytest.raises(ValueError, match="was evaluated on other held-out values than this data has"):
        run(output_dir=tmp_path / "run", validation=held_out / 2, epochs=1, resume=True)
    run(output_dir=tmp_path / "run", validation=held_out, epochs=1, resume=True)


def test_a_state_that_was_not_written_is_not_that_of_a_run_before(tmp_path):
    """Of a loader nothing says that its data is other data."""
    run(data=loader(), validation=None, output_dir=tmp_path / "run")
    other = DataLoader(TensorDataset(torch.from_numpy(PIXELS / 2)), batch_size=16)
    with pytest.MonkeyPatch.context() as during:
        during.setattr(resumption.TrainingState, "write", failing_with(OSError(28, "No space left")))
        with pytest.warns(RunNotWrittenWarning, match="not what it takes to resume it"):
            run(data=other, validation=None, output_dir=tmp_path / "run")
    with pytest.raises(FileFormatError, match=f"holds a run without {STATE}, so it cannot be resumed"):
        run(data=other, validation=None, output_dir=tmp_path / "run", resume=True)


def test_a_run_without_an_epoch_is_begun_anew(folder, monkeypatch):
    with monkeypatch.context() as during:
        during.setattr(resumption.TrainingState, "of", failing_with(ZeroDivisionError))
        during.setattr(loop, "_batches", failing_with(KeyboardInterrupt))
        with pytest.warns(RunNotWrittenWarning, match="training goes on"):
            result = run(output_dir=folder, latent_dim=2)
    assert not result.history
    assert not (folder / STATE).exists()
    assert_same_bits(run(output_dir=folder, resume=True), run())


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
        ({"history": '[{"epoch": 1}]'}, "ValueError: the history is not one record for each epoch"),
        ({"history": "[1]"}, "ValueError: the history is not one record for each epoch"),
        ({"history": "[]", "steps": "-1"}, "is damaged: ValueError: steps is -1"),
        ({"steps": '"5"'}, "is damaged: ValueError: steps is '5'"),
        ({"steps": "null"}, "is damaged: ValueError: steps is None"),
        ({"same_tensors": "{"}, "is damaged: JSONDecodeError"),
        ({"same_tensors": '["x"]'}, "is damaged: AttributeError"),
        ({"same_tensors": '{"a": "b"}'}, "is damaged: ValueError: names of tensors that are not there"),
        ({"fingerprints": "[]"}, "is damaged: ValueError: fingerprints that are not two"),
        ({"tensors": {"powers/encoder.1.bias": torch.zeros(2)}}, "the powers of encoder.1.bias are not two"),
        (
            {"tensors": {"powers/encoder.1.bias": torch.tensor([0.5, 2.0]).double()}},
            "are not two numbers from",
        ),
        (
            {"tensors": {"mean/encoder.1.bias": torch.full((8,), torch.nan)}},
            "of encoder.1.bias are no averages",
        ),
        ({"tensors": {"square/encoder.1.bias": torch.full((8,), -1.0)}}, "of encoder.1.bias are no averages"),
        ({"tensors": {"square/encoder.1.bias": torch.zeros(9)}}, "averages of encoder.1.bias are not alike"),
        ({"tensors": {"mean/encoder.1.bias": torch.zeros(8).double()}}, "of encoder.1.bias are not alike"),
        ({"tensors": {"other/name": torch.zeros(1)}}, "is damaged: KeyError: 'other'"),
        ({"tensors": {"square/likelihood": torch.zeros(1)}}, "averages without a mean"),
        ({"tensors": {"mean/likelihood": torch.zeros(1)}}, "is damaged: KeyError: 'likelihood'"),
        (
            {"tensors": {"powers/encoder.1.bias": torch.zeros(3)}},
            "the powers of encoder.1.bias are not two numbers from 0 to 1",
        ),
    ],
)
def test_a_state_that_is_none_is_named(changes, message, folder):
    rewritten(folder / STATE, **changes)
    with pytest.raises(FileFormatError, match=message):
        run(output_dir=folder, resume=True)


# The file


def test_the_state_of_another_run_does_not_stay(folder):
    load(folder).save(folder)
    assert (folder / STATE).exists(), "it is of the same run"
    interrupted = load(folder)
    interrupted.history[-1] = interrupted.history[-1] | {"kl": 0.0}
    interrupted.save(folder)
    assert not (folder / STATE).exists(), "no two runs have the same history"


@pytest.mark.parametrize("changes", [{}, {"learning_rate": 1e-2}])
def test_saving_another_run_leaves_nothing_to_resume(changes, folder):
    run(**changes).save(folder)
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
    last = values.copy()
    last[-1, -1] += 1
    assert fingerprint(open_data(last)) != digest
    parts = [fingerprint(part) for seed in (0, 1) for part in open_data(values).split(0.1, seed)]
    assert len({digest, *parts}) == 5
    pixels = (values * 255).astype(np.uint8)
    assert fingerprint(open_data(pixels)) != fingerprint(open_data(pixels, pixels=False))


def test_a_fingerprint_of_large_data_is_of_rows_spread_over_it(monkeypatch):
    values = np.random.default_rng(0).random((500, 3), np.float32)
    monkeypatch.setattr(resumption, "MOST_BYTES", 12 * 50)
    digest = fingerprint(open_data(values))
    with torch.device("meta"):  # whatever a caller has set
        assert fingerprint(open_data(values)) == digest
    for row, same in ((0, False), (10, False), (490, False), (491, True)):
        other = values.copy()
        other[row] += 1
        assert (fingerprint(open_data(other)) == digest) is same


def test_one_training_at_a_time_writes_to_a_folder(tmp_path, monkeypatch):
    """Of another one, in this process or not, the files would be mixed."""
    if sys.platform == "win32":
        pytest.skip("no locks of folders")
    other = RunFolder(tmp_path / "run")
    other.start()
    with pytest.raises(ValueError, match=r"another training writes to .*run just now"):
        run(output_dir=tmp_path / "run")
    other.close()
    assert len(run(output_dir=tmp_path / "run").history) == 4
    monkeypatch.setattr(Progress, "advance", failing_with(CutError))
    with pytest.raises(CutError):
        run(output_dir=tmp_path / "run")
    monkeypatch.undo()
    assert len(run(output_dir=tmp_path / "run").history) == 4


def test_a_folder_is_let_go_whatever_happens(tmp_path, monkeypatch):
    """A start that is cut, and a process that was forked meanwhile and lives on."""
    if sys.platform == "win32":
        pytest.skip("no locks of folders")
    monkeypatch.setattr(run_folder, "temporaries", failing_with(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run(output_dir=tmp_path / "run")
    monkeypatch.undo()
    assert len(run(output_dir=tmp_path / "run").history) == 4

    folder = RunFolder(tmp_path / "run")
    folder.start()
    inherited = os.dup(folder._held)  # as a forked process has it
    folder.close()
    try:
        assert len(run(output_dir=tmp_path / "run").history) == 4
    finally:
        os.close(inherited)
