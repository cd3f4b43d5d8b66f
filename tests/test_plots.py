"""The pictures of a run: which there are, what they show, and how they reach the disk."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from fastvae.data import open_data
from fastvae.plots import canvas, write_pictures
from fastvae.plots.choice import busiest_codes, spread_rows
from fastvae.plots.curves import draw_curves
from fastvae.plots.latent import draw_latent
from fastvae.plots.mosaic import as_pictures, is_image, mosaic
from fastvae.plots.samples import draw_samples
from fastvae.training import train

ALWAYS = ["curves.png", "reconstructions.png", "samples.png", "traversal.png"]


def trained(data: object, **options):
    settings = {"latent_dim": 3, "hidden_dims": 8, "epochs": 2, "validation": None} | options
    return train(data, progress=False, **settings), open_data(data)


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def frame() -> pd.DataFrame:
    return pd.DataFrame(random(40, 3), columns=["age", "height", "weight"])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(random(30, 4, 5), id="two axes"),
        pytest.param(random(30, 3, 4, 5), id="colour"),
        pytest.param(random(30, 4, 5, 3), id="colour last"),
        pytest.param(random(30, 2, 4, 5), id="two channels"),
        pytest.param(random(30, 100), id="signal"),
        pytest.param(frame(), id="table"),
        pytest.param(random(30, 1), id="one value"),
        pytest.param(random(2, 1, 1, 6), id="flat image"),
        pytest.param(random(1, 2, 2, 2, 2), id="one sample of four axes"),
        pytest.param(np.zeros((5, 4, 4), np.float32), id="constant"),
    ],
)
def test_data_of_every_kind_has_pictures(data, tmp_path):
    result, opened = trained(data)
    paths = write_pictures(result, opened, tmp_path)
    assert sorted(path.name for path in paths) == ALWAYS
    assert sorted(path.name for path in tmp_path.iterdir()) == ALWAYS, "and no temporary file is left"
    for path in paths:
        with Image.open(path) as image:
            image.load()
            assert min(image.size) >= 50


@pytest.mark.parametrize("options", [{}, {"variational": False}, {"validation": 0.2}])
def test_two_codes_have_a_plane(options, tmp_path):
    result, data = trained("digits", latent_dim=2, epochs=1, **options)
    assert tmp_path / "latent.png" in write_pictures(result, data, str(tmp_path))
    assert tmp_path / "latent.png" in write_pictures(result, "digits", tmp_path), "of whatever data there is"


def test_the_plane_has_an_ellipse_of_two_sigma_per_sample():
    """Of the pixels the encoder knows: here, those cut at a threshold."""
    result, _ = trained("digits", latent_dim=2, epochs=1, binarize="threshold")
    data, _ = open_data("digits").split(0.9, seed=0)
    axes = draw_latent(result, data).axes[0]
    by_class = [c for c in axes.collections if type(c).__name__ == "EllipseCollection"]
    widths = np.concatenate([ellipses.get_widths() for ellipses in by_class])
    centers = np.concatenate([ellipses.get_offsets() for ellipses in by_class])
    with torch.no_grad():
        mu, logvar = result.model.posterior((data.take(torch.arange(len(data))) > 0.5).float())
    order = data.labels.sort(stable=True).indices
    assert len(by_class) == 10
    np.testing.assert_allclose(centers, mu[order], atol=1e-5)
    np.testing.assert_allclose(widths, 4 * (0.5 * logvar[order, 0]).exp(), rtol=1e-4)


def test_an_earlier_picture_stays_whole_until_the_new_one_is(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    canvas.save(canvas.new_figure(1, 1), path)
    before = path.read_bytes()
    figure = canvas.new_figure(2, 2)

    def fail(file: Path, **_: object) -> None:
        file.write_bytes(b"half a picture")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fail)
    with pytest.raises(OSError, match="disk full"):
        canvas.save(figure, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_drawing_does_without_the_global_state_of_pyplot(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import raises
    result, data = trained(random(30, 4, 5), latent_dim=2)
    assert len(write_pictures(result, data, tmp_path)) == 5


def test_without_matplotlib_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "fastvae\[plots\]"'):
        canvas.new_figure(1, 1)


def test_a_run_that_was_interrupted_at_once_has_no_curves(tmp_path):
    result, data = trained(random(30, 4, 5))
    result.history.clear()
    assert "curves.png" not in [path.name for path in write_pictures(result, data, tmp_path)]


def record(epoch: int, elbo: float, val_elbo: float | None = None) -> dict[str, float | None]:
    held_out = {"val_elbo": val_elbo, "val_recon": val_elbo, "val_kl": 0.0 if val_elbo else None}
    return {"epoch": epoch, "elbo": elbo, "recon": elbo, "kl": 1.0, **held_out}


def test_curves_show_training_and_held_out_without_gaps_for_what_is_not_finite():
    history = [record(1, -9.0, -8.0), record(2, float("nan"), -7.0), record(3, -5.0)]
    axes = draw_curves(history).axes[0]
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines == {"training": [[1, -9], [3, -5]], "held out": [[1, -8], [2, -7]]}


def test_a_disastrous_first_epoch_does_not_flatten_the_curves():
    history = [record(1, -1e6)] + [record(epoch, -100 + epoch) for epoch in range(2, 40)]
    low, high = draw_curves(history).axes[0].get_ylim()
    assert -105 < low < -98
    assert -61 < high < -55


def test_tables_show_the_distribution_of_every_column():
    result, data = trained(frame())
    assert [axes.get_title() for axes in draw_samples(result, data).axes] == ["age", "height", "weight"]


def test_rows_are_spread_over_a_sorted_data_set():
    data = open_data(np.zeros((1000, 1)))
    assert spread_rows(data, 5).tolist() == [0, 249, 499, 749, 999]
    assert spread_rows(data, 5000).tolist() == list(range(1000))
    assert spread_rows(open_data(np.zeros((1, 1))), 5).tolist() == [0]


def test_the_busiest_codes_come_first(monkeypatch):
    result, data = trained(random(30, 4, 5))
    means = torch.randn(30, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0, 0.1])
    monkeypatch.setattr(result, "encode", lambda _: means)
    assert busiest_codes(result, data) == [1, 0, 2]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        *(pytest.param(shape, True) for shape in [(8, 8), (1, 8, 8), (3, 8, 8), (8, 8, 3), (5, 8, 8)]),
        *(pytest.param(shape, False) for shape in [(5,), (1, 1, 8), (8, 1), (2, 2, 2, 2), ()]),
    ],
)
def test_what_is_an_image(shape, expected):
    assert is_image(shape) is expected


def test_pictures_are_scaled_to_the_range_of_the_data():
    x = torch.tensor([[[-1.0, 0.0], [3.0, 99.0]]])
    assert as_pictures(x, (-1, 3))[0, ..., 0].tolist() == [[0, 0.25], [1, 1]]
    channels = torch.stack([torch.zeros(2, 2), torch.ones(2, 2), torch.zeros(2, 2)])
    assert as_pictures(channels[None], (0, 1))[0, 0, 0].tolist() == [0, 1, 0]
    assert as_pictures(channels[None, :2], (0, 1))[0, 0, 0].tolist() == [0.5, 0.5, 0.5]


def test_a_mosaic_keeps_every_pixel():
    pictures = as_pictures(torch.rand(5, 4, 6, generator=torch.Generator().manual_seed(0)), (0, 1))
    tiled = mosaic(pictures, 3, gap=2, scale=2)
    assert tiled.shape == (2 * 8 + 2, 3 * 12 + 2 * 2, 3)
    assert (tiled[10:18:2, 14:26:2] == pictures[4]).all()
    assert (tiled[11:18:2, 15:26:2] == pictures[4]).all()
    assert (tiled[8:10] == 1).all()
    assert (tiled[10:, 28:] == 1).all(), "the last row is filled up with white"
