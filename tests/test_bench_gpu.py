"""The benches of a CUDA device, without one: their arithmetic, their candidates, what they write down."""

from __future__ import annotations

import csv
import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import bench_gpu
import bench_latent
import device
import harness
import kernels.likelihood
import noise_gpu
import report
import small_gpu
from comparison import Target, UnavailableError
from gpu import captured, latent, likelihood, measuring, training
from gpu.measuring import Bandwidth, Timed, Work

BENCHES = Path(__file__).resolve().parents[1] / "benches"
CPU = torch.device("cpu")
H200 = device.Device("NVIDIA H200", 141 * 2**30, "9.0", "580.1", "13.0")
BASH = pytest.mark.skipif(os.name == "nt" or shutil.which("bash") is None, reason="needs bash")


def on_a_device(test: Callable[..., None]) -> Callable[..., None]:
    missing = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
    return pytest.mark.gpu(missing(test))


def _work(**options: object) -> Work:
    candidates = dict.fromkeys(("eager torch", "fastvae", "copy"), _build)
    return Work("one", "something", "forward", candidates, **options)  # type: ignore[arg-type]


def _build(name: str) -> harness.Candidate:
    return harness.Candidate(name, lambda _: None)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that is the CPU, with a ``do_bench`` whose times go up by a millisecond each."""
    times = itertools.count(1)

    def do_bench(call: Callable[[], object]) -> list[float]:
        call()
        now = float(next(times))
        return [now - 0.5, now, now + 0.5]

    for module in (measuring, latent, likelihood, captured):
        monkeypatch.setattr(module, "cuda", lambda: CPU)
    monkeypatch.setattr(measuring, "do_bench", do_bench)
    monkeypatch.setattr(measuring, "LOOP_SECONDS", 1e-4)
    monkeypatch.setattr(device, "problem", lambda: "")
    monkeypatch.setattr(device, "current", lambda: H200)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**30, 2**31))


def _no_compiler(*_: object) -> latent.Step:
    raise RuntimeError("no compiler")


# --------------------------------------------------------------------------------------------- the device


def test_a_device_is_named_by_what_it_calls_itself() -> None:
    assert H200.folder == "nvidia-h200"
    assert device.Device("NVIDIA H100 80GB HBM3", 0, "", "", "").folder == "nvidia-h100-80gb-hbm3"


def test_provenance_has_the_device_before_the_machine() -> None:
    row = {**device.provenance(H200, ["torch", "fastvae"]), "triton": "3.6.0"}
    assert list(row)[:5] == ["gpu", "gpu_memory_gib", "capability", "driver", "cuda"]
    assert row["torch"] == torch.__version__
    assert device.source(row).startswith(
        "NVIDIA H200 (141.0 GiB, capability 9.0, driver 580.1, CUDA 13.0, Triton 3.6.0); "
    )


def test_without_a_device_nothing_is_done_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for main in (bench_gpu.main, noise_gpu.main, small_gpu.main, device.main):
        assert main([]) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith(f"error: no CUDA device: torch {torch.__version__} (built ")
        assert printed.out == ""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda _: None)
    assert bench_gpu.main([]) == 2
    assert "triton is missing" in capsys.readouterr().err


def test_help_is_there_without_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    for main in (bench_gpu.main, noise_gpu.main, small_gpu.main, device.main):
        with pytest.raises(SystemExit) as stopped:
            main(["--help"])
        assert stopped.value.code == 0
        assert "python benches/" in capsys.readouterr().out


def test_the_script_ends_with_the_code_that_it_says() -> None:
    # No device is visible to it, wherever the test runs.
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, str(BENCHES / "bench_gpu.py"), "--quick"]
    done = subprocess.run(command, env=hidden, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: no CUDA device")


def test_a_folder_without_images_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_gpu.main(["--data", str(tmp_path)])
    assert "has no train-images-idx3-ubyte" in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["--samples", "--rounds", "--epochs"])
def test_numbers_below_one_are_refused(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        bench_gpu.main([argument, "0"])
    assert f"{argument} must be at least 1, got 0" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- the arithmetic


def test_the_bytes_are_those_that_have_to_move() -> None:
    # mu and logvar in, z out, a float32 KL for each row; backward reads three and writes two.
    assert latent.moved(10, 7, torch.float32, "forward") == 3 * 70 * 4 + 10 * 4
    assert latent.moved(10, 7, torch.float32, "backward") == 5 * 70 * 4 + 10 * 4
    assert latent.moved(10, 7, torch.bfloat16, "backward") == 5 * 70 * 2 + 10 * 4
    logits = 50 * 128 * 784 * 4
    assert 0 < likelihood.MOVED - 3 * logits < logits // 50


def test_the_sizes_are_those_that_are_asked_for() -> None:
    elements = {size: rows * columns for size, (rows, columns) in latent.SIZES.items()}
    assert elements == {"16M": 2**24, "16M-narrow": 2**24, "256M": 2**28}
    assert captured.SHAPE == (128, 32)


def test_a_fraction_is_the_copys_time_over_ones_own() -> None:
    timed = {
        "eager torch": Timed([(7.0, 8.0, 9.0), (70.0, 80.0, 90.0), (7.0, 8.0, 9.0)], 8000.0),
        "fastvae": Timed([(1.0, 2.0, 3.0), (10.0, 20.0, 30.0), (3.0, 4.0, 5.0)], 2000.0),
        # The same machine in each round: ratios are taken within them.
        "copy": Timed([(1.0, 1.5, 2.0), (14.0, 15.0, 16.0), (2.0, 3.0, 4.0)], 1500.0),
    }
    work = _work(targets=lambda _: (Bandwidth(0.7), Target(3), Bandwidth(0.8)), moved=8_000_000)
    assert measuring.rows(work, dict(reversed(timed.items())), {}) == measuring.rows(work, timed, {})
    eager, fused, copy = measuring.rows(work, timed, {})
    assert eager["speedup"] == 1
    assert eager["target"] == "" == copy["target"]
    assert fused["median_us"] == 4000
    assert (fused["p20_us"], fused["p80_us"]) == (3000, 5000)
    assert fused["speedup"] == 4
    assert fused["gb_per_s"] == 2.0
    assert fused["copy_fraction"] == 0.75
    assert copy["copy_fraction"] == 1
    assert fused["measured"] == "0.75; 4.00; 0.75"
    assert fused["reached"] == "reached; reached; not reached"
    assert fused["target"].startswith("at least 70 % of the copy's bandwidth; at least 3x eager torch; ")


def test_what_is_asked_of_each() -> None:
    def asked(work: Work) -> list[str]:
        return [target.text() for target in work.targets(None)]  # type: ignore[arg-type]

    works = bench_gpu.COMPARISONS
    for size, dtype in itertools.product(("16M", "256M"), ("float32", "bf16")):
        assert asked(works[f"forward-{size}-{dtype}"]) == [
            "at least 70 % of the copy's bandwidth",
            "at least 3x eager torch",
            "at least 1.5x torch.compile",
        ]
        assert asked(works[f"backward-{size}-{dtype}"]) == [
            "at least 60 % of the copy's bandwidth",
            "at least 2x eager torch",
        ]
    assert asked(works["bernoulli"]) == ["at least 3x eager torch"]
    assert asked(works["captured"]) == ["at least 5x eager torch"]
    assert [target.of for target in works["captured"].targets(None)] == ["fastvae, captured"]  # type: ignore[arg-type]
    assert [(key, [t.text() for t in targets]) for key, targets in training.ASKED.items()] == [
        ("400-20-batch-128", ["at least 5x plain torch"]),
        ("200-200-50-batch-20", ["at most 60 us a step"]),
    ]


def test_what_does_not_fit_is_skipped_with_the_reason() -> None:
    assert _work(needs=2**30).lacks(2**30) == ""
    assert _work(needs=34 * 2**30).lacks(2**34) == "skipped: needs some 34 GiB, and 16 GiB are free"
    # All sizes fit an H100.
    assert all(work.lacks(78 * 2**30) == "" for work in bench_gpu.COMPARISONS.values())


def test_what_runs_out_of_memory_is_a_row_that_says_so(here: None) -> None:
    def large(_: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    def build(name: str) -> harness.Candidate:
        return harness.Candidate(name, large)

    work = Work("one", "", "forward", {"eager torch": build, "fastvae": _build})
    eager, fused = measuring.measure(work, 2)
    assert eager["note"] == "not available: out of memory"
    assert "median_us" not in eager
    assert fused["note"] == ""
    assert fused["rounds"] == 2

    def at_once(_: str) -> harness.Candidate:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(UnavailableError, match="out of memory"):
        measuring.in_memory(at_once)("x")


def test_candidates_take_turns() -> None:
    log: list[str] = []

    def candidate(name: str) -> harness.Candidate:
        return harness.Candidate(name, lambda _: log.append(name))

    def do_bench(call: Callable[[], object]) -> list[float]:
        call()
        return [1.0, 2.0, 3.0]

    timed, missing = measuring.time_each([candidate(name) for name in "abc"], 6, do_bench)
    assert missing == {}
    turns = ["".join(log[start : start + 3]) for start in range(0, 18, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in turns)
    assert len(set(turns)) > 1
    assert timed["a"].quantiles == [0.001, 0.002, 0.003]
    assert timed["a"].medians == [0.002] * 6


def test_the_time_in_a_loop_is_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def call(_: object) -> None:
        now[0] += 1e-4

    monkeypatch.setattr(measuring.time, "perf_counter", lambda: now[0])
    assert measuring.in_a_loop(harness.Candidate("it", call)) == pytest.approx(100)


# ------------------------------------------------------------------------------------------- the candidates


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_latent_steps_are_checked_and_called_again(kind: str, dtype: torch.dtype) -> None:
    tensors = latent.inputs(3 * latent.CHECKED, 40, dtype, CPU)
    for step in (bench_latent.eager, bench_latent.fused):
        candidate = latent.candidate("right", step, kind, tensors)
        for _ in range(2):
            candidate.call(candidate.prepare())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wrong_latent_step_is_not_timed(dtype: torch.dtype) -> None:
    def halved(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = bench_latent.fused(mu, logvar)
        return z, kl / 2

    def last_row(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = bench_latent.fused(mu, logvar)
        return z, torch.cat((kl[:-1], 2 * kl[-1:]))

    def still(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        return mu + 0 * logvar, bench_latent.fused(mu, logvar)[1]

    def detached(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = bench_latent.fused(mu, logvar)
        return z.detach() + 0 * logvar, kl

    tensors = latent.inputs(200, 40, dtype, CPU)
    wrong = {"halved, KL": halved, "last row, KL": last_row, "still: the noise": still, "detached": detached}
    for name, step in wrong.items():
        with pytest.raises(AssertionError, match=name):
            latent.candidate(name.split(",")[0].split(":")[0], step, "forward", tensors)


def test_likelihoods_are_checked_at_their_size(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likelihood, "SAMPLES", 2)
    for log_prob in (kernels.likelihood.eager, kernels.likelihood.fused):
        candidate = likelihood.build(lambda own=log_prob: own)("right")  # type: ignore[misc]
        candidate.call(candidate.prepare())

    def scaled(logits: Tensor, target: Tensor) -> Tensor:
        return 1.001 * kernels.likelihood.eager(logits, target)

    with pytest.raises(AssertionError, match="scaled, log-probability"):
        likelihood.candidate("scaled", scaled, CPU)


def _replayed(work: Callable[[], captured.Results]) -> captured.Captured:
    """What a graph does, without one: the work is done again, its results stay where they are."""
    for _ in range(3):
        work()
    results = tuple(torch.empty_like(result) for result in work())

    def replay() -> None:
        for kept, new in zip(results, work(), strict=True):
            kept.copy_(new)

    return captured.Captured(replay, results, work)


def test_captured_steps_are_checked(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captured, "capture", _replayed)
    for candidate in (
        captured.plain("it", bench_latent.eager),
        captured.replayed("it", bench_latent.eager),
        captured.counted("it"),
    ):
        candidate.call(candidate.prepare())

    def one_seed(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        return captured.functional.reparametrize_kl(mu, logvar, seed=3)

    with pytest.raises(AssertionError, match="two replays have the same noise"):
        captured.replayed("it", one_seed)


def test_a_count_on_the_device_gives_the_noise_of_its_step(
    here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(captured.Counted):
        def __call__(self, mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
            self.count.add_(1)
            outputs = super().__call__(mu, logvar)
            self.count.sub_(1)
            return outputs

    monkeypatch.setattr(captured, "capture", _replayed)
    monkeypatch.setattr(captured, "Counted", Late)
    with pytest.raises(AssertionError, match="it: step 6: "):
        captured.counted("it")


@on_a_device
def test_what_is_captured_is_replayed_on_a_device() -> None:
    for candidate in (
        captured.plain("it", bench_latent.fused),
        captured.replayed("it", bench_latent.eager),
        captured.counted("it"),
    ):
        # What a replay reads has to be there still.
        measuring.release()
        low, middle, high = measuring.do_bench(lambda own=candidate: own.call(None))  # type: ignore[misc]
        assert 0 < low <= middle <= high
        assert measuring.in_a_loop(candidate) > 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_in_a_graph_the_noise_is_that_of_a_count(kind, monkeypatch):
    recorded = []

    def in_a_graph(make: Callable[[str], harness.Candidate]) -> Callable[[str], harness.Candidate]:
        recorded.append(make)
        return make

    monkeypatch.setattr(latent, "in_a_graph", in_a_graph)
    monkeypatch.setitem(latent.SIZES, "small", (3 * latent.CHECKED, 1000))
    work = latent.work("small", "float32", kind, graph=True)
    assert len(recorded) == len(work.candidates)
    made = work.candidates["fastvae"]("fastvae")
    mu, logvar, grad_z, weight = latent.inputs(*latent.SIZES["small"], torch.float32, CPU)

    def wanted(step: int) -> tuple[Tensor, ...]:
        seed = captured.noise.fold_in(captured.SEED, step)
        outputs = captured.functional.reparametrize_kl(mu, logvar, seed=seed)
        return outputs if kind == "forward" else torch.autograd.grad(outputs, (mu, logvar), (grad_z, weight))

    # The first step is the one that is checked, whose graph a backward keeps.
    for step in (1, 2) if kind == "forward" else (0, 0):
        for actual, expected in zip(made.call(None), wanted(step), strict=True):
            assert torch.equal(actual, expected)


@on_a_device
@pytest.mark.parametrize("kind", ["forward", "backward"])
def test_a_comparison_is_measured_on_a_device(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setitem(latent.SIZES, "small", (3 * latent.CHECKED, 1000))
    monkeypatch.setitem(latent.STEPS, "torch.compile", _no_compiler)
    rows = {row["candidate"]: row for row in measuring.measure(latent.work("small", "bf16", kind), 1)}
    assert rows["torch.compile"]["note"] == "not available: no compiler"
    assert all(rows[name]["gb_per_s"] > 0 for name in ("eager torch", "fastvae", "copy"))


# ------------------------------------------------------------------------------------------------- trainings


def test_every_way_to_train_reaches_the_same_bound(here: None) -> None:
    pixels = bench_gpu.load(None, 2048)[0]
    configuration = training.Configuration((32,), 4, 32)
    ways = (training.train_plain, training.tuned(), training.fused())
    trained = [train(pixels, configuration, 2, CPU) for train in ways]
    for one in trained:
        assert len(one.seconds) == 2
        assert min(one.seconds) > 0
        training.check("it", one, trained[0])
    with pytest.raises(AssertionError, match="worse: its bound is -220"):
        training.check("worse", training.Trained([1.0], -220.0), training.Trained([1.0], -200.0))


def _trainings(monkeypatch: pytest.MonkeyPatch, **seconds: Sequence[float]) -> None:
    def way(name: str) -> training.Train:
        def train(*_: object) -> training.Trained:
            if name not in seconds:
                raise RuntimeError("no such device")
            return training.Trained(seconds[name], -100.0)

        return train

    monkeypatch.setattr(training, "TRAININGS", {name: way(key) for key, name in WAYS.items()})
    monkeypatch.setattr(training, "QUICK", tuple(WAYS.values()))


WAYS = {"plain": training.PLAIN, "captured": training.CAPTURED, "compiled": training.TUNED_COMPILED}


def test_the_first_epoch_does_not_count(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _trainings(monkeypatch, plain=[90.0, 6.0, 6.0, 60.0], captured=[50.0, 1.0, 1.0, 10.0])
    pixels = bench_gpu.load(None, 50)[0]
    options = {"epochs": 3, "chosen": list(WAYS.values()), "data": "synthetic", "device": CPU}
    plain, fused, compiled = training.measure("400-20-batch-128", pixels, **options)  # type: ignore[arg-type]
    assert plain["steps"] == 1
    assert fused["step_us"] == 1e6
    assert fused["epoch_seconds"] == 1.0
    assert fused["images_per_second"] == 50.0
    assert fused["speedup"] == 6
    assert (fused["measured"], fused["reached"]) == ("6.00", "reached")
    assert compiled["note"] == "failed: no such device"
    assert not bench_gpu.failed(compiled)
    _, fused, _ = training.measure("200-200-50-batch-20", pixels, **options)  # type: ignore[arg-type]
    # Three steps of an epoch that takes a second.
    assert (fused["measured"], fused["reached"]) == ("333333.33", "not reached")


def test_a_step_is_asked_for_in_microseconds() -> None:
    target = training.Within(60)
    timing = harness.Timing(training.CAPTURED, [59e-6, 60e-6, 90e-6], [])
    assert target.measured({training.CAPTURED: timing}) == pytest.approx(60)
    assert target.reached(60.0)
    assert not target.reached(60.1)
    assert target.measured({}) is None


# ---------------------------------------------------------------------------------------------- the report


@pytest.fixture
def tiny(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tensors, no compiler, graphs that are none, one comparison too large and one that is wrong."""
    monkeypatch.setitem(latent.SIZES, "tiny", (130, 8))
    monkeypatch.setitem(latent.SIZES, "large", (2**20, 2**10))
    monkeypatch.setitem(latent.STEPS, "torch.compile", _no_compiler)
    monkeypatch.setattr(captured, "capture", _replayed)
    monkeypatch.setattr(captured.passes, "compiled", _no_compiler)
    works = [latent.work("tiny", "bf16", kind) for kind in ("forward", "backward")]
    works += [captured.COMPARISONS[0], latent.work("large", "float32", "forward"), _work()]
    monkeypatch.setattr(bench_gpu, "COMPARISONS", {work.name: work for work in works})
    _trainings(monkeypatch, plain=[9.0, 6.0, 6.0], captured=[5.0, 1.0, 1.0])


def _rows(path: Path) -> Iterator[dict[str, str]]:
    with path.open(newline="") as file:
        yield from csv.DictReader(file)


def test_everything_is_written_with_its_device(tiny: None, tmp_path: Path) -> None:
    options = ["--samples", "100", "--rounds", "2", "--epochs", "2", "--output-dir", str(tmp_path)]
    assert bench_gpu.main(options) == 0
    rows = list(_rows(tmp_path / "kernels.csv"))
    names = ["eager torch", "torch.compile", "fastvae", "copy"]
    assert [row["candidate"] for row in rows[:4]] == names
    for row in rows:
        assert (row["gpu"], row["driver"], row["cuda"]) == ("NVIDIA H200", "580.1", "13.0")
        assert all(row[column] for column in ("date", "cpu", "torch", "triton", "python", "fastvae"))
    by_name = {(row["comparison"], row["candidate"]): row for row in rows}
    fused = by_name["backward-tiny-bf16", "fastvae"]
    assert float(fused["p20_us"]) < float(fused["median_us"]) < float(fused["p80_us"])
    assert int(fused["bytes"]) == latent.moved(130, 8, torch.bfloat16, "backward")
    assert fused["copy_fraction"]
    assert fused["target"] == "at least 60 % of the copy's bandwidth; at least 2x eager torch"
    compiled = by_name["forward-tiny-bf16", "torch.compile"]
    assert compiled["note"] == "not available: no compiler"
    assert by_name["forward-tiny-bf16", "fastvae"]["reached"].endswith("; not measured")
    assert by_name["captured", "fastvae, captured"]["target"] == "at least 5x eager torch"
    large = by_name["forward-large-float32", "fastvae"]
    assert large["note"] == "skipped: needs some 128 GiB, and 1 GiB are free"
    text = (tmp_path / "kernels.md").read_text()
    assert "`reparametrize_kl`, 130x8; forward, bf16, torch.compile: not available: no compiler" in text
    assert "skipped: needs some 128 GiB" in text
    assert "NVIDIA H200 (141.0 GiB, " in text
    rows = list(_rows(tmp_path / "training.csv"))
    assert [row["candidate"] for row in rows] == 2 * list(WAYS.values())
    assert rows[1]["reached"] == "reached"
    assert "failed: no such device" in (tmp_path / "training.md").read_text()
    for name in ("kernels.svg", "training.svg"):
        assert "<svg" in (tmp_path / name).read_text()


def test_parts_and_names_are_chosen(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_gpu.main(["--part", "kernels", "--only", "captured"]) == 0
    printed = capsys.readouterr().out
    assert "the latent step, 128x32" in printed
    assert "tiny" not in printed
    assert "epoch" not in printed
    assert bench_gpu.main(["--part", "trainings", "--quick", "--output-dir", str(tmp_path)]) == 0
    assert sorted(path.suffix for path in tmp_path.iterdir()) == [".csv", ".md", ".svg"]


def test_a_look_is_only_printed(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    assert bench_gpu.main(["--quick", "--samples", "100"]) == 0
    assert "# The kernels on a CUDA device" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(bench_gpu, "SAMPLES", 100)
    assert bench_gpu.main([]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["nvidia-h200"]


def test_after_what_is_wrong_it_goes_on_and_fails_at_the_end(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(name: str) -> harness.Candidate:
        raise AssertionError(f"{name}: wrong")

    broken = Work("broken", "a broken one", "forward", {"eager torch": _build, "fastvae": wrong})
    works = bench_gpu.COMPARISONS
    monkeypatch.setattr(bench_gpu, "COMPARISONS", {"broken": broken, **works})
    assert bench_gpu.main(["--part", "kernels", "--output-dir", str(tmp_path)]) == 1
    assert "AssertionError" in capsys.readouterr().err
    rows = list(_rows(tmp_path / "kernels.csv"))
    assert [row["note"] for row in rows[:2]] == ["failed: fastvae: wrong"] * 2
    assert {row["comparison"] for row in rows} == {"broken", *works}


def test_a_run_that_is_cut_off_leaves_what_it_has() -> None:
    written: list[int] = []

    def parts() -> Iterator[list[dict[str, object]]]:
        yield [{"a": 1}]
        yield [{"a": 2}, {"a": 3}]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        bench_gpu.collect(parts(), {"gpu": "x"}, lambda rows: written.append(len(rows)))
    assert written == [1, 3]


def test_without_matplotlib_there_is_no_picture(
    tiny: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    options = ["--part", "kernels", "--only", "captured", "--output-dir", str(tmp_path)]
    assert bench_gpu.main(options) == 0
    assert "no picture: matplotlib.figure is not installed" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kernels.csv", "kernels.md"]


# ----------------------------------------------------------------------------------------------- the noise


@pytest.mark.parametrize("draws", [1, 4, 12_345, 10**8])
def test_the_parts_of_the_noise_are_as_many_draws_as_asked_for(draws: int) -> None:
    parts = list(noise_gpu.parts(draws))
    assert sum(part.rows * part.columns for part in parts) == draws
    assert all(part.rows * part.columns <= noise_gpu.CHUNK for part in parts)
    assert len({part.seed for part in parts}) == len(parts)
    if draws == 10**8:
        assert {part.columns for part in parts} >= set(noise_gpu.WIDTHS)
        assert any(part.row_offset < 2**32 < part.row_offset + part.rows for part in parts)


def test_the_noise_of_one_device_is_its_own() -> None:
    found = noise_gpu.compare(20_000, CPU)
    assert list(found) == ["normals", "uniforms", "seeds", "orders"]
    assert found["normals"].draws == 20_000
    assert not any(one.differing or one.bits or one.ulps for one in found.values())


def test_differences_are_counted_in_draws_bits_and_ulps() -> None:
    one = torch.tensor([1.0, 2.0, -1.0, 0.0, 5.0])
    other = one.clone()
    other.view(torch.int32)[0] += 3
    other.view(torch.int32)[2] += 1
    other[3] = -0.0
    difference = noise_gpu.Difference()
    difference.add(one, other)
    difference.add(one, one)
    assert (difference.draws, difference.differing) == (10, 3)
    assert difference.bits == 2 + 1 + 1
    assert difference.ulps == 3
    # Across zero: the smallest numbers of either sign are two apart.
    difference.add(torch.tensor([1e-45]), torch.tensor([-1e-45]))
    assert difference.ulps == 3
    whole = noise_gpu.Difference()
    whole.add(torch.tensor([-1, 5]), torch.tensor([0, 5]))
    assert (whole.differing, whole.bits, whole.ulps) == (1, 64, 0)


@pytest.mark.parametrize("changed", [False, True])
def test_one_bit_is_enough_to_fail(
    here: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *, changed: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    original = noise_gpu.compare

    def compare(draws: int, _: torch.device) -> dict[str, noise_gpu.Difference]:
        found = original(draws, CPU)
        if changed:
            found["uniforms"].add(torch.tensor([1.0]), torch.tensor([1.0 + 2**-23]))
        return found

    monkeypatch.setattr(noise_gpu, "compare", compare)
    assert noise_gpu.main(["--draws", "1000"]) == int(changed)
    printed = capsys.readouterr().out
    assert "normals           1000 draws: 0 differ, in 0 bits, by 0 ulps at most" in printed
    assert ("uniforms          1001 draws: 1 differ, in 1 bits, by 1 ulps at most" in printed) is changed


# ---------------------------------------------------------------------------------------- the small cases


def test_the_small_cases_have_every_operation(capsys: pytest.CaptureFixture[str]) -> None:
    from fastvae import functional, noise

    called = {name.split(",")[0] for name, _, _ in small_gpu.cases()}
    assert called == {"layer"} | {name for name in functional.__all__ if name != "Reduction"} | {
        f"noise.{name}" for name in noise.__all__ if name != "Seed"
    }
    assert small_gpu.run(CPU) == 0
    assert capsys.readouterr().out.endswith(" small cases and a training on cpu: 0 wrong\n")


def test_a_wrong_small_case_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = itertools.count()

    def drifts(x: Tensor) -> Tensor:
        return x * (1 + 1e-3 * next(calls))

    assert small_gpu.check("it", torch.exp, (torch.rand(3, 5),), CPU) == ""
    assert small_gpu.check("it", drifts, (torch.rand(3, 5),), CPU).startswith("it, (3, 5) torch.float32: ")
    monkeypatch.setattr(small_gpu, "cases", lambda: iter([("it", drifts, (torch.rand(3, 5),))]))
    assert small_gpu.run(CPU) == 1


def test_processes_share_the_small_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(small_gpu, "cases", lambda: iter([(name, torch.exp, ()) for name in "abcde"]))
    monkeypatch.setattr(
        small_gpu, "check", lambda name, *_: seen.append(name) or ("c" if name == "c" else "")
    )
    monkeypatch.setattr(small_gpu, "check_training", lambda _: seen.append("training") or "")
    found = [small_gpu.share(CPU, number, 2) for number in range(2)]
    assert found == [["c"], []]
    assert sorted(seen) == ["a", "b", "c", "d", "e", "training"]


# ------------------------------------------------------------------------------------------------ one call

PYTHON = """#!/usr/bin/env bash
echo "$@" >> "$LOG"
case "$*" in
    *device.py*--folder) echo some-device; exit "${NO_DEVICE:-0}" ;;
    *"$FAILS"*) echo it went wrong; exit 7 ;;
esac
echo "$1 was run"
"""


@pytest.fixture
def away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the script, and an interpreter that only writes down what it is called with."""
    (tmp_path / "benches").mkdir()
    shutil.copy2(BENCHES / "gpu.sh", tmp_path / "benches" / "gpu.sh")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_device.py").write_text("@pytest.mark.gpu\n")
    (tmp_path / "tests" / "test_other.py").write_text("import pandas\n")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    for name, value in {
        "PYTHON": str(tmp_path / "python"),
        "LOG": str(tmp_path / "log"),
        "FAILS": "nothing",
        "CUDA_HOME": str(tmp_path / "cuda"),
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("RESULTS", "LIMIT", "SANITIZERS", "PROCESSES", "EPOCHS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def _gpu(away: Path, *parts: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(away / "benches" / "gpu.sh"), *parts]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@BASH
def test_the_script_is_one() -> None:
    subprocess.run(["bash", "-n", str(BENCHES / "gpu.sh")], check=True)
    assert os.access(BENCHES / "gpu.sh", os.X_OK)


@BASH
def test_all_parts_are_run_and_written_down(away: Path) -> None:
    done = _gpu(away)
    assert done.returncode == 0, done.stdout + done.stderr
    results = away / "benches" / "results" / "some-device"
    assert sorted(path.name for path in results.iterdir()) == [
        f"{name}.log" for name in ("device", "kernels", "noise", "sanitizer", "tests", "trainings")
    ]
    assert (results / "noise.log").read_text() == "benches/noise_gpu.py was run\n"
    assert "compute-sanitizer is not here" in (results / "sanitizer.log").read_text()
    calls = (away / "log").read_text().splitlines()
    assert calls == [
        "benches/device.py --folder",
        "benches/device.py",
        "benches/noise_gpu.py",
        "-c import xdist",
        "-m pytest -m gpu --durations=10 -n 8 -p no:benchmark tests/test_device.py",
        "benches/bench_gpu.py --part kernels --output-dir benches/results/some-device",
        "benches/bench_gpu.py --part trainings --epochs 2 --output-dir benches/results/some-device",
    ]


@BASH
def test_a_part_that_fails_does_not_stop_the_others(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "-m pytest")
    monkeypatch.setenv("RESULTS", str(away / "elsewhere"))
    done = _gpu(away, "tests", "benches")
    assert done.returncode == 1
    assert "failed: tests " in done.stdout
    assert (away / "elsewhere" / "tests.log").read_text() == "-c was run\nit went wrong\n"
    assert "benches/bench_gpu.py was run" in (away / "elsewhere" / "trainings.log").read_text()


@BASH
def test_tests_run_one_after_the_other_without_xdist(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAILS", "-c import xdist")
    assert _gpu(away, "tests").returncode == 0
    assert (away / "log").read_text().endswith("-m pytest -m gpu --durations=10 tests/test_device.py\n")


@BASH
def test_memory_is_checked_where_the_program_is(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = away / "cuda" / "bin"
    tools.mkdir(parents=True)
    (tools / "compute-sanitizer").write_text('#!/bin/sh\necho "sanitizer $*" >> "$LOG"\nexit $RACE\n')
    (tools / "compute-sanitizer").chmod(0o755)
    for race in (0, 3):
        monkeypatch.setenv("RACE", str(race))
        assert _gpu(away, "sanitizer").returncode == (race != 0)
    calls = [line for line in (away / "log").read_text().splitlines() if line.startswith("sanitizer")]
    assert [call.split()[2] for call in calls] == ["memcheck", "racecheck"] * 2
    assert all(call.endswith("benches/small_gpu.py") for call in calls)
    assert "benches/small_gpu.py --jobs 8\n" in (away / "log").read_text()


@BASH
def test_what_cannot_be_run_is_said_before_any_work(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = _gpu(away, "tests", "tset")
    assert done.returncode == 2
    assert "there is no part 'tset', only noise tests kernels trainings sanitizer" in done.stderr
    assert not (away / "log").exists()
    monkeypatch.setenv("NO_DEVICE", "2")
    assert _gpu(away).returncode == 2
    assert not (away / "benches" / "results").exists()


@BASH
@pytest.mark.skipif(shutil.which("timeout") is None, reason="needs timeout of the coreutils")
def test_a_part_ends_when_the_time_is_over(away: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMIT", "1")
    done = _gpu(away, "noise")
    assert done.returncode == 1
    assert "not run: the 1 s are over; name this part alone, or set LIMIT" in done.stdout
