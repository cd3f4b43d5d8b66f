"""The examples run, draw their pictures, and print figures that bear out what their texts say."""

from __future__ import annotations

import importlib.util
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
NAMES = ["own_model", "samples", "two_codes", "without_kl"]

if not EXAMPLES.is_dir():
    pytest.skip("examples/ is not beside the tests", allow_module_level=True)
pytest.importorskip("matplotlib", reason="the examples draw with Matplotlib")
datasets = pytest.importorskip("sklearn.datasets", reason="the examples use scikit-learn's digits")
image = pytest.importorskip("PIL.Image", reason="the pictures are looked at with Pillow")

Figures = dict[str, list[float]]
Run = Callable[..., str]


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run an example with its pictures in a folder of its own, and give what it printed."""

    def call(name: str, *arguments: str) -> str:
        capsys.readouterr()
        assert load(name).main([*arguments, "--output", str(tmp_path / "pictures")]) == 0
        return capsys.readouterr().out

    return call


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def figures(printed: str) -> Figures:
    """The lines that are a name and then numbers, apart by at least two spaces."""
    found = {}
    for line in printed.splitlines():
        name, *values = re.split(r"\s{2,}", line.strip())
        try:
            numbers = [float(value) for value in values]
        except ValueError:
            continue
        if numbers:
            assert name not in found, f"{name!r} is printed twice"
            found[name] = numbers
    return found


def assert_pictures(folder: Path, *names: str) -> None:
    """All are there, nothing else is, and each shows something."""
    assert sorted(path.name for path in folder.iterdir()) == sorted(names)
    for name in names:
        pixels = np.asarray(image.open(folder / name).convert("L"))
        assert min(pixels.shape) > 200
        assert pixels.std() > 10


def idx(values: np.ndarray) -> bytes:
    """The bytes of an IDX file of uint8."""
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_every_example_is_known_and_explains_itself(name, capsys):
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == NAMES
    assert f"]({name}.py)" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        load(name).main(["--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert all(option in printed for option in ("--epochs", "--seed", "--output"))


def test_samples(run, tmp_path):
    found = figures(run("samples", "--data", "digits", "--epochs", "40"))
    made, real, shuffled = (
        found[name] for name in ("samples from unit noise", "real digits, held out", "shuffled digits")
    )
    assert shuffled[0] + 0.05 < made[0] < real[0], "agreement"
    assert 0.9 * real[1] < made[1] < (real[1] + shuffled[1]) / 2, "distance: no copies, nearer to real ones"
    assert_pictures(tmp_path / "pictures", "samples.png")


def test_samples_of_a_folder_with_a_test_set(run, tmp_path):
    digits = datasets.load_digits()
    pixels, labels = (digits.images * 15).astype(np.uint8), digits.target.astype(np.uint8)
    folder = tmp_path / "mnist"
    folder.mkdir()
    for kind, rows in (("train", slice(300, None)), ("t10k", slice(300))):
        (folder / f"{kind}-images-idx3-ubyte").write_bytes(idx(pixels[rows]))
        (folder / f"{kind}-labels-idx1-ubyte").write_bytes(idx(labels[rows]))
    printed = run("samples", "--data", str(folder), "--epochs", "1")
    assert "trained for 1 epochs" in printed
    found = figures(printed)
    known, real = torch.tensor(pixels[300:]) / 255, torch.tensor(pixels[:300]) / 255
    distance = torch.cdist(real.flatten(1), known.flatten(1)).amin(1).mean()
    assert found["real digits, held out"][1] == pytest.approx(float(distance), abs=0.0051)


def test_samples_finds_mnist(tmp_path, monkeypatch):
    find_data = load("samples").find_data
    monkeypatch.setenv("FASTVAE_MNIST", str(tmp_path))
    assert find_data() == str(tmp_path)
    monkeypatch.setenv("FASTVAE_MNIST", str(tmp_path / "missing"))
    assert find_data() == "digits"
    monkeypatch.delenv("FASTVAE_MNIST")
    beside = EXAMPLES.parents[1] / "shared" / "data" / "mnist"
    assert find_data() == (str(beside) if beside.is_dir() else "digits")


def test_samples_needs_labels(tmp_path, capsys):
    np.save(tmp_path / "images.npy", np.zeros((20, 8, 8), np.float32))
    with pytest.raises(SystemExit) as ended:
        load("samples").main(["--data", str(tmp_path / "images.npy")])
    assert ended.value.code == 2
    assert "no labels" in capsys.readouterr().err


def test_without_kl(run, tmp_path):
    found = figures(run("without_kl", "--epochs", "80"))
    with_kl, without = ({name: values[i] for name, values in found.items()} for i in (0, 1))
    assert with_kl["spread of the means"] < 1 < without["spread of the means"], "means far apart"
    assert with_kl["mean sigma"] > 0.5
    assert without["mean sigma"] < 0.03, "variances near zero"
    assert with_kl["spread / sigma"] < 1
    assert without["spread / sigma"] > 100
    assert with_kl["spread / sigma, most used code"] < 5
    assert without["spread / sigma, most used code"] > 100
    assert without["KL, nats"] > 20 * with_kl["KL, nats"]
    assert without["reconstruction, nats"] > with_kl["reconstruction, nats"] + 3, "the price of the KL"

    real_distance, real_agreement = found["held-out digits"]
    _, mixed_agreement = found["averages of two different ones"]
    for figure in ("unit noise: to a training image", "unit noise: from a held-out digit"):
        assert real_distance < with_kl[figure] < without[figure] - 0.3
    agreement = "unit noise: agreement"
    assert without[agreement] + 0.08 < with_kl[agreement] < real_agreement
    for noise in ("to a training image", "from a held-out digit"):
        assert (
            with_kl[f"unit noise: {noise}"]
            < without[f"fitted noise: {noise}"]
            < without[f"unit noise: {noise}"]
        )
    assert (
        without["unit noise: agreement"]
        < without["fitted noise: agreement"]
        < with_kl["unit noise: agreement"]
    )
    halfway = "halfway: agreement"
    assert with_kl[halfway] > without[halfway] + 0.02
    assert without[halfway] < mixed_agreement + 0.06, "hardly more than in an average of two images"
    assert_pictures(tmp_path / "pictures", "without_kl.png", "without_kl_codes.png")


def test_two_codes(run, tmp_path):
    found = figures(run("two_codes", "--epochs", "40"))
    assert found["mean of mu^2 + sigma^2"] == pytest.approx([1, 1], abs=0.3)
    summed = np.add(found["mean of mu^2"], found["mean of sigma^2"])
    assert found["mean of mu^2 + sigma^2"] == pytest.approx(summed, abs=2e-4)
    assert found["nearest mean is of the same kind"][0] > 4 * found["by chance"][0]
    assert found["means within the circle"] == pytest.approx(found["of the unit Gaussian"], abs=0.1)
    assert found["distance to the nearest mean / sigma"][0] < 0.5
    assert_pictures(tmp_path / "pictures", "two_codes.png")


def test_two_codes_without_kl(run):
    found = figures(run("two_codes", "--epochs", "40", "--beta", "0"))
    assert max(found["mean sigma"]) < 0.1
    assert min(found["mean of mu^2 + sigma^2"]) > 3
    assert found["means within the circle"][0] < 0.5
    assert found["distance to the nearest mean / sigma"][0] > 1


def test_own_model(run, tmp_path):
    printed = run("own_model", "--epochs", "8")
    found = figures(printed)
    assert found["after 8 epochs"][0] > found["untrained"][0] + 10
    elbo, recon, kl = found["after 8 epochs"]
    assert elbo == pytest.approx(recon - kl, abs=0.011)
    for name in ("z", "kl", "gradient of mu", "gradient of logvar"):
        assert found[name][0] < 2e-5, name
    assert "the same z for a batch in two parts: yes" in printed
    assert_pictures(tmp_path / "pictures", "own_model.png")


def test_own_model_is_free_of_the_trainer():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import own_model;"
        "print([name for name in sys.modules if name.startswith(('fastvae.training', 'fastvae.models'))])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(EXAMPLES)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
