"""The README's code runs as it stands."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
import torch

import fastvae
from fastvae.training import train

README = Path(__file__).parent.parent / "README.md"
pytestmark = pytest.mark.skipif(not README.exists(), reason="README.md is not beside these tests")


def code_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)


def test_two_lines_to_samples(tmp_path, monkeypatch, capsys):
    """The first block, with fewer epochs and elsewhere on disk."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fastvae, "train", functools.partial(train, epochs=2, progress=False))
    names: dict = {}
    exec(code_blocks()[0], names)
    assert names["pictures"].shape == (64, 1, 8, 8)
    assert names["codes"].shape == (64, 32)
    assert len(names["path"]) == 9
    assert "elbo" in capsys.readouterr().out
    assert torch.equal(fastvae.load("runs/mine").sample(3), names["vae"].sample(3))


def test_the_fused_step_in_a_model_of_your_own():
    """The second block, inside what it takes for granted."""
    encoder, decoder = torch.nn.Linear(6, 8), torch.nn.Linear(4, 6)
    names = {
        "encoder": encoder,
        "decoder": decoder,
        "x": torch.randn(5, 6),
        "reconstruction_loss": lambda y, x: (y - x).square().sum(-1),
    }
    exec(code_blocks()[1], names)
    names["loss"].backward()
    assert names["z"].shape == (5, 4)
    assert encoder.weight.grad.abs().sum() > 0
