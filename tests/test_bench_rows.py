"""Where a bench's rows come from and how they are written down."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

import machine
import report

CPUINFO = """\
processor\t: 0
vendor_id\t: {vendor}
cpu family\t: {family}
model\t\t: {model}
model name\t: {brand}
stepping\t: 1
power management:

processor\t: 1
vendor_id\t: other
cpu family\t: 0
model\t\t: 0
model name\t: other
stepping\t: 0
"""


def _processor(vendor: str, family: int, model: int, brand: str) -> machine.Processor:
    text = CPUINFO.format(vendor=vendor, family=family, model=model, brand=brand)
    return machine.read_cpuinfo(text, "AVX-512")


def test_a_processor_is_named_by_its_core_where_its_brand_says_little() -> None:
    processor = _processor("AuthenticAMD", 25, 17, "AMD EPYC")
    assert processor.name == "AMD EPYC (Zen 4: family 25 model 17 stepping 1, AVX-512)"
    assert processor.folder == "amd-epyc-zen4"


def test_a_processor_that_is_not_known_is_named_by_its_numbers() -> None:
    processor = _processor("GenuineIntel", 6, 143, "Intel(R) Xeon(R) Processor @ 2.60GHz")
    assert processor.vendor == "Intel"
    assert processor.generation == ""
    assert processor.name.endswith("(family 6 model 143 stepping 1, AVX-512)")
    assert processor.folder == "intel-xeon-processor-family6-model143"


def test_a_processor_without_numbers_is_named_by_its_brand() -> None:
    processor = machine.Processor("Apple M2", simd="portable kernels")
    assert processor.name == "Apple M2 (portable kernels)"
    assert processor.folder == "apple-m2"
    assert machine.read_cpuinfo("Hardware : something\n").family is None


@pytest.mark.parametrize(
    ("family", "model", "generation"),
    [
        (0x19, 0x01, "Zen 3"),  # Milan
        (0x19, 0x21, "Zen 3"),  # Vermeer
        (0x19, 0x11, "Zen 4"),  # Genoa
        (0x19, 0xA0, "Zen 4"),  # Bergamo
        (0x1A, 0x02, "Zen 5"),  # Turin
        (0x1A, 0x44, "Zen 5"),  # Granite Ridge
        (0x1A, 0x50, ""),
        (0x15, 0x02, ""),
    ],
)
def test_cores_of_amd(family: int, model: int, generation: str) -> None:
    assert _processor("AuthenticAMD", family, model, "AMD").generation == generation
    assert _processor("GenuineIntel", family, model, "Intel").generation == ""


def test_provenance_names_machine_versions_and_date() -> None:
    row = machine.provenance(["pytest"])
    assert row["pytest"] == pytest.__version__
    assert row["cpu"] == machine.processor().name != ""
    assert row["simd"] in {"portable", "avx2", "avx512"}
    assert int(str(row["cores"])) >= 1
    assert str(row["date"]).endswith("+00:00")


def test_files_away_from_their_repository_say_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVAE_COMMIT", "0123abc")
    assert machine.provenance([])["commit"] == "0123abc"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AMD EPYC 9755 128-Core Processor", "amd-epyc-9755-128-core-processor"),
        ("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", "intel-xeon-e5-2690-v4"),
        ("Apple M2", "apple-m2"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert machine.slug(name) == expected


def test_csv_has_the_columns_of_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    report.write_csv(path, [{"a": 1}, {"a": 2, "b": "x, y"}])
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": ""}, {"a": "2", "b": "x, y"}]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.md"
    report.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        report.write_text(path, "half of it\n" * 10_000 + "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("ratio", "word"), [(0.5, "slower"), (0.99, "even"), (1.0, "even"), (1.5, "faster")])
def test_verdict(ratio: float, word: str) -> None:
    assert report.verdict(ratio) == word


def test_bars_stand_on_the_line_of_one(tmp_path: Path) -> None:
    figure = report.new_figure(4, 3)
    axis = figure.subplots()
    bars = {"slow": {"a": (0.4, 0.5, 0.6)}, "fast": {"a": (1.5, 2.0, 2.5), "b": (3.0, 4.0, 5.0)}}
    report.speed_bars(axis, ["a", "b"], bars)
    spans = sorted((patch.get_y(), patch.get_y() + patch.get_height()) for patch in axis.patches)
    assert spans == [(1, 0.5), (1, 2.0), (1, 4.0)]
    for path in (tmp_path / "one.svg", tmp_path / "two.svg"):
        report.write_svg(path, figure)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
