"""The main job on real data: MNIST's files, where they are there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fastvae.data import open_data
from fastvae.training import load, train

MNIST = Path(os.environ.get("FASTVAE_MNIST", Path(__file__).parents[2] / "shared" / "data" / "mnist"))

pytestmark = pytest.mark.skipif(
    not MNIST.is_dir(), reason="no MNIST in $FASTVAE_MNIST or ../shared/data/mnist"
)


def test_mnist_is_opened_with_its_test_set():
    data = open_data(MNIST)
    assert (len(data), data.shape) == (60000, (1, 28, 28))
    assert (len(data.test), data.test.shape) == (10000, (1, 28, 28))
    assert data.value_range() == (0.0, 1.0)
    assert data.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert data.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert data.take(torch.tensor([0])).sum().item() == pytest.approx(27525 / 255, rel=0.01)


def test_one_epoch_beats_what_can_be_had_without_codes(tmp_path):
    """A model whose codes carry nothing gives each pixel its mean, at best."""
    result = train(MNIST, hidden_dims=64, latent_dim=8, epochs=1, learning_rate=3e-3, progress=False)
    data = open_data(MNIST)
    images = data.take(torch.arange(len(data)))
    tested = data.test.take(torch.arange(len(data.test)))
    mean = images.mean(0).clamp(1e-6, 1 - 1e-6)
    without_codes = (tested * mean.log() + (1 - tested) * (1 - mean).log()).flatten(1).sum(1).mean()

    (record,) = result.history
    assert record["val_elbo"] > record["elbo"], "the epoch's own average is from earlier, worse steps"
    assert record["val_elbo"] > float(without_codes) + 10
    assert result.config.data.validation_samples == 10000
    assert result.evaluate(MNIST)["elbo"] == record["val_elbo"]
    assert load(result.save(tmp_path)).evaluate(MNIST)["elbo"] == record["val_elbo"]
