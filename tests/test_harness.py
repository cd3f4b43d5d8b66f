"""The benches' harness: that what it reports is what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import harness

BENCHES = Path(__file__).resolve().parents[1] / "benches"


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


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the peak is None")
def test_the_result_comes_with_its_peak() -> None:
    result, peak = harness.with_peak(lambda: bytes(2**26))
    assert len(result) == 2**26
    if peak is None:
        pytest.skip("this system does not let a process reset its peak")
    assert peak >= 0


def test_ratios_are_taken_round_by_round() -> None:
    assert harness.ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="zip"):
        harness.ratios([1.0], [1.0, 2.0])


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "child.py"
    path.write_text(
        "import json, os, sys\n"
        "print('a line')\n"
        "if sys.argv[1] == 'fail':\n"
        "    sys.exit('what went wrong')\n"
        "print(json.dumps([sys.argv[1:], os.environ.get('FASTVAE_TEST')]))\n"
    )
    return str(path)


def test_a_child_gets_arguments_and_variables_and_gives_its_last_line(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert harness.in_child(script, "x", "y", variables={"FASTVAE_TEST": "1"}) == [["x", "y"], "1"]
    assert capsys.readouterr().out == "a line\n"
    assert harness.in_child(script, "x") == [["x"], None]


def test_a_child_that_fails_says_why(script: str) -> None:
    with pytest.raises(RuntimeError, match=r"child.py fail failed with exit code 1:\nwhat went wrong"):
        harness.in_child(script, "fail")
