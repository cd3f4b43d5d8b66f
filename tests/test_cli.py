"""The command: what it writes, what it says, and how it ends."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastvae.cli.sample as sample_command
from fastvae.cli import main
from fastvae.cli.npy import write_npy
from fastvae.cli.parser import build_parser
from fastvae.data import open_data
from fastvae.training import load, loop, train
from fastvae.training.choices import DEFAULT_STEPS, FEWEST_EPOCHS, MOST_EPOCHS

COMMANDS = ("train", "sample", "encode", "reconstruct", "evaluate", "info")
NOT_ON_THE_COMMAND_LINE = {"data", "encoder", "decoder", "unknown"}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> str:
    """A small run on the digits."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    return str(train("digits", latent_dim=2, hidden_dims=16, epochs=1, progress=False).save(folder))


@pytest.fixture
def _no_pictures(monkeypatch):
    """Do without pictures, which take most of the time of a small run."""
    monkeypatch.setattr("fastvae.plots.write_pictures", lambda *_: [])


@pytest.fixture
def fails(capsys):
    """Run a command that must fail, and give what it says."""

    def check(code: int, *arguments: str) -> str:
        try:
            given = main(arguments)
        except SystemExit as end:
            given = end.code
        captured = capsys.readouterr()
        assert given == code, captured.err
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert "error: " in captured.err
        return captured.err

    return check


# Help


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_has_examples(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "examples:\n  fastvae " in text
    assert all(len(line) <= 110 for line in text.splitlines())


def test_every_example_of_the_help_parses(capsys):
    examples = []
    for command in COMMANDS:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = capsys.readouterr().out.split("examples:\n")[1]
        examples += re.findall(r"^  fastvae (.*?)(?:   .*| \|.*)?$", text, re.MULTILINE)
    assert len(examples) >= 2 * len(COMMANDS)
    for example in examples:
        _, unknown = build_parser().parse_known_args(example.split())
        assert not unknown, example


def test_help_does_not_wait_for_torch():
    code = """
import sys
from fastvae.cli import main
for arguments in ("--help", "train --help", "--version", "train", "train digits --epochs 0"):
    try:
        main(arguments.split())
    except SystemExit:
        pass
    assert "torch" not in sys.modules, arguments
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True)


def test_every_option_of_train_is_there_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, parameter in inspect.signature(train).parameters.items():
        if name in NOT_ON_THE_COMMAND_LINE:
            continue
        match = re.search(rf" --{name.replace('_', '-')}[ ,].*?\(default: (.*?)\)", text)
        assert match, name
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
            assert float(match[1]) == parameter.default, name
        elif name in {"model", "binarize", "variance", "likelihood", "device"}:
            assert match[1].startswith(parameter.default), name
    assert f"make {DEFAULT_STEPS} steps, within {FEWEST_EPOCHS} and {MOST_EPOCHS})" in text


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out.startswith("fastvae ")


def test_it_is_a_module_too():
    command = [sys.executable, "-m", "fastvae", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert ended.stdout.startswith("fastvae ")


# Wrong use


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "required: COMMAND"),
        (["trian", "digits"], "invalid choice: 'trian'"),
        (["train"], "required: DATA"),
        (["train", "digits", "more"], "did not expect 'more'"),
        (["train", "digits", "--lr", "0.1"], "no option --lr; did you mean --learning-rate?"),
        (["train", "digits", "--z-dim=3"], "no option --z-dim; did you mean --latent-dim?"),
        (["train", "digits", "--num_epochs", "3"], "no option --num_epochs; did you mean --epochs?"),
        (["train", "digits", "--latentdim", "3"], "did you mean --latent-dim?"),
        (["train", "digits", "--xyzzy"], "no option --xyzzy\n"),
        (["train", "digits", "--epochs", "0"], "argument --epochs: expected a whole number of at least 1"),
        (["train", "digits", "--latent-dim", "many"], "argument --latent-dim: expected a whole number"),
        (["train", "digits", "--likelihood", "poisson"], "argument --likelihood: invalid choice: 'poisson'"),
        (["train", "digits", "--model", "resnet"], "resnet"),
        (["train", "digits", "--beta", "-1"], "beta"),
        (["train", "digits", "--warmup", "5"], "warmup must lie between 0 and 1"),
        (["train", "digits", "--cycles", "4"], "cycles=4 repeats the warm-up, and there is none"),
        (["train", "digits", "--device", "abacus"], "abacus"),
        (["train", "digits", "--distributed", "maybe"], "argument --distributed: expected auto or none"),
        (["train", "digits", "--workers", "-1"], "workers"),
        (["train", "digits", "--validation", "nowhere.npy"], "nowhere.npy"),
        (
            ["train", "digts"],
            "error: data: there is no file, folder or bundled data set 'digts'; did you mean",
        ),
        (["train", "nowhere.npy"], "no file, folder or bundled data set 'nowhere.npy'"),
        (["sample", "nowhere", "-n", "2", "-o", "a.npy"], "nowhere: there is no such run folder"),
        (["sample", "nowhere", "-n", "-2", "-o", "a.npy"], "-n/--number: expected a whole number"),
        (["sample", "nowhere", "-n", "2"], "required: -o/--output"),
        (["sample", "nowhere", "-n", "2", "-o", "a.jpg"], "OUT must end in .npy or .png, or be a new folder"),
        (["sample", "nowhere", "-n", "2", "-o", "-"], "cannot write -; OUT must end in .npy or .png"),
        (["sample", "nowhere", "-n", "20000", "-o", "a.png"], "one picture holds at most 10000"),
        (["reconstruct", "nowhere", "digits", "-o", "a.jpg"], "OUT must end in .npy or .png"),
        (["encode", "nowhere", "digits", "-o", "a.png"], "cannot write a.png; OUT must end in .npy"),
        (["info", "."], "no fastvae run"),
    ],
)
def test_wrong_use_ends_with_2(arguments, text, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert text in fails(2, *arguments)
    assert not list(tmp_path.iterdir()), "before any work"


def test_data_that_does_not_fit_ends_with_2(run, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("nan.npy", np.full((20, 8, 8), np.nan))
    np.save("wide.npy", np.full((20, 3), 0.5))
    assert "20 of 20 samples hold NaN" in fails(2, "train", "nan.npy")
    for command in (["evaluate", run], ["reconstruct", run], ["encode", run]):
        output = [] if command[0] == "evaluate" else ["-o", "a.npy"]
        assert "shape (1, 8, 8)" in fails(2, *command, "wide.npy", *output)
        assert "20 of 20 samples hold NaN" in fails(2, *command, "nan.npy", *output)
    assert not Path("a.npy").exists()


def test_what_fails_at_run_time_ends_with_1(run, fails, tmp_path, monkeypatch):
    def disk_full(*_: object, **__: object):
        raise OSError(28, "No space left on device", "a.npy")

    monkeypatch.setattr(sample_command, "write_npy", disk_full)
    assert fails(1, "sample", run, "-n", "2", "-o", str(tmp_path / "a.npy")) == (
        "error: a.npy: No space left on device\n"
    )


def test_traceback_shows_where_an_error_came_from():
    with pytest.raises(FileNotFoundError):
        main(["info", "nowhere", "--traceback"])


# train


def test_train_has_the_options_of_the_kl():
    parse = build_parser().parse_args
    options = parse(["train", "digits", "--warmup", "0.5", "--cycles", "4"])
    assert (options.warmup, options.cycles) == (0.5, 4)
    assert parse(["train", "digits", "--capacity", "25"]).capacity == 25


def test_train_leaves_a_run_folder(tmp_path, capsys):
    folder = tmp_path / "run"
    options = "--epochs 2 --latent-dim 2 --hidden-dims 16 8 --beta 2 --warmup 0.5 --seed 5 --batch-size 100"
    options += " --learning-rate 0.002 --weight-decay 0.01 --binarize threshold --validation 0.2 --device cpu"
    options += " --likelihood bernoulli --no-variational --no-progress"
    assert main(["train", "digits", "-o", str(folder), *options.split()]) == 0
    assert capsys.readouterr() == (f"{folder}\n", "")
    config = load(folder).config
    assert (config.model.latent_dim, config.model.hidden_dims) == (2, (16, 8))
    assert (config.training.epochs, config.training.batch_size, config.training.seed) == (2, 100, 5)
    assert (config.training.learning_rate, config.training.weight_decay) == (0.002, 0.01)
    assert (config.training.beta, config.training.warmup, config.training.binarize) == (2, 0.5, "threshold")
    assert (config.data.samples, config.data.validation_samples) == (1438, 359)
    assert not config.model.variational
    pictures = {"curves.png", "latent.png", "reconstructions.png", "samples.png", "traversal.png"}
    assert pictures < {path.name for path in folder.iterdir()}


@pytest.mark.usefixtures("_no_pictures")
def test_train_without_a_folder_takes_a_new_one_each_time(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    np.save("my.table.npy", np.random.default_rng(0).normal(size=(20, 3)))
    Path("runs/my").mkdir(parents=True)  # an empty one is as good as none
    options = "--epochs 1 --latent-dim 1 --hidden-dims 4 --validation none --no-progress"
    for _ in range(2):
        assert main(["train", "my.table.npy", *options.split()]) == 0
    assert capsys.readouterr().out == f"{Path('runs/my')}\n{Path('runs/my-2')}\n"
    assert load("runs/my-2").config.data.validation_samples == 0


@pytest.mark.usefixtures("_no_pictures")
def test_train_gives_what_the_function_gives(tmp_path):
    settings = {"epochs": 1, "latent_dim": 2, "hidden_dims": 8, "variance": 0.5, "likelihood": "gaussian"}
    options = "--epochs 1 --latent-dim 2 --hidden-dims 8 --variance 0.5 --likelihood gaussian --no-progress"
    assert main(["train", "digits", "-o", str(tmp_path / "run"), *options.split()]) == 0
    assert torch.equal(
        load(tmp_path / "run").sample(3), train("digits", progress=False, **settings).sample(3)
    )


@pytest.mark.usefixtures("_no_pictures")
def test_resume_goes_on_with_the_run_in_the_folder(tmp_path, capsys):
    options = ["train", "digits", "--latent-dim", "2", "--hidden-dims", "8", "--no-progress"]
    for epochs in ("1", "2"):  # without a run there, one begins
        assert main([*options, "--epochs", epochs, "-o", str(tmp_path / "run"), "--resume"]) == 0
    assert main([*options, "--epochs", "2", "-o", str(tmp_path / "whole")]) == 0
    assert torch.equal(load(tmp_path / "run").sample(3), load(tmp_path / "whole").sample(3))
    capsys.readouterr()
    assert main([*options, "--epochs", "3", "--resume"]) == 2
    assert "--resume goes on with the run in a folder: name it with -o FOLDER" in capsys.readouterr().err
    assert main([*options, "--epochs", "3", "--beta", "2", "-o", str(tmp_path / "run"), "--resume"]) == 2
    assert "beta 1.0 before and 2.0 now" in capsys.readouterr().err


def interrupting(monkeypatch, sent):
    """Have a signal sent to the process in the second epoch."""
    whole_epoch = loop._batches

    def interrupted(data, settings, epoch, *others):
        for number, x in enumerate(whole_epoch(data, settings, epoch, *others)):
            if (epoch, number) == (2, 3):
                signal.raise_signal(sent)
            yield x

    monkeypatch.setattr(loop, "_batches", interrupted)


def assert_kept(folder):
    result = load(folder)
    assert result.interrupted
    assert [record["epoch"] for record in result.history] == [1, 2]
    assert result.sample(1).isfinite().all()


def test_what_is_noted_of_an_error_is_said(tmp_path, monkeypatch, capsys):
    """Such as how to go on with the run."""

    def broken(*_):
        error = RuntimeError("the connection was lost")
        error.add_note("the others may tell why")
        raise error

    monkeypatch.setattr(loop, "_batches", broken)
    assert main(["train", "digits", "-o", str(tmp_path / "run"), "--epochs", "1", "--no-progress"]) == 1
    assert capsys.readouterr().err == "error: the connection was lost\nthe others may tell why\n"


@pytest.mark.usefixtures("_no_pictures")
def test_an_interrupted_training_keeps_what_there_is_and_ends_with_130(tmp_path, monkeypatch):
    interrupting(monkeypatch, signal.SIGINT)
    options = "--epochs 5 --hidden-dims 8 --latent-dim 2 --no-progress"
    assert main(["train", "digits", "-o", str(tmp_path / "run"), *options.split()]) == 130
    assert_kept(tmp_path / "run")


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize("ignored", [False, True], ids=["heard", "ignored"])
def test_sigterm_ends_a_training_as_ctrl_c_does(ignored, tmp_path, monkeypatch):
    """As schedulers and containers send it, also where Ctrl-C is ignored, in the background of a shell."""
    interrupting(monkeypatch, signal.SIGTERM)
    options = "--epochs 5 --hidden-dims 8 --latent-dim 2 --no-progress"
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    try:
        assert main(["train", "digits", "-o", str(tmp_path / "run"), *options.split()]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert_kept(tmp_path / "run")


# sample


def test_samples_are_those_of_the_function(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_command, "VALUES_AT_A_TIME", 64 * 7)
    path = tmp_path / "a.npy"
    for options, arguments in [
        ([], {}),
        (["--seed", "3", "--start", "50"], {"seed": 3, "row_offset": 50}),
        (["--sampled"], {"sampled": True}),
    ]:
        assert main(["sample", run, "-n", "100", "-o", str(path), *options]) == 0
        written = np.load(path, allow_pickle=False)
        assert written.dtype == np.float32
        assert torch.equal(torch.from_numpy(written), load(run).sample(100, **arguments))
    assert list(tmp_path.iterdir()) == [path]


def test_samples_as_one_picture(run, tmp_path):
    path = tmp_path / "a.png"
    assert main(["sample", run, "-n", "10", "-o", str(path)]) == 0
    with Image.open(path) as image:
        assert image.mode == "L"
        assert image.size == (4 * 56 + 3 * 3, 3 * 56 + 2 * 3)


def test_samples_as_a_folder_of_pictures(run, tmp_path, fails):
    folder = tmp_path / "new" / "samples"
    assert main(["sample", run, "-n", "12", "-o", str(folder)]) == 0
    assert [path.name for path in sorted(folder.iterdir())] == [f"{i:06}.png" for i in range(12)]
    umask = os.umask(0)
    os.umask(umask)
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask
    samples = load(run).sample(12)
    with Image.open(folder / "000011.png") as image:
        assert np.array_equal(np.asarray(image), np.rint(samples[11, 0].numpy() * 255))
    assert "exists already" in fails(2, "sample", run, "-n", "12", "-o", str(folder))
    assert "range must go from low to high" in fails(
        2, "sample", run, "-n", "1", "-o", str(tmp_path / "b"), "--range", "1", "1"
    )
    assert list(folder.parent.iterdir()) == [folder], "no temporary folder is left"


def test_a_table_has_no_pictures(tmp_path, fails):
    table = np.random.default_rng(0).normal(size=(20, 3))
    train(table, latent_dim=1, hidden_dims=4, epochs=1, progress=False).save(tmp_path / "run")
    for output in ("a.png", "folder"):
        arguments = ["sample", str(tmp_path / "run"), "-n", "2", "-o", str(tmp_path / output)]
        assert "samples of shape (3,) are no images" in fails(2, *arguments)


def test_any_number_of_samples_is_written_in_constant_memory(tmp_path):
    chunks = (np.full((16, 16, 1024), number, np.float32) for number in range(64))  # 1 MiB each
    tracemalloc.start()
    try:
        write_npy(tmp_path / "a.npy", (1024, 16, 1024), chunks)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2**20 < peak < 4 * 2**20
    assert np.array_equal(np.load(tmp_path / "a.npy", mmap_mode="r")[:, 0, 0], np.arange(1024) // 16)


def test_an_interruption_leaves_no_half_file(run, tmp_path, monkeypatch, capsys):
    path = tmp_path / "a.npy"
    path.write_bytes(b"an earlier file")

    def interrupted(*_: object):
        yield np.zeros((1, 1, 8, 8), np.float32)
        raise KeyboardInterrupt

    monkeypatch.setattr(sample_command, "_chunks", interrupted)
    assert main(["sample", run, "-n", "10", "-o", str(path)]) == 130
    assert capsys.readouterr().err == "interrupted\n"
    assert main(["sample", run, "-n", "10", "-o", str(tmp_path / "folder")]) == 130
    assert path.read_bytes() == b"an earlier file"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_that_has_read_enough_is_no_error(run, tmp_path, monkeypatch, capsys):
    def enough(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    with (tmp_path / "out").open("w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        monkeypatch.setattr("builtins.print", enough)
        code = main(["info", run])
        monkeypatch.undo()
    assert code == 0
    assert capsys.readouterr().err == ""


# reconstruct, evaluate, info


def test_codes_are_those_of_the_function(run, tmp_path):
    path = tmp_path / "codes.npy"
    assert main(["encode", run, "digits", "-o", str(path)]) == 0
    codes = np.load(path)
    assert codes.shape == (1797, 2)
    assert torch.equal(torch.from_numpy(codes), load(run).encode("digits"))


def test_reconstructions_are_those_of_the_function(run, tmp_path):
    path = tmp_path / "a.npy"
    assert main(["reconstruct", run, "digits", "-o", str(path)]) == 0
    assert torch.equal(torch.from_numpy(np.load(path)), load(run).reconstruct("digits"))
    assert main(["reconstruct", run, "digits", "-o", str(tmp_path / "a.png")]) == 0
    with Image.open(tmp_path / "a.png") as image:
        assert image.size[0] > 700


def test_evaluation_is_that_of_the_function(run, capsys):
    expected = load(run).evaluate(open_data("digits"), seed=4)
    assert main(["evaluate", run, "digits", "--json", "--seed", "4"]) == 0
    assert json.loads(capsys.readouterr().out) == expected
    assert main(["evaluate", run, "digits", "--seed", "4"]) == 0
    captured = capsys.readouterr()
    assert f"ELBO   {expected['elbo']:10.3f} nats per sample\n" in captured.out
    assert captured.err == "digits: 1797 samples\n"


def test_info_tells_what_a_run_is(run, capsys):
    assert main(["info", run]) == 0
    text = capsys.readouterr().out
    assert "digits: 1617 samples of shape (1, 8, 8), 180 held out" in text
    assert "mlp, 2 codes" in text
    assert "1 of 1 epochs" in text
    assert "beta 1, seed" in text
    assert main(["info", run, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["history"] == load(run).history
    assert told["model"]["latent_dim"] == 2


def test_info_needs_no_modules_of_ones_own(tmp_path, capsys):
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 4))
    train(
        np.random.default_rng(0).random((60, 6), np.float32),
        encoder=encoder,
        decoder=torch.nn.Linear(2, 6),
        likelihood="gaussian",
        latent_dim=2,
        epochs=2,
        device="cpu",
        output_dir=tmp_path,
        progress=False,
    )
    assert main(["info", str(tmp_path)]) == 0
    assert "own encoder and decoder, 2 codes, 47 weights" in capsys.readouterr().out


def test_info_names_what_is_not_as_usual(tmp_path, capsys):
    options = "--epochs 1 --warmup 0.5 --capacity 8 --beta 30 --binarize threshold --no-progress --device cpu"
    assert main(["train", "digits", "-o", str(tmp_path), *options.split()]) == 0
    assert main(["info", str(tmp_path)]) == 0
    assert "beta 30, warmup 0.5, capacity 8, binarize threshold, seed 0" in capsys.readouterr().out


def test_warnings_are_one_line(run, monkeypatch, capsys):
    def warned(*_: object, **__: object) -> None:
        warnings.warn("the KL is near zero", UserWarning, stacklevel=1)

    monkeypatch.setattr(sample_command, "write_npy", warned)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["sample", run, "-n", "1", "-o", "a.npy"]) == 0
    assert capsys.readouterr().err == "warning: the KL is near zero\n"
