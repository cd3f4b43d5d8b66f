"""The benches' harness: that what it reports is what was measured."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHES = Path(__file__).resolve().parents[1] / "benches"


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    # Dataclasses and the benches themselves look their module up by name.
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


harness = _load("harness")


class Clock:
    """Time that passes only when a candidate says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def candidate(self, name: str, seconds: float, prepare: float = 0.0, log: list[str] | None = None):
        def call(_: object) -> None:
            self.now += seconds
            if log is not None:
                log.append(name)

        def prepare_() -> None:
            self.now += prepare

        return harness.Candidate(name, call, prepare_)


@pytest.mark.parametrize("seconds", [1e-6, 1e-4, 0.5])
def test_seconds_and_speedups_are_per_call(seconds: float) -> None:
    clock = Clock()
    fast, slow = clock.candidate("base", seconds), clock.candidate("slow", 2 * seconds)
    base, other = harness.measure([fast, slow], clock=clock)
    assert base.seconds == pytest.approx([seconds] * len(base.seconds))
    assert base.speedups == pytest.approx([1.0] * len(base.speedups))
    assert other.seconds == pytest.approx([2 * seconds] * len(other.seconds))
    assert other.row()["speedup"] == 0.5
    assert base.row()["median_us"] == pytest.approx(1e6 * seconds)


def test_preparation_is_not_timed() -> None:
    clock = Clock()
    (timing,) = harness.measure([clock.candidate("only", 1e-3, prepare=10.0)], clock=clock)
    assert timing.seconds == pytest.approx([1e-3] * len(timing.seconds))


def test_short_calls_are_gathered_into_samples_that_the_clock_can_resolve() -> None:
    clock = Clock()
    short, long = harness.measure([clock.candidate("short", 1e-5), clock.candidate("long", 1.0)], clock=clock)
    assert short.calls * 1e-5 >= harness.SAMPLE_SECONDS
    assert long.calls == 1


def test_every_round_takes_every_candidate_in_changing_order() -> None:
    clock = Clock()
    log: list[str] = []
    candidates = [clock.candidate(name, 1.0, log=log) for name in "abc"]
    timings = harness.measure(candidates, seconds=1e9, rounds=20, clock=clock)
    assert [len(timing.seconds) for timing in timings] == [20, 20, 20]
    rounds = ["".join(log[start : start + 3]) for start in range(len(log) - 60, len(log), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len(set(rounds)) > 3


def test_a_ratio_compares_samples_of_one_round() -> None:
    # Each second call on this machine takes a hundred times as long as the one before it: medians over all
    # rounds would say nothing, each round has the true ratio.
    clock = Clock()
    pace = [1.0]

    def call(factor: float):
        def work(_: object) -> None:
            clock.now += factor * pace[0]

        return work

    base = harness.Candidate("base", call(3.0))
    other = harness.Candidate("other", call(1.0))
    order: list[int] = []

    def count() -> None:
        order.append(1)
        pace[0] = 100.0 if ((len(order) - 1) // 2) % 2 else 1.0

    timings = harness.measure(
        [harness.Candidate(c.name, c.call, count) for c in (base, other)], seconds=1e9, rounds=11, clock=clock
    )
    assert timings[1].speedups == pytest.approx([3.0] * 11)
    assert max(timings[1].seconds) > 50 * min(timings[1].seconds)


def test_long_calls_end_the_run_after_five_rounds() -> None:
    clock = Clock()
    (timing,) = harness.measure([clock.candidate("long", 60.0)], seconds=1.0, rounds=30, clock=clock)
    assert len(timing.seconds) == 5


def test_percentiles() -> None:
    assert harness.percentiles([float(value) for value in range(11)]) == (2.0, 5.0, 8.0)
    assert harness.percentiles([7.0]) == (7.0, 7.0, 7.0)


def test_candidates_need_names_of_their_own() -> None:
    one = harness.Candidate("one", lambda _: None)
    with pytest.raises(ValueError, match="names of their own"):
        harness.measure([one, one])
    with pytest.raises(ValueError, match="names of their own"):
        harness.measure([])


@pytest.mark.skipif(
    sys.platform != "linux", reason="only Linux can reset a process's peak of resident memory"
)
@pytest.mark.parametrize("leftover", [0, 128])
def test_peak_memory_counts_what_a_call_adds_whatever_was_used_before(leftover: int) -> None:
    # The call holds 64 MiB at its highest and returns 16 of them; what the process used earlier is not its.
    program = f"""
import sys
sys.path.insert(0, {str(BENCHES)!r})
import harness
MIB = 2**20
earlier = bytearray(b"x" * ({leftover} * MIB))
del earlier
def call(_):
    temporary = bytearray(b"x") * (48 * MIB)
    return bytearray(b"x") * (16 * MIB)
print(harness.peak_bytes(harness.Candidate("it", call)))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    if done.stdout.strip() == "None":
        pytest.skip("this system does not let a process reset its peak")
    assert int(done.stdout) == pytest.approx(64 * 2**20, abs=2**20)


def test_provenance_names_machine_versions_and_date() -> None:
    row = harness.provenance(["pytest"])
    assert row["pytest"] == pytest.__version__
    assert row["cpu"] == harness.cpu_model() != ""
    assert row["cores"] >= 1
    assert str(row["date"]).endswith("+00:00")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AMD EPYC 9755 128-Core Processor", "amd-epyc-9755-128-core-processor"),
        ("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", "intel-xeon-e5-2690-v4"),
        ("Apple M2", "apple-m2"),
    ],
)
def test_slug(name: str, expected: str) -> None:
    assert harness.slug(name) == expected


def test_csv_has_the_columns_of_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "new" / "rows.csv"
    harness.write_csv(path, [{"a": 1}, {"a": 2, "b": "x, y"}])
    with path.open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"a": "1", "b": ""}, {"a": "2", "b": "x, y"}]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.md"
    harness.write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        harness.write_text(path, "half of it\n" * 10_000 + "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("ratio", "word"), [(0.5, "slower"), (0.99, "even"), (1.0, "even"), (1.5, "faster")])
def test_verdict(ratio: float, word: str) -> None:
    assert harness.verdict(ratio) == word


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return _load("bench_latent")


def test_bench_latent_writes_every_row_with_its_machine(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Without the compiler, which takes half a minute; one candidate that cannot run instead.
    def no_compiler() -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setitem(bench.STEPS, "torch.compile", no_compiler)
    threads = torch.get_num_threads()
    try:
        options = ["--quick", "--sizes", "128x2", "--threads", "1", "--output-dir", str(tmp_path)]
        assert bench.main(options) == 0
    finally:
        torch.set_num_threads(threads)
    with (tmp_path / "latent.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    names = ["eager torch", "analytic backward", "fastvae", "torch.compile"]
    assert [(row["pass"], row["candidate"]) for row in rows] == [
        (kind, name) for kind in ("forward", "backward", "both") for name in names
    ]
    for row in rows:
        assert row["torch"] == torch.__version__
        assert all(
            row[column] for column in ("date", "cpu", "cores", "system", "python", "fastvae", "threads")
        )
        if row["candidate"] == "torch.compile":
            assert row["note"] == "not available: no C++ compiler"
            assert row["median_us"] == ""
        else:
            assert float(row["p20_us"]) <= float(row["median_us"]) <= float(row["p80_us"])
            assert row["note"] == ""
    table = (tmp_path / "latent.md").read_text()
    assert table.count("not available") == 3
    assert "<svg" in (tmp_path / "latent.svg").read_text()


def test_bench_latent_does_not_time_what_is_wrong(bench: ModuleType) -> None:
    def halved(mu: torch.Tensor, logvar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z, kl = bench.eager(mu, logvar)
        return z, kl / 2

    def still(mu: torch.Tensor, logvar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return mu + 0 * logvar, bench.eager(mu, logvar)[1]

    for step in (bench.eager, bench.analytic, bench.fused):
        bench.check("right", step)
    with pytest.raises(AssertionError, match="halved"):
        bench.check("halved", halved)
    with pytest.raises(AssertionError, match="noise"):
        bench.check("still", still)
