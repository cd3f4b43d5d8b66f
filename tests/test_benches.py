"""The benches themselves: that they refuse to time what is wrong, and write down all that they measured."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import accuracy
import bench_kernels
import bench_latent
import bench_ranks
import bench_training
import comparison
import harness
import kernels.batches
import kernels.latent
import kernels.likelihood
import kernels.normals
import kernels.step
import plain
from comparison import Comparison, Target, UnavailableError
from exact import FiftyDigits, Float64
from machine import Processor

# ----------------------------------------------------------------------------------------------- bench_latent


def test_bench_latent_writes_every_row_with_its_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Without the compiler, which takes half a minute; one candidate that cannot run instead.
    def no_compiler() -> None:
        raise RuntimeError("no C++ compiler")

    monkeypatch.setitem(bench_latent.STEPS, "torch.compile", no_compiler)
    threads = torch.get_num_threads()
    try:
        options = ["--quick", "--sizes", "128x2", "--threads", "1", "--output-dir", str(tmp_path)]
        assert bench_latent.main(options) == 0
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


def test_bench_latent_does_not_time_what_is_wrong() -> None:
    def halved(mu: torch.Tensor, logvar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z, kl = bench_latent.eager(mu, logvar)
        return z, kl / 2

    def still(mu: torch.Tensor, logvar: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return mu + 0 * logvar, bench_latent.eager(mu, logvar)[1]

    for step in (bench_latent.eager, bench_latent.analytic, bench_latent.fused):
        bench_latent.check("right", step)
    with pytest.raises(AssertionError, match="halved"):
        bench_latent.check("halved", halved)
    with pytest.raises(AssertionError, match="noise"):
        bench_latent.check("still", still)


# -------------------------------------------------------------------------------------------- comparisons

ZEN4 = Processor("AMD EPYC", "AMD", 25, 17, 1, "AVX-512")
XEON = Processor("Xeon", "Intel", 6, 143, 8, "AVX-512")


def _timing(name: str, *seconds: float) -> harness.Timing:
    return harness.Timing(name, seconds, harness.ratios(seconds, seconds))


def test_a_target_is_the_median_of_the_ratios_within_the_rounds() -> None:
    timings = {
        "eager torch": _timing("eager torch", 4.0, 40.0, 4.0),
        "fastvae": _timing("fastvae", 1.0, 10.0, 2.0),
    }
    target = Target(4.0)
    assert target.measured(timings) == 4.0
    assert target.reached(4.0)
    assert not target.reached(3.99)
    cost = Target(0.25, cost=True)
    assert cost.measured(timings) == 0.25
    assert cost.reached(0.25)
    assert not cost.reached(0.26)
    assert Target(1.0, "torch.compile").measured(timings) is None


def _candidate(name: str) -> harness.Candidate:
    return harness.Candidate(name, lambda _: sum(range(200)))


def _no_compiler(_: str) -> harness.Candidate:
    raise RuntimeError("\nno C++ compiler\nand a page more")


def _no_cores(_: str) -> harness.Candidate:
    raise UnavailableError("one core")


def _measure(one: Comparison) -> list[comparison.Row]:
    return comparison.measure(one, ZEN4, threads=1, seconds=0.01, rounds=5)


def test_every_candidate_has_a_row_with_what_was_asked_of_it() -> None:
    one = Comparison(
        name="one",
        title="something",
        kind="forward",
        candidates={
            "eager torch": _candidate,
            "torch.compile": _no_compiler,
            "two threads": _no_cores,
            "fastvae": _candidate,
        },
        targets=lambda _: (Target(1e-6), Target(1e6), Target(2, "torch.compile")),
    )
    eager, compiled, threads, fused = _measure(one)
    assert [row["candidate"] for row in (eager, compiled, threads, fused)] == list(one.candidates)
    assert compiled["note"] == "not available: no C++ compiler"
    assert threads["note"] == "not available: one core"
    assert "median_us" not in compiled
    assert eager["target"] == "" == eager["note"]
    assert eager["speedup"] == 1
    assert fused["reached"] == "reached; not reached; not measured"
    assert fused["target"].startswith("at least 1e-06x eager torch; at least 1e+06x eager torch")


@pytest.mark.parametrize("error", [AssertionError("wrong"), RuntimeError("a bug")])
def test_what_is_wrong_or_broken_is_not_passed_over(error: Exception) -> None:
    def broken(_: str) -> harness.Candidate:
        raise error

    one = Comparison("one", "something", "forward", {"eager torch": _candidate, "fastvae": broken})
    with pytest.raises(type(error), match=str(error)):
        _measure(one)


def test_a_wrong_compiled_candidate_is_not_taken_for_a_missing_compiler() -> None:
    def wrong(_: str) -> harness.Candidate:
        raise AssertionError("wrong")

    with pytest.raises(AssertionError, match="wrong"):
        _measure(Comparison("one", "something", "forward", {"torch.compile": wrong}))


def test_thread_counts_are_set_and_given_back() -> None:
    seen: list[int] = []

    def candidate(name: str) -> harness.Candidate:
        seen.append(torch.get_num_threads())
        return _candidate(name)

    before = torch.get_num_threads()
    one = Comparison("one", "something", "forward", {"eager torch": candidate}, threads=before + 1)
    (row,) = _measure(one)
    assert seen == [before + 1]
    assert row["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("processor", "expected"), [(ZEN4, [6, 12]), (XEON, [4.2, 9]), (Processor("M2"), [])]
)
def test_what_is_asked_depends_on_the_processor(processor: Processor, expected: list[float]) -> None:
    asked = [*kernels.normals.targets(processor), *kernels.latent.largest_targets(processor)]
    assert [target.times for target in asked] == expected


# ---------------------------------------------------------------------------------- candidates that are wrong


def test_normals_are_checked() -> None:
    target = torch.empty(kernels.normals.ELEMENTS)
    kernels.normals.check("eager", kernels.normals.eager, target)
    kernels.normals.check("fused", kernels.normals.fused, target)
    wrong: dict[str, Callable[[Tensor], Tensor]] = {
        "elsewhere": torch.randn_like,
        "wide": lambda t: t.normal_(std=1.1),
        "uniform": lambda t: t.uniform_(-(3**0.5), 3**0.5),
    }
    for name, fill in wrong.items():
        with pytest.raises(AssertionError, match=f"{name}: moment"):
            kernels.normals.check(name, fill, target)


def test_importance_weights_are_checked() -> None:
    mu, logvar, _, _ = bench_latent.inputs(12, 7)
    incoming = (torch.randn(50, 12, 7), torch.rand(50, 12))
    for step in (kernels.latent.eager_weights, kernels.latent.fused_weights):
        kernels.latent.check_weights("right", step, mu, logvar, incoming)

    def negated(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z, weight = kernels.latent.eager_weights(mu, logvar)
        return z, -weight

    def detached(mu: Tensor, logvar: Tensor) -> tuple[Tensor, Tensor]:
        z, weight = kernels.latent.eager_weights(mu, logvar)
        return z, weight.detach() + 0 * z.sum(-1)

    for name, step in (("negated", negated), ("detached", detached)):
        with pytest.raises(AssertionError, match=name):
            kernels.latent.check_weights(name, step, mu, logvar, incoming)


def test_likelihoods_are_checked() -> None:
    kernels.likelihood.check("eager", kernels.likelihood.eager)
    kernels.likelihood.check("fused", kernels.likelihood.fused)
    with pytest.raises(AssertionError, match="by 256"):
        kernels.likelihood.check("by 256", lambda l, t: kernels.likelihood.eager(l, t.float() * (255 / 256)))


def test_batches_are_checked() -> None:
    kernels.batches.check("eager", kernels.batches.eager)
    kernels.batches.check("fused", kernels.batches.fused)
    wrong: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "rows": lambda data, index: kernels.batches.eager(data, index.flip(0)),
        "gray": lambda data, index: data[index].float() / 255,
        "levels": lambda data, index: (torch.rand(len(index), 784) < data[index] / 255 * 0.99).float(),
    }
    for name, gather in wrong.items():
        with pytest.raises(AssertionError, match=name):
            kernels.batches.check(name, gather)


@pytest.mark.parametrize("build", [kernels.step.dense_layers, kernels.step.tuned, kernels.step.fastvae_step])
def test_steps_are_checked_and_run(build: comparison.Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.step, "ROWS", 2 * kernels.step.BATCH)
    candidate = build("it")
    for _ in range(3):  # beyond the end of an epoch
        candidate.call(candidate.prepare())


def test_a_wrong_step_is_not_timed() -> None:
    model = plain.PlainVAE([400], 20)

    def weighted(x: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
        recon, kl = model(x, eps)
        return recon, 1.1 * kl

    with pytest.raises(AssertionError, match="weighted"):
        kernels.step.check_model("weighted", model, weighted)


def test_bench_kernels_writes_every_row(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def small(name: str, first: str, **variables: str) -> Comparison:
        return Comparison(
            name=name,
            title=f"title of {name}",
            kind="forward",
            candidates={first: _candidate, "fastvae": _candidate},
            targets=lambda _: (Target(1e6, first),),
            variables=variables,
        )

    comparisons = {
        "gather": small("gather", "eager torch"),
        "step": small("step", "dense layers alone", A="b"),
    }
    monkeypatch.setattr(bench_kernels, "COMPARISONS", comparisons)
    in_own_process = []

    def child(script: str, *arguments: str, variables: Mapping[str, str]) -> Any:
        in_own_process.append((Path(script).name, variables))
        assert bench_kernels.main(arguments) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(harness, "in_child", child)
    assert bench_kernels.main(["--quick", "--threads", "1", "--output-dir", str(tmp_path)]) == 0
    assert in_own_process == [("bench_kernels.py", {}), ("bench_kernels.py", {"A": "b"})]
    with (tmp_path / "kernels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len({(row["date"], row["load"]) for row in rows}) == 1
    assert [(row["comparison"], row["candidate"]) for row in rows] == [
        ("gather", "eager torch"),
        ("gather", "fastvae"),
        ("step", "dense layers alone"),
        ("step", "fastvae"),
    ]
    assert all(row["cpu"] and row["simd"] and row["torch"] == torch.__version__ for row in rows)
    text = (tmp_path / "kernels.md").read_text()
    assert "title of gather" in text
    assert "not reached" in text
    assert "<svg" in (tmp_path / "kernels.svg").read_text()


# ------------------------------------------------------------------------------------------------- accuracy


def test_both_arithmetics_agree() -> None:
    x = torch.cat([sign * torch.logspace(-8, 1.3, 200, dtype=torch.float64) for sign in (1, -1)])
    fast, slow = Float64(), FiftyDigits()
    for name in ("exp", "expm1", "expm1_minus", "softplus", "sin", "cos"):
        near = getattr(fast, name)(fast.array(x))
        true = getattr(slow, name)(slow.array(x)).astype(np.float64)
        np.testing.assert_allclose(near, true, rtol=1e-14, err_msg=name)


def test_errors_are_relative_and_in_ulps() -> None:
    got = torch.tensor([1.0, 2.0, 1.0])
    truth = np.array([1.0, 2.0 * (1 + 2**-22), 1.0])
    relative, ulps = accuracy.errors(accuracy.Quantity("it", "value", got, truth), Float64())
    assert relative == pytest.approx(2**-22, rel=1e-6)
    assert ulps == pytest.approx(2.0)
    # Beside its terms, which are four times as large.
    quantity = accuracy.Quantity("it", "value", got, truth, 4 * truth)
    assert accuracy.errors(quantity, Float64()) == pytest.approx((2**-24, 0.5), rel=1e-6)


def test_half_precision_is_right_to_half_a_unit() -> None:
    exact = torch.linspace(0.1, 5, 1000, dtype=torch.float64)
    for dtype in (torch.bfloat16, torch.float16):
        _, ulps = accuracy.errors(accuracy.Quantity("it", "value", exact.to(dtype), exact.numpy()), Float64())
        assert 0.45 < ulps <= 0.5


def test_accuracy_has_every_operation_and_stays_within_its_bounds(tmp_path: Path) -> None:
    rows = accuracy.run({"float32": 2000, "float64": 200, "bfloat16": 2000, "float16": 2000})
    assert {row["operation"] for row in rows} == {
        "noise.normal",
        "noise.uniform",
        "gaussian_kl",
        "gaussian_kl, free bits",
        "gaussian_kl, given prior",
        "reparametrize_kl",
        "reparametrize_log_weight",
        "bernoulli_log_prob",
        "bernoulli_log_prob, float targets",
        "gaussian_log_prob",
        "gaussian_log_prob, one logvar",
        "gather_batch",
    }
    bounds = {"float32": 1e-6, "float64": 1e-14, "bfloat16": 2**-7, "float16": 2**-10}
    for row in rows:
        assert float(row["relative_error"]) <= bounds[row["result_dtype"]], row
    assert accuracy.tables(rows).count("\n| `") == len({(row["operation"], row["result"]) for row in rows})


# ------------------------------------------------------------------------------------------------- training


def test_the_bound_of_held_out_images_is_that_of_the_formulas() -> None:
    class Zeros(nn.Module):
        def __init__(self, outputs: int) -> None:
            super().__init__()
            self.outputs = outputs

        def forward(self, x: Tensor) -> Tensor:
            assert x.dtype == torch.float64
            return x.new_zeros(len(x), self.outputs)

    images = torch.rand(30, 784)
    elbo = plain.held_out_elbo(Zeros(8), Zeros(784), images, draws=2)
    assert elbo == pytest.approx(-784 * np.log(2), rel=1e-12)


def test_every_way_to_train_reaches_the_same_bound() -> None:
    pixels, held_out = bench_training.load(None, 4096)
    assert pixels.shape == (4096, 784)
    assert held_out.shape == (682, 784)
    configuration = bench_training.Configuration((32,), 4, 32)
    images = torch.from_numpy(held_out).double() / 255
    bounds = {}
    for name in (bench_training.PLAIN, bench_training.TUNED, bench_training.FASTVAE):
        trained = bench_training.TRAININGS[name](pixels, configuration, bench_training.SEED)
        bounds[name] = plain.held_out_elbo(trained.encoder, trained.decoder, images, draws=2)
        assert trained.train_elbo < bounds[name] < 0
    low, high = min(bounds.values()), max(bounds.values())
    # Other weights to begin with move it by 1 %, twice the learning rate by 4 %.
    assert high - low < 0.02 * abs(low), bounds


def test_what_is_not_installed_is_a_row_that_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seeds: dict[str, list[int]] = {"plain torch": [], "tuned torch": [], "fastvae": []}

    # The machine gets slower in every round, fastvae twice as much in the second one.
    def child(_: str, *arguments: str) -> dict[str, float | None]:
        name, seed = arguments[1], int(arguments[-1])
        seeds[name].append(seed)
        seconds = {"plain torch": 4.0, "tuned torch": 0.5, "fastvae": 1.0}[name] * (seed + 1)
        if name == "fastvae" and seed == 1:
            seconds *= 2
        bound = -200.0 - seed**2
        return {"seconds": seconds, "peak_bytes": 2**20, "train_elbo": bound, "held_out_elbo": bound + 10}

    monkeypatch.setattr(bench_training.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(harness, "in_child", child)
    asked = bench_training.Configuration((400,), 20, 128, bench_training.THRICE)
    monkeypatch.setitem(bench_training.CONFIGURATIONS, "400-20-batch-128", asked)
    options = ["--quick", "--samples", "100", "--threads", "1", "--output-dir", str(tmp_path)]
    assert bench_training.main(options) == 0
    with (tmp_path / "training.csv").open(newline="") as file:
        rows = {row["candidate"]: row for row in csv.DictReader(file)}
    assert list(rows) == ["plain torch", "tuned torch", "pythae", "fastvae"]
    assert rows["pythae"]["note"] == 'not installed: pip install "fastvae[peers]"'
    assert rows["pythae"]["seconds"] == ""
    fastvae = rows["fastvae"]
    # Ratios of 4, 2 and 4 in the rounds; the medians would say 8 to 3.
    assert float(fastvae["speedup"]) == 4.0
    assert float(fastvae["seconds"]) == 3.0
    assert float(fastvae["images_per_second"]) == 33.3
    # Each round has another seed, the candidates of a round have the same.
    assert seeds == {name: [0, 1, 2] for name in seeds}
    spread = [fastvae[f"train_elbo{which}"] for which in ("", "_lowest", "_highest")]
    assert list(map(float, spread)) == [-201.0, -204.0, -200.0]
    assert fastvae["target"] == "at least 3x plain torch; at least 3x pythae; at least 1x tuned torch"
    assert fastvae["measured"] == "4.00; ; 0.50"
    assert fastvae["reached"] == "reached; not measured; not reached"
    assert rows["plain torch"]["target"] == ""
    text = (tmp_path / "training.md").read_text()
    assert "not installed" in text
    assert "-201.00 (-204.00 to -200.00) | -191.00 (-194.00 to -190.00)" in text
    assert "reached; not measured; not reached" in text
    assert "<svg" in (tmp_path / "training.svg").read_text()


def test_what_is_asked_of_trainings() -> None:
    asked = {
        name: {(target.times, target.over) for target in configuration.targets}
        for name, configuration in bench_training.CONFIGURATIONS.items()
    }
    thrice = {(3, "plain torch"), (3, "pythae")}
    assert all((1, "tuned torch") in targets for targets in asked.values())
    assert asked["200-200-50-batch-20"] >= thrice
    assert asked["200-200-50-batch-100"] >= thrice


def test_a_training_in_a_process_of_its_own() -> None:
    arguments = ["plain torch", "400-20-batch-128", "", "256", "1", "7"]
    measured = harness.in_child(bench_training.__file__, "--once", *arguments)
    assert measured["seconds"] > 0
    assert measured["train_elbo"] < 0
    assert measured["held_out_elbo"] < 0


@pytest.mark.parametrize("name", ["plain torch", "tuned torch", "fastvae"])
def test_the_seed_of_a_training_decides_its_bound(name: str) -> None:
    pixels, _ = bench_training.load(None, 256)
    configuration = bench_training.Configuration((8,), 2, 32)
    first, again, other = (
        bench_training.TRAININGS[name](pixels, configuration, seed).train_elbo for seed in (3, 3, 4)
    )
    assert first == again
    assert first != other


def test_processes_are_measured_beside_others_that_reach_the_same(monkeypatch, tmp_path):
    """Each candidate trains, in processes of its own, and all reach about one bound."""
    small = bench_training.Configuration((8,), 2, 64)
    monkeypatch.setattr(bench_ranks, "TRAININGS", dict.fromkeys(bench_ranks.TRAININGS))
    done = {"seconds": [0.2, 0.1, 0.3], "elbo": -100.0}
    asked = []

    def once(name, key, samples, seed, processes, threads):
        asked.append((name, processes))
        return done | ({"elbo": bound} if name == bench_ranks.TUNED else {})

    monkeypatch.setattr(bench_ranks, "once", once)
    monkeypatch.setitem(bench_ranks.CONFIGURATIONS, "400-20-batch-1024", small)
    options = ["--quick", "--samples", "100", "--threads", "2", "--output-dir", str(tmp_path)]
    bound = -101.0
    assert bench_ranks.main(options) == 0
    with (tmp_path / "ranks.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["images_per_second"] for row in rows} == {"500.0"}
    assert {(row["candidate"], int(row["processes"])) for row in rows} == set(asked)
    assert {processes for _, processes in asked} == {1, 2}
    bound = -110.0
    with pytest.raises(RuntimeError, match=r"tuned DDP reached -110.00, the others -100.00"):
        bench_ranks.main(options)


@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch is built for one process")
@pytest.mark.parametrize("name", [bench_ranks.TUNED, bench_ranks.TOGETHER])
def test_a_candidate_of_several_processes_trains(name):
    measured = bench_ranks.once(name, "400-20-batch-1024", 2048, 1, 2, 2)
    assert len(measured["seconds"]) == bench_ranks.EPOCHS - 1
    assert -600 < measured["elbo"] < -300
