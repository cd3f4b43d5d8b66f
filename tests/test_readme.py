"""The README's code runs as it stands, and its figures are those of the committed results."""

from __future__ import annotations

import csv
import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
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


# The figures

TABLE = re.compile(r"^\| work \|.*\n(?:\|.*\n)+", flags=re.MULTILINE)
LINK = re.compile(r"\((benches/results/\S+)/kernels\.md\)")
WORDS = re.compile(r"`\w+`|\d[\dx-]*\d")
# What a step of the table's candidates is called among the trainings on a device.
STEPS = {
    "eager torch": "plain torch",
    "torch.compile": "tuned torch, torch.compile",
    "fastvae": "fastvae, captured",
}


@dataclass(frozen=True)
class Figures:
    """What was measured of some work: the names and numbers in its title, and a cell for each candidate."""

    words: frozenset[str]
    kind: str
    cells: dict[str, str]


def words(title: str) -> frozenset[str]:
    return frozenset(WORDS.findall(title))


def cell(microseconds: str, speedup: str) -> str:
    return f"{float(microseconds):.0f} ({float(speedup):.2f})"


def committed(folder: Path) -> Iterator[Figures]:
    """The float32 kernels of a folder of results, and the steps of its trainings where they were measured."""
    found: dict[tuple[str, str, str], dict[str, str]] = {}
    for row in read(folder / "kernels.csv"):
        if row["dtype"] == "float32" and not row["note"]:
            key = row["comparison"], row["title"], row["pass"]
            found.setdefault(key, {})[row["candidate"]] = cell(row["median_us"], row["speedup"])
    for (_, title, kind), cells in found.items():
        yield Figures(words(title), kind, cells)
    steps: dict[str, dict[str, str]] = {}
    for row in read(folder / "training.csv"):
        if row.get("step_us"):
            steps.setdefault(row["configuration"], {})[row["candidate"]] = cell(
                row["step_us"], row["speedup"]
            )
    for configuration, own in steps.items():
        yield Figures(
            words(configuration), "step", {name: own[other] for name, other in STEPS.items() if other in own}
        )


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def tables(text: str) -> Iterator[tuple[Path, list[str], list[list[str]]]]:
    """Each table of figures: the folder that is linked first after it, its candidates and its rows."""
    for table in TABLE.finditer(text):
        header, _, *rows = (
            [cell.strip() for cell in line.strip("|").split("|")] for line in table[0].splitlines()
        )
        link = LINK.search(text, table.end())
        assert link is not None
        yield README.parent / link[1], header[1:], rows


def stale(text: str) -> list[str]:
    """The rows that say something else than the results: of the same work, or of none that was measured."""
    wrong = []
    for folder, candidates, rows in tables(text):
        known = list(committed(folder))
        for label, *cells in rows:
            kinds = [kind for kind in ("forward", "backward") if label.endswith(f", {kind}")]
            kind = "step" if "training step" in label else (kinds or ["forward and backward"])[0]
            same = [one.cells for one in known if words(label) <= one.words and one.kind == kind]
            if cells not in [[own.get(candidate, "") for candidate in candidates] for own in same]:
                wrong.append(f"{folder.name}, {label}: {cells}, measured {same}")
    return wrong


def test_the_figures_are_those_of_the_results_they_link_to():
    text = README.read_text(encoding="utf-8")
    found = list(tables(text))
    assert found
    assert all(rows for *_, rows in found)
    assert not stale(text), "\n".join(stale(text))


@pytest.mark.parametrize("change", ["time", "speed", "work"])
def test_a_figure_that_is_not_of_the_results_is_found(change):
    text = README.read_text(encoding="utf-8")
    for folder, _, rows in list(tables(text)):
        label, *cells = rows[0]
        time, speed = cells[-1].split()
        changed = {
            "time": [label, *cells[:-1], f"{int(time) + 1} {speed}"],
            "speed": [label, *cells[:-1], f"{time} ({float(speed.strip('()')) + 0.01:.2f})"],
            "work": [label.replace(max(WORDS.findall(label)[1:]), "77x77"), *cells],
        }[change]
        other = text.replace(f"| {' | '.join(rows[0])} |", f"| {' | '.join(changed)} |")
        assert other != text
        assert [line.partition(",")[0] for line in stale(other)] == [folder.name]
