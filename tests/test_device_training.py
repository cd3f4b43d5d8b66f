"""Steps that are captured, compiled or in bfloat16 train as steps that are not.

A CUDA graph repeats kernels: the same memory, the same numbers, whatever Python would do now. Here a tape of
the operations stands in for it, so that what a graph would freeze is found without a GPU; the tests at the
end ask a real one.
"""

import contextlib
import gc
import json
import shutil
import sys
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import DataLoader, TensorDataset

from fastvae import noise
from fastvae.cli import main
from fastvae.cli.parser import build_parser
from fastvae.data import open_data, resident
from fastvae.data.resident import ResidentData
from fastvae.errors import NonFiniteWarning, NotCapturedWarning
from fastvae.models import ModelSpec, build_model
from fastvae.objectives import elbo
from fastvae.training import branches, graph, load, loop, native_adam, small_layers, train
from fastvae.training.compilation import FEWEST_STEPS, Compilation, choose_compilation
from fastvae.training.config import Settings
from fastvae.training.graph import MOST_STEPS, WARM_UP, CapturedSteps, CudaRecorder
from fastvae.training.history import EpochTotals
from fastvae.training.progress import Progress
from fastvae.training.randomness import repeatable, seed_generators
from fastvae.training.step import Step, Steps

CPU = torch.device("cpu")
random = np.random.default_rng(0)
FACTORS = random.normal(size=(67, 2)) @ random.normal(size=(2, 16))
PIXELS = (1 / (1 + np.exp(-3 * FACTORS))).reshape(67, 1, 4, 4).astype(np.float32)
BYTES = np.rint(255 * PIXELS).astype(np.uint8)
TABLE = FACTORS[:, :5].astype(np.float32)
SMALL = {"latent_dim": 2, "hidden_dims": (8,), "epochs": 4, "batch_size": 16, "progress": False}
TIMED = {"seconds", "images_per_second"}


def run(data=PIXELS, **changes):
    return train(data, **(SMALL | {"device": "cpu"} | changes))


def assert_same_run(one, other, *, rtol=1e-6, atol=1e-6):
    """The same training: its numbers to rounding, and the weights it leads to."""
    assert len(one.history) == len(other.history)
    for record, expected in zip(one.history, other.history, strict=True):
        for key, value in record.items():
            if value is None:
                assert expected[key] is None, key
            elif key not in TIMED:
                assert value == pytest.approx(expected[key], rel=rtol, abs=atol), key
    for name, value in one.model.state_dict().items():
        expected = other.model.state_dict()[name]
        torch.testing.assert_close(
            value, expected, rtol=rtol, atol=atol, msg=lambda text, n=name: f"{n}: {text}"
        )


# A tape in place of a graph


class Tape(TorchDispatchMode):
    """The operations of some work with their tensors, done again in the same memory."""

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.made = [], {}, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing: a number is read")
        for value in tree_leaves((args, kwargs)):
            # All that was there, not only what a schema calls written: batch normalisation's does not say.
            if isinstance(value, torch.Tensor) and id(value) not in self.made | self.before.keys():
                self.before[id(value)] = value, value.detach().clone()
        result = func(*args, **kwargs)
        self.calls.append((func, args, kwargs, result))
        self.made.update(id(value) for value in tree_leaves(result) if id(value) not in self.before)
        return result

    @torch.no_grad()
    def undo(self):
        for tensor, value in reversed(self.before.values()):
            tensor.copy_(value)
        self.before.clear()

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.calls:
            again = func(*args, **kwargs)
            for new, old in zip(tree_leaves(again), tree_leaves(result), strict=True):
                if isinstance(new, torch.Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


class TapeRecorder:
    """What CudaRecorder is, with tapes."""

    def __init__(self, device):
        del device
        self.entered = self.captures = self.replays = self.steps = 0

    def __enter__(self):
        self.entered += 1

    def __exit__(self, *_):
        self.entered -= 1

    def __call__(self, work):
        self.captures += 1
        state, tape = torch.get_rng_state(), Tape()
        with tape:
            work()
        tape.undo()
        torch.set_rng_state(state)

        def replay():
            self.replays += 1
            self.steps += getattr(work, "args", (1,))[0]
            tape.replay()

        return replay


@pytest.fixture
def recorders(monkeypatch):
    """Let compile="graph" record tapes on the CPU; the recorders of the trainings, in order."""
    made = []

    def make(device):
        made.append(TapeRecorder(device))
        return made[-1]

    monkeypatch.setattr(loop, "CudaRecorder", make)
    # No tape sees what Rust does by itself.
    monkeypatch.setattr(native_adam, "takes", lambda _: False)
    # The package gives the function under this name.
    monkeypatch.setattr(sys.modules["fastvae.training.train"], "check_compile", lambda *_: None)
    return made


def test_a_tape_freezes_what_a_graph_would():
    counter, total, number = torch.zeros((), dtype=torch.int64), torch.zeros(()), 1.0

    def work():
        total.add_(torch.full((), number) * (counter + 1))
        counter.add_(1)

    replay = TapeRecorder(CPU)(work)
    assert (float(total), int(counter)) == (0.0, 0), "recording does nothing"
    number = 100.0
    for _ in range(3):
        replay()
    assert (float(total), int(counter)) == (6.0, 3), "the number is as it was, the tensor is not"
    with pytest.raises(RuntimeError, match="a number is read"):
        TapeRecorder(CPU)(lambda: total.add_(counter.item()))


KINDS = {
    "plain": {},
    "warm-up": {"beta": 0.7, "warmup": 0.6},
    "warm-up to the end": {"warmup": 1.0},
    "cycles": {"warmup": 0.8, "cycles": 3},
    "capacity": {"capacity": 0.3},
    "capacity that grows": {"capacity": 0.3, "warmup": 0.6, "beta": 20.0},
    "drawn pixels": {"binarize": "dynamic"},
    "drawn pixels of bytes": {"data": BYTES, "binarize": "dynamic"},
    "threshold": {"binarize": "threshold"},
    "all of the data": {"validation": None, "binarize": "dynamic"},
    "free bits": {"free_bits": 0.2, "warmup": 0.5},
    "learned variance": {"data": TABLE},
    "predicted variance": {"variance": "predicted"},
    "plain autoencoder": {"variational": False},
    "weight decay": {"weight_decay": 0.1},
    "convolutions": {"model": "conv", "hidden_dims": (3, 4)},
    "no smaller batch": {"batch_size": 20, "validation": None, "data": PIXELS[:60]},
    "one batch": {"batch_size": 1000, "epochs": 9},
    "batches of one": {"batch_size": 1, "epochs": 1},
    "bfloat16": {"precision": "bfloat16"},
}


@pytest.fixture
def taken(monkeypatch):
    """How many full steps were asked for at once, each time they were taken or captured."""
    counts, take = [], CapturedSteps._steps_of_full_batches

    def counted(self, steps):
        counts.append(steps)
        take(self, steps)

    monkeypatch.setattr(CapturedSteps, "_steps_of_full_batches", counted)
    return counts


@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_a_captured_step_trains_as_one_that_is_not(changes, recorders, taken):
    changes = {"data": PIXELS, "seed": 3} | changes
    captured = run(**changes, compile="graph")
    # Rounded to bfloat16, half of a last digit may be a whole one.
    bounds = {"rtol": 2e-2, "atol": 2e-3} if "precision" in changes else {}
    assert_same_run(captured, run(**changes, compile=False), **bounds)
    (recorder,) = recorders
    settings, samples = captured.config.training, captured.config.data.samples
    full = max(samples // settings.batch_size, 1)  # of an epoch
    graphs = {1, graph._steps_of_a_graph(full, MOST_STEPS)}
    assert sorted(taken) == sorted([1] * WARM_UP + list(graphs))
    assert (recorder.captures, recorder.entered) == (len(graphs), 0)
    assert recorder.steps == settings.epochs * full - WARM_UP
    assert all(parameter.grad is None for parameter in captured.model.parameters())


@pytest.mark.parametrize(
    ("full", "most", "steps"),
    [
        (1, 8, 1),
        (3, 8, 3),
        (8, 8, 8),
        (12, 8, 6),
        (15, 8, 7),
        (60, 8, 6),
        (3000, 8, 8),
        (3000, 5, 5),
        (7, 0, 1),
    ],
)
def test_a_graph_has_as_many_steps_as_leave_the_fewest_launches(full, most, steps):
    assert graph._steps_of_a_graph(full, most) == steps


@pytest.mark.parametrize("batch_size", [5, 16])
def test_batches_of_a_graph_begin_where_kernels_are_compiled_for(batch_size, recorders, monkeypatch):
    """Whatever their size is: of 15 values, and of slopes and seeds."""
    take, begins = Step.__call__, []

    def seen(self, x, seed, weight, slopes=None, **others):
        begins.extend(tensor.data_ptr() % graph.ALIGNMENT for tensor in (x, seed.tensor, *slopes))
        return take(self, x, seed, weight, slopes, **others)

    monkeypatch.setattr(Step, "__call__", seen)
    run(PIXELS.reshape(67, 16)[:, 1:], compile="graph", batch_size=batch_size, epochs=2)
    assert set(begins) == {0}
    assert recorders[0].steps > recorders[0].replays


@pytest.mark.parametrize("frozen", ["_seeds", "_weights", "_capacities", "_order", "_pixel_seed"])
def test_a_table_that_stands_still_is_noticed(frozen, recorders, monkeypatch):
    """What the test above is about: without the next row of each table, other weights come out."""
    changes = {"warmup": 1.0, "binarize": "dynamic", "learning_rate": 1e-2}
    if frozen == "_capacities":
        changes["capacity"] = 0.5
    expected = run(**changes, compile=False)
    fill = CapturedSteps._fill_tables

    def fill_and_spoil(self):
        if self._left:
            return
        kept = getattr(self, frozen).clone()
        fill(self)
        if self.taken:
            getattr(self, frozen).copy_(
                kept.flip(0) if frozen == "_order" else kept + (frozen == "_pixel_seed")
            )

    monkeypatch.setattr(CapturedSteps, "_fill_tables", fill_and_spoil)
    with pytest.raises(AssertionError):
        assert_same_run(run(**changes, compile="graph"), expected)


class Breaks(nn.Module):
    """Gives infinities for samples that begin with a 1."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.inner = nn.Linear(5, 4)

    def forward(self, x):
        return self.inner(x) / (x[:, :1] < 1).float()


def test_a_captured_step_that_is_not_finite_is_skipped_and_counted(recorders):
    data = TABLE.copy()
    data[:, 0] = 0
    data[[7, 50], 0] = 1

    def trained(how):
        with pytest.warns(NonFiniteWarning, match=r"epoch 1: [12] of 5 steps"):
            return run(data, encoder=Breaks(), hidden_dims=None, validation=None, compile=how)

    captured = trained("graph")
    assert_same_run(captured, trained(False))
    assert recorders[0].replays
    assert all(record["skipped_steps"] for record in captured.history)
    assert np.isfinite([record["elbo"] for record in captured.history]).all()


def loader(batches):
    """A DataLoader with batches of these sizes, in the order of the data."""
    rows, at = [], 0
    for size in batches:
        rows.append(list(range(at, at + size)))
        at += size
    return DataLoader(TensorDataset(torch.from_numpy(PIXELS)), batch_sampler=rows)


@pytest.mark.parametrize("sizes", [[16, 16, 16, 16, 3], [5, 16, 5, 5, 5], [1, 1, 1, 1], [20, 20, 20]])
def test_batches_that_arrive_are_captured_where_they_are_of_the_first_ones_size(sizes, recorders):
    changes = {"validation": None, "warmup": 0.5, "binarize": "dynamic"}
    captured = run(loader(sizes), **changes, compile="graph")
    assert_same_run(captured, run(loader(sizes), **changes, compile=False))
    assert recorders[0].replays == 4 * sizes.count(sizes[0]) - WARM_UP


def test_a_loader_with_more_batches_than_were_counted_goes_on(recorders):
    """Tables are as long as the epoch was said to be: beyond it they are filled anew, and never read past."""

    class Growing:
        """A batch sampler with one batch more each time."""

        def __init__(self):
            self.times = 4

        def __iter__(self):
            self.times += 1
            return iter([list(range(start, start + 10)) for start in range(self.times)])

    def trained(how):
        growing = DataLoader(TensorDataset(torch.from_numpy(PIXELS)), batch_sampler=Growing())
        return run(growing, validation=None, warmup=1.0, compile=how)

    assert_same_run(trained("graph"), trained(False))
    assert recorders[0].replays


def test_dropout_draws_anew_at_each_replay(recorders):
    def trained(how):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 4))
        return run(encoder=encoder, hidden_dims=None, compile=how)

    assert_same_run(trained("graph"), trained(False))


def test_running_statistics_move_with_each_replay(recorders):
    def trained(how):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 4))
        return run(PIXELS[:65], encoder=encoder, hidden_dims=None, validation=None, compile=how)

    captured = trained("graph")  # with a last batch of one
    assert_same_run(captured, trained(False))
    assert captured.model.encoder[1].num_batches_tracked == 16


def test_ctrl_c_between_replays_gives_what_there_is(recorders, monkeypatch):
    def trained(how):
        samples = 0
        with monkeypatch.context() as patch:
            advance = Progress.advance

            def impatient(self, size, *arguments):
                nonlocal samples
                advance(self, size, *arguments)
                samples += size
                if samples == 2 * 67 + 64:  # a graph has the four full steps of an epoch
                    raise KeyboardInterrupt

            patch.setattr(Progress, "advance", impatient)
            return run(compile=how, warmup=0.5, validation=None)

    captured = trained("graph")
    assert captured.interrupted
    assert [record["epoch"] for record in captured.history] == [1, 2, 3]
    assert_same_run(captured, trained(False))
    assert (recorders[0].entered, recorders[0].replays) == (0, 3)


def test_ctrl_c_in_a_replay_skips_no_step(recorders, monkeypatch):
    """The host waits in the launch of a graph, so it has not counted what the device has done."""

    class Interrupted(TapeRecorder):
        def __call__(self, work):
            replay, calls = super().__call__(work), iter(range(3))

            def launch():
                replay()
                if next(calls) == 2:
                    raise KeyboardInterrupt

            return launch

    monkeypatch.setattr(loop, "CudaRecorder", Interrupted)
    result = run(compile="graph")
    assert result.interrupted
    assert {record["skipped_steps"] for record in result.history} == {0}


class Broken(TapeRecorder):
    """A recorder that ends in the middle of the work."""

    def __call__(self, work):
        super().__call__(work)
        raise RuntimeError("operation not permitted\nand what else CUDA says")


def test_a_step_that_cannot_be_captured_runs_as_it_is_and_says_so(recorders, monkeypatch):
    monkeypatch.setattr(loop, "CudaRecorder", Broken)
    monkeypatch.setattr(
        sys.modules["fastvae.training.train"],
        "choose_compilation",
        lambda *_: Compilation("graph", "", asked_for=False),
    )
    changes = {"warmup": 0.5, "binarize": "dynamic"}
    with pytest.warns(
        NotCapturedWarning, match=r"\(RuntimeError: operation not permitted\); training goes on without"
    ) as caught:
        fallen_back = run(**changes)
    assert len(caught) == 1
    monkeypatch.undo()
    assert_same_run(fallen_back, run(**changes, compile=False))


def test_a_step_that_cannot_be_captured_is_an_error_where_it_was_asked_for(recorders):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(16, 4)

        def forward(self, x):
            return self.inner(x.flatten(1)) * (2.0 if x.sum() > 0 else 1.0)

    with pytest.raises(RuntimeError, match="a number is read") as caught:
        run(encoder=Reads(), hidden_dims=None, compile="graph")
    assert (
        'compile="graph" captures the step as a CUDA graph; compile=False does not' in caught.value.__notes__
    )
    assert recorders[0].entered == 0


def test_a_weight_of_the_kl_may_be_a_tensor():
    recon, kl = torch.randn(41), torch.rand(41)
    torch.testing.assert_close(elbo(recon, kl, torch.tensor(0.3)), elbo(recon, kl, 0.3), rtol=1e-6, atol=0)


# What is chosen, and what is said


def test_auto_captures_what_a_graph_cannot_freeze_on_cuda():
    cuda, built_in = torch.device("cuda", 0), ModelSpec((4,), 2)
    assert choose_compilation("auto", cuda, built_in, FEWEST_STEPS) == Compilation(
        "graph", "", asked_for=False, own_networks=True
    )
    assert choose_compilation("auto", CPU, built_in, 10**6).kind is None
    few = choose_compilation("auto", cuda, built_in, FEWEST_STEPS - 1)
    assert (few.kind, str(few)) == (None, "steps as they are (as a capture does not pay for 49 steps)")
    own = choose_compilation("auto", cuda, ModelSpec((4,), 2, custom=("encoder", "decoder")), 10**6)
    assert own.kind is None
    assert str(own) == ('steps as they are (as the encoder and decoder may do anything; see compile="graph")')
    asked = choose_compilation("graph", cuda, ModelSpec((4,), 2, custom=("encoder",)), 1)
    assert (asked.asked_for, asked.own_networks) == (True, False)
    assert choose_compilation("graph", cuda, built_in, 1).own_networks
    assert choose_compilation(False, cuda, built_in, 10**6).kind is None
    assert str(choose_compilation("inductor", CPU, built_in, 1)) == (
        "forward and loss compiled by inductor (as asked for)"
    )


def test_where_the_training_runs_is_told(capsys, recorders):
    run(progress=True, precision="bfloat16", compile="graph")
    assert "on cpu in bfloat16, steps in CUDA graphs (as asked for)\n" in capsys.readouterr().err


def test_where_the_data_lies_is_told(monkeypatch):
    device, cuda = torch.device("meta"), torch.device("cuda", 0)
    data = open_data(np.zeros((60000, 784), np.uint8))
    assert data.placement(device) == "data resident on meta (47 MB)"
    part, _ = data.split(0.5, seed=0)
    assert part.placement(device) == data.placement(device)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (60 * 10**6, 10**9))
    assert part.placement(cuda) == (
        "data on the host and batches moved to cuda:0, as its 47 MB are more than half of the 60 MB free "
        "there"
    )
    assert part.resident_on(cuda) is None
    assert loader_data().placement(cuda) == "data read batch by batch and moved to cuda:0"
    assert loader_data().resident_on(CPU) is None


def loader_data():
    return open_data(loader([16, 16]))


@pytest.mark.parametrize("kind", ["none", "dynamic", "threshold"])
def test_resident_data_gives_the_batches_of_the_data(kind):
    from fastvae.data.binarize import Binarize

    whole = open_data(BYTES)
    part = whole.split(0.3, seed=1)[0].split(0.3, seed=2)[0]
    order = torch.randperm(len(part))
    expected, rows = next(part.batches(9, order=order, device=CPU, binarize=Binarize(kind, 5)))
    gathered = part.resident_on(CPU).gather(rows, binarize=kind, seed=torch.tensor(5))
    assert torch.equal(gathered, expected)


# bfloat16


def test_bfloat16_is_for_the_networks_in_training_alone():
    seen = []

    class Watch(nn.Module):
        def __init__(self):
            super().__init__()
            with torch.random.fork_rng():
                torch.manual_seed(0)
                self.inner = nn.Linear(16, 4)

        def forward(self, x):
            encoded = self.inner(x.flatten(1))
            seen.append((self.training, x.dtype, encoded.dtype))
            return encoded

    result = run(encoder=Watch(), hidden_dims=None, precision="bfloat16", learning_rate=1e-2)
    assert set(seen) == {
        (True, torch.float32, torch.bfloat16),
        (False, torch.float32, torch.float32),
    }
    assert {value.dtype for value in result.model.state_dict().values()} == {torch.float32}
    exact = run(encoder=Watch(), hidden_dims=None, learning_rate=1e-2)
    assert exact.history != result.history
    for record, expected in zip(result.history, exact.history, strict=True):
        assert record["elbo"] == pytest.approx(expected["elbo"], rel=1e-2)
        assert record["val_elbo"] == pytest.approx(expected["val_elbo"], rel=1e-2)
        assert record["skipped_steps"] == 0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"variational": False},
        {"free_bits": 0.1},
        {"likelihood": "gaussian"},
        {"variance": "predicted"},
        {"model": "conv", "hidden_dims": (3,)},
    ],
)
def test_the_terms_of_networks_in_bfloat16_are_float32(changes, monkeypatch):
    kinds = set()
    accumulate = EpochTotals.add

    def watched(self, terms, skipped):
        kinds.update((terms.recon.dtype, terms.kl.dtype))
        accumulate(self, terms, skipped)

    monkeypatch.setattr(EpochTotals, "add", watched)
    result = run(precision="bfloat16", epochs=2, **changes)
    assert kinds == {torch.float32}
    assert result.history[-1]["elbo"] == pytest.approx(run(epochs=2, **changes).history[-1]["elbo"], rel=1e-2)


# inductor


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("c++") and sys.platform != "win32", reason="inductor needs a C++ compiler"
)
@pytest.mark.parametrize(
    "changes",
    [
        {"warmup": 0.5, "binarize": "dynamic"},
        {"data": TABLE},
        {"free_bits": 0.1, "seed": 1},
        {"warmup": 0.5, "capacity": 0.5},
    ],
)
def test_a_compiled_step_trains_as_one_that_is_not(changes):
    changes = {"data": PIXELS} | changes
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = run(**changes, compile="inductor")
    assert_same_run(compiled, run(**changes, compile=False), rtol=1e-4, atol=1e-5)
    # One shape, and one mode: nothing is compiled again.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_only_batches_of_the_first_ones_size_are_compiled(monkeypatch):
    compiled = []

    def compiler(function, **options):
        assert options == {"dynamic": False, "options": {"fallback_random": True}}

        def call(x, seed, row_offset):
            assert isinstance(seed, torch.Tensor), "a number would be compiled in"
            compiled.append(len(x))
            return function(x, seed, row_offset)

        return call

    monkeypatch.setattr(torch, "compile", compiler)
    result = run(compile="inductor", warmup=0.5, epochs=2)
    assert compiled == [16, 16, 16] * 2
    monkeypatch.undo()
    assert_same_run(result, run(compile=False, warmup=0.5, epochs=2))


def test_every_training_of_a_process_is_compiled():
    """torch.compile gives up on a function that it has compiled for eight different models."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiler = torch.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            torch, "compile", lambda function, **_: compiler(function, backend="eager", dynamic=False)
        )
        for width in range(3, 13):
            run(compile="inductor", hidden_dims=(width,), variational=False, validation=None)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 10


def test_a_compiler_that_fails_says_how_to_do_without(monkeypatch):
    def compiler(function, **_):
        def call(*_):
            raise RuntimeError("no working C++ compiler")

        return call

    monkeypatch.setattr(torch, "compile", compiler)
    with pytest.raises(RuntimeError, match="no working") as caught:
        run(compile="inductor")
    assert caught.value.__notes__ == [
        'compile="inductor" compiles the step by torch.compile; compile=False does not'
    ]


# Wrong use, files and the command line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"compile": True}, "compile must be one of 'auto', 'graph', 'inductor', or False, got True"),
        ({"compile": 0}, "compile must be one of .* got 0"),
        ({"compile": None}, "compile must be one of .* got None"),
        ({"compile": "jit"}, "compile must be one of .* got 'jit'"),
        ({"compile": "graph"}, 'and the device is cpu: use compile="auto", which .* or "inductor"'),
        ({"precision": "float16"}, "precision must be one of 'float32', 'bfloat16', got 'float16'"),
        ({"precision": torch.bfloat16}, "precision must be one of .* got torch.bfloat16"),
    ],
)
def test_values_that_do_not_fit_raise_before_any_work(changes, message):
    with pytest.raises(ValueError, match=message):
        train("no such data", device="cpu", **changes)


@pytest.mark.parametrize(
    ("changes", "kept"),
    [({}, ("float32", "auto")), ({"precision": "bfloat16", "compile": False}, ("bfloat16", False))],
)
def test_a_run_keeps_how_it_was_trained(changes, kept, tmp_path):
    result = run(epochs=1, **changes)
    again = load(result.save(tmp_path), device="cpu")
    assert again.config == result.config
    training = again.config.training
    assert (training.precision, training.compile) == kept


def test_a_run_from_before_there_was_a_choice_loads(tmp_path):
    run(epochs=1).save(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    del config["training"]["precision"], config["training"]["compile"]
    path.write_text(json.dumps(config))
    training = load(tmp_path, device="cpu").config.training
    assert (training.precision, training.compile) == ("float32", "auto")


@pytest.mark.parametrize(("word", "value"), [("none", False), ("auto", "auto"), ("inductor", "inductor")])
def test_the_command_line_says_what_is_made_of_a_step(word, value):
    options = build_parser().parse_args(["train", "digits", "--compile", word, "--precision", "bfloat16"])
    assert (options.compile, options.precision) == (value, "bfloat16")


def test_the_command_line_refuses_other_words(capsys):
    for arguments, text in (
        (["--compile", "jit"], "argument --compile: expected auto, graph, inductor or none, got 'jit'"),
        (["--precision", "float16"], "invalid choice: 'float16'"),
        (["--mixed-precision"], "no option --mixed-precision; did you mean --precision?"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["train", "digits", *arguments])
        assert end.value.code == 2
        assert text in capsys.readouterr().err


# On a device that is not there


class Immediately(TapeRecorder):
    """A recorder that does the work again and keeps nothing."""

    def __call__(self, work):
        return work


@pytest.mark.parametrize("steps_of", [Steps, CapturedSteps])
@pytest.mark.parametrize(
    "likelihood", [("bernoulli", None), ("gaussian", "learned"), ("gaussian", "predicted")]
)
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"warmup": 0.5, "free_bits": 0.2, "weight_decay": 0.1},
        {"warmup": 0.5, "capacity": 1.0},
    ],
)
def test_a_step_mixes_no_devices(monkeypatch, steps_of, likelihood, changes):
    """Fake tensors say where they would be, without a device: nothing of a step may be left on the host."""
    elsewhere = torch.device("meta")
    monkeypatch.setattr(resident, "_fits", lambda *_: True)
    name, variance = likelihood
    settings = Settings(
        **{
            "epochs": 2,
            "batch_size": 32,
            "learning_rate": 1e-3,
            "weight_decay": 0.0,
            "beta": 1.0,
            "warmup": 0.0,
            "binarize": "dynamic" if name == "bernoulli" else "none",
            "seed": 0,
            **changes,
        }
    )
    with FakeTensorMode(allow_non_fake_inputs=True):
        data = ResidentData(torch.empty(130, 12, dtype=torch.uint8), name="data", pixels=True)
        spec = ModelSpec(input_shape=(12,), latent_dim=3, likelihood=name, variance=variance)
        with elsewhere:
            model = build_model(spec)
        totals = EpochTotals(elsewhere)
        step = Step(model, settings, device=elsewhere)
        if steps_of is Steps:
            steps = Steps(step, totals, settings, total_steps=10)
        else:
            steps = CapturedSteps(
                step,
                totals,
                settings,
                total_steps=10,
                data=data,
                device=elsewhere,
                recorder=Immediately(elsewhere),
                fall_back=False,
            )
        with steps:
            for epoch in (1, 2):
                batches = loop._batches(data, settings, epoch, elsewhere)
                assert sum(steps.epoch(epoch, batches)) == 4 * 32 + 2
        assert all(parameter.device == elsewhere for parameter in model.parameters())


@pytest.fixture
def beside(monkeypatch):
    """A branch without a device, which stays in the order of the program."""
    stream = types.SimpleNamespace(wait_stream=lambda _: None)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(branches, "stream_of", lambda *_: stream)
    monkeypatch.setattr(branches, "_are_plain", lambda *_: True)
    return branches.SideBranch(CPU)


def layers_with_gradients(mode, frozen=()):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(7, 30), nn.ReLU(), nn.Linear(30, 5), nn.ReLU(), nn.Linear(5, 40))
    parameters = dict(layers.named_parameters())
    for name in frozen:
        parameters[name].requires_grad_(False)
    with mode(layers) if callable(mode) else mode:
        layers(torch.randn(20, 7)).square().sum().backward()
    return {name: parameter.grad for name, parameter in parameters.items()}


@pytest.mark.parametrize("frozen", [(), ("2.weight",), ("4.bias", "0.weight")])
@pytest.mark.parametrize("with_relu", [True, False])
def test_linear_layers_of_a_graph_have_the_gradients_of_any(beside, monkeypatch, frozen, with_relu):
    monkeypatch.setattr(small_layers, "FEW_OUTPUTS", 10)
    expected = layers_with_gradients(contextlib.nullcontext(), frozen)
    found = layers_with_gradients(
        lambda model: branches.LinearLayers(beside, model if with_relu else None), frozen
    )
    assert {name for name, grad in found.items() if grad is None} == set(frozen)
    for name in found.keys() - frozen:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-5, atol=1e-5)
    assert len(beside._made) == 6 - len(frozen)
    beside.join()


@pytest.mark.usefixtures("beside")
def test_a_branch_is_freed_when_it_is_done():
    """Autograd knows it, and nobody finds a cycle that goes through that."""
    branch = branches.SideBranch(CPU)
    layers_with_gradients(branches.LinearLayers(branch))
    assert branch._kept
    branch = weakref.ref(branch)
    gc.collect()
    assert branch() is None


def test_a_gradient_that_autograd_copied_is_not_taken_for_that_of_the_branch(beside):
    """It was copied in the main branch, which had not waited."""
    layer = nn.Linear(7, 3)
    with branches.LinearLayers(beside):
        for _ in range(2):  # the second is added to the first
            layer(torch.randn(20, 7)).sum().backward()
    with pytest.raises(branches.GradientInUseError, match="did not take the gradient of a weight as it was"):
        beside.join()


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_gradient_that_a_hook_sees_is_not_for_the_update_alone(beside, register):
    layer = nn.Linear(7, 3)
    getattr(layer.weight, register)(lambda _: None)
    with branches.LinearLayers(beside):
        layer(torch.randn(20, 7)).sum().backward()
    with pytest.raises(branches.GradientInUseError, match="has a hook"):
        beside.join()


def test_compiled_modules_of_ones_own_are_not_compiled_again_in_the_capture(recorders, monkeypatch):
    """There it would fail: a compiler asks for the state of the generator."""
    when, now = [], ["warm-up"]

    class Repeats:
        """No tape: the compiler does nothing while one runs."""

        def __enter__(self):
            pass

        def __exit__(self, *_):
            pass

        def __call__(self, work):
            now[0] = "capture"
            work()
            done = [None]  # what was recorded is the first replay
            return lambda: done.pop() if done else work()

    def backend(module, inputs):
        when.append(now[0])
        return module.forward

    monkeypatch.setattr(loop, "CudaRecorder", lambda _: Repeats())
    monkeypatch.setattr(graph, "MOST_STEPS", 1)  # what is recorded is done
    torch._dynamo.reset()
    encoder = nn.Sequential(nn.Flatten(), torch.compile(nn.Linear(16, 4), backend=backend, dynamic=False))
    # Batches of one size, as another one is compiled for itself.
    run(PIXELS[:64], encoder=encoder, hidden_dims=None, compile="graph", validation=None)
    assert now == ["capture"]
    assert when
    assert "capture" not in when


def test_a_step_whose_gradients_are_in_use_is_captured_without_a_branch(beside, monkeypatch, recorders):
    """What breaks on the way leaves no branch astray."""
    made, astray = [], []

    class Branch(branches.SideBranch):
        def __init__(self, device):
            made.append(self)
            super().__init__(device)

        def join(self):
            raise branches.GradientInUseError("somebody looks")

        def rejoin(self):
            astray.append(self)

    build = CapturedSteps.__init__

    def on_a_device(self, *arguments, **options):
        build(self, *arguments, **options)
        self._branches = True

    expected = run(compile="graph")
    monkeypatch.setattr(graph, "SideBranch", Branch)
    monkeypatch.setattr(CapturedSteps, "__init__", on_a_device)
    assert_same_run(run(compile="graph"), expected)
    assert len(made) == 1
    assert astray == made


def test_a_layer_that_has_its_relu_refuses_to_go_on_without_it(beside):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x, mode = torch.randn(5, 3), branches.LinearLayers(beside, model)
    with pytest.raises(RuntimeError, match="with the ReLU behind it, and that was not called"), mode:
        model[2](model[0](x))
    mode = branches.LinearLayers(beside, model)
    with pytest.raises(RuntimeError, match="with the ReLU behind it, and that was not called"), mode:
        model[0](x)
    with branches.LinearLayers(beside, model):
        y = model[0](x)
        assert torch.equal(y, model[1](y))
        assert torch.equal(model[1](-y), torch.zeros_like(y)), "only the one behind the layer is left out"


def test_only_plain_layers_on_cuda_are_computed_otherwise():
    x, weight, bias = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4)
    assert not branches._are_plain(x, weight, bias)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, weight, bias = (torch.empty(shape, device="cuda") for shape in ((2, 3), (4, 3), (4,)))
        assert branches._are_plain(x, weight, bias)
        assert not branches._are_plain(x, weight, None)
        assert not branches._are_plain(x[None], weight, bias)
        assert not branches._are_plain(x.double(), weight.double(), bias.double())
        with torch.no_grad():
            assert not branches._are_plain(x, weight, bias)


# On a GPU

gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(test):
    for mark in gpu:
        test = mark(test)
    return test


ENOUGH = {"epochs": 20, "device": "cuda"}
"""60 full batches: enough for compile="auto"."""


@pytest.fixture
def captures(monkeypatch):
    """How often a graph was captured."""
    made = []
    record = CudaRecorder.__call__

    def counted(self, work):
        replay = record(self, work)
        made.append(replay)
        return replay

    monkeypatch.setattr(CudaRecorder, "__call__", counted)
    return made


@on_gpu
@pytest.mark.parametrize("changes", KINDS.values(), ids=KINDS)
def test_a_cuda_graph_trains_as_uncaptured_steps_do(changes, captures):
    changes = {"data": PIXELS, "seed": 3} | changes | {"device": "cuda"}
    captured = run(**changes, compile="graph")
    settings, samples = captured.config.training, captured.config.data.samples
    assert len(captures) == (1 if samples < 2 * settings.batch_size else 2)
    # Not bit for bit: the graph rounds otherwise where it weighs the KL and adds up an epoch.
    bounds = {"rtol": 2e-2, "atol": 2e-3} if "precision" in changes else {"rtol": 1e-4, "atol": 1e-5}
    assert_same_run(captured, run(**changes, compile=False), **bounds)
    assert all(parameter.grad is None for parameter in captured.model.parameters())


@on_gpu
def test_auto_is_a_graph_for_fastvaes_own_networks(captures, capsys):
    automatic = run(**ENOUGH, progress=True)
    assert len(captures) == 2
    told = capsys.readouterr().err
    assert f"on cuda:{torch.cuda.current_device()} in float32, data resident on cuda:" in told
    assert "steps in CUDA graphs\n" in told
    assert_same_run(automatic, run(**ENOUGH, compile=False), rtol=1e-4, atol=1e-5)
    run(encoder=nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), **ENOUGH, hidden_dims=None)
    assert len(captures) == 2, "what modules of one's own do in Python is not known"


@on_gpu
@pytest.mark.parametrize("how", [False, "graph"])
@pytest.mark.parametrize(
    "changes",
    [
        {"binarize": "dynamic", "warmup": 0.5},
        {"data": TABLE},
        {"free_bits": 0.1},
        {"capacity": 0.5, "warmup": 0.5},
    ],
)
def test_the_cpu_and_a_gpu_see_the_same_noise_batches_and_pixels(changes, how):
    """What is left is the rounding of the networks.

    Dense layers that are off by a relative 2e-7 move the bound by up to 5e-7 over the 20 steps here; the
    limit is forty times that. Another order of the batches, or other noise, is off by per cents.
    """
    changes = {"data": PIXELS, "validation": None} | changes
    on_cpu, on_cuda = run(**changes), run(**changes | {"device": "cuda", "compile": how})
    for record, expected in zip(on_cuda.history, on_cpu.history, strict=True):
        for key in ("elbo", "recon", "kl"):
            assert record[key] == pytest.approx(expected[key], rel=2e-5, abs=1e-6), key
        assert record["beta"] == expected["beta"]


@on_gpu
@pytest.mark.parametrize("data", [PIXELS, BYTES], ids=["float32", "uint8"])
@pytest.mark.parametrize("kind", ["none", "dynamic", "threshold"])
def test_batches_are_the_same_bits_on_the_cpu_and_on_a_gpu(data, kind):
    from fastvae.data.binarize import Binarize

    part, _ = open_data(data).split(0.2, seed=1)
    order = noise.permutation(len(part), 5)
    cuda = torch.device("cuda", torch.cuda.current_device())
    both = [
        list(part.batches(16, order=order, device=device, binarize=Binarize(kind, 9)))
        for device in (CPU, cuda)
    ]
    for (x, rows), (x_cuda, rows_cuda) in zip(*both, strict=True):
        assert x_cuda.device == cuda
        assert torch.equal(x, x_cuda.cpu())
        assert torch.equal(rows, rows_cuda.cpu())


def steps_on_cuda(data, kind, *, epochs=4, **changes):
    """A training taken apart, to be looked at between its steps."""
    device = torch.device("cuda", torch.cuda.current_device())
    settings = Settings(**{
        "epochs": epochs, "batch_size": 8, "learning_rate": 1e-3, "weight_decay": 0.0, "beta": 1.0,
        "warmup": 0.5, "binarize": "dynamic", "seed": 0, **changes,
    })  # fmt: skip
    data = open_data(data)
    model = build_model(ModelSpec(data.shape, 2, hidden_dims=(8,))).to(device).train()
    totals = EpochTotals(device)
    step = Step(model, settings, device=device)
    total_steps = epochs * data.batch_count(8)
    if kind == "uncaptured":
        return Steps(step, totals, settings, total_steps=total_steps), (data, settings, device)
    captured = CapturedSteps(
        step,
        totals,
        settings,
        total_steps=total_steps,
        data=data,
        device=device,
        recorder=CudaRecorder(device),
        fall_back=False,
        own_networks=True,
    )
    return captured, (data, settings, device)


@on_gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("kind", ["captured", "uncaptured"])
def test_no_step_waits_for_the_gpu(kind, monkeypatch):
    monkeypatch.setattr(graph, "MOST_STEPS", 2)
    steps, (data, settings, device) = steps_on_cuda(BYTES, kind)
    with steps:
        sizes = steps.epoch(1, loop._batches(data, settings, 1, device))
        for _ in range(WARM_UP + 1):  # kernels are loaded, constants made, the graphs captured
            next(sizes)
        torch.cuda.set_sync_debug_mode("error")
        try:
            assert [next(sizes) for _ in range(2)] == ([16, 8] if kind == "captured" else [8, 8])
        finally:
            torch.cuda.set_sync_debug_mode("default")


@on_gpu
@pytest.mark.parametrize("kind", ["captured", "uncaptured"])
def test_memory_does_not_grow_with_the_epochs(kind):
    steps, (data, settings, device) = steps_on_cuda(BYTES, kind, epochs=6)
    used = []
    with steps:
        for epoch in range(1, 7):
            list(steps.epoch(epoch, loop._batches(data, settings, epoch, device)))
            torch.cuda.synchronize(device)
            used.append(torch.cuda.memory_allocated(device))
    # The totals of uncaptured steps wait for others, a few numbers each.
    assert max(used[2:]) - used[1] <= (0 if kind == "captured" else 64 * 1024)


@on_gpu
def test_a_graph_gives_its_memory_back():
    before = None
    for _ in range(3):
        result = run(**ENOUGH)
        del result
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        used = torch.cuda.memory_allocated()
        assert before is None or used <= before
        before = used


@on_gpu
def test_dropout_in_a_graph_draws_what_it_draws_without(captures):
    def trained(how):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(16, 4))
        return run(encoder=encoder, hidden_dims=None, **ENOUGH, compile=how)

    captured = trained("graph")
    assert len(captures) == 2
    # One mask for all replays, or the masks of the first epoch in each, leads to other weights.
    assert_same_run(captured, trained(False), rtol=1e-4, atol=1e-5)
    assert_same_run(captured, trained("graph"), rtol=0, atol=0)


@on_gpu
def test_a_replay_follows_the_generator_that_was_seeded_again():
    device = torch.device("cuda", torch.cuda.current_device())
    drawn = torch.zeros(1000, device=device)
    recorder = CudaRecorder(device)
    with repeatable(0, device), recorder:
        drawn.bernoulli_(0.5)
        replay = recorder(lambda: drawn.bernoulli_(0.5))
        masks = []
        for seed in (1, 1, 2):
            seed_generators(seed, device)
            for _ in range(2):
                replay()
                masks.append(drawn.clone())
    assert torch.equal(masks[0], masks[2])
    assert torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[4])


@on_gpu
def test_the_random_state_of_the_gpu_is_left_alone(captures):
    torch.cuda.manual_seed(7)
    before = torch.cuda.get_rng_state()
    run(**ENOUGH)
    assert len(captures) == 2
    assert torch.equal(torch.cuda.get_rng_state(), before)


@on_gpu
@pytest.mark.parametrize("sizes", [[16, 16, 16, 16, 3], [5, 16, 5, 5, 5]])
def test_batches_that_arrive_on_a_gpu_are_copied_into_the_graph(sizes, captures):
    changes = {"validation": None, "warmup": 0.5, "binarize": "dynamic", "device": "cuda"}
    captured = run(loader(sizes), **changes, compile="graph")
    assert len(captures) == 1
    assert_same_run(captured, run(loader(sizes), **changes, compile=False), rtol=1e-4, atol=1e-5)


@on_gpu
def test_data_that_does_not_fit_stays_on_the_host(captures, monkeypatch):
    changes = {"warmup": 0.5, "binarize": "dynamic", "device": "cuda"}
    expected = run(BYTES, **changes, compile=False)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 10**9))
    captured = run(BYTES, **changes, compile="graph")
    assert len(captures) == 1
    assert_same_run(captured, expected, rtol=1e-4, atol=1e-5)


@on_gpu
def test_a_step_that_reads_a_number_cannot_be_captured_and_the_next_training_can(captures):
    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(16, 4)

        def forward(self, x):
            return self.inner(x.flatten(1)) * (2.0 if x.sum() > 0 else 1.0)

    with pytest.raises(RuntimeError) as caught:
        run(encoder=Reads(), hidden_dims=None, **ENOUGH, compile="graph")
    assert 'compile="graph" captures the step' in caught.value.__notes__[0]
    assert torch.rand(3, device="cuda").isfinite().all(), "the generator took itself to be in the capture"
    assert_same_run(run(**ENOUGH), run(**ENOUGH, compile=False), rtol=1e-4, atol=1e-5)
    assert len(captures) == 2


@on_gpu
@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_capture_that_breaks_in_backward_leaves_nothing_astray(monkeypatch, captures, kind):
    """In the branch, when it has begun: the allocator and the next capture know nothing of it."""
    take, taken = branches.SideBranch.made, []

    def breaks(self, parameter, grad):
        taken.append(parameter)
        if len(taken) == 3:
            raise kind("in backward")
        return take(self, parameter, grad)

    monkeypatch.setattr(branches.SideBranch, "made", breaks)
    if kind is KeyboardInterrupt:
        assert run(**ENOUGH, compile="graph").interrupted
    else:
        with pytest.raises(RuntimeError, match="in backward"):
            run(**ENOUGH, compile="graph")
    monkeypatch.setattr(branches.SideBranch, "made", take)
    assert torch.rand(3, device="cuda").isfinite().all()
    assert_same_run(run(**ENOUGH), run(**ENOUGH, compile=False), rtol=1e-4, atol=1e-5)
    assert len(captures) == 2


@on_gpu
def test_a_graph_without_a_branch_trains_as_one_with_it(monkeypatch, captures):
    """The first capture is given up when it is nearly done."""
    expected = run(**ENOUGH, binarize="dynamic")

    def join(self):
        self.rejoin()
        raise branches.GradientInUseError("somebody looks")

    monkeypatch.setattr(branches.SideBranch, "join", join)
    assert_same_run(run(**ENOUGH, binarize="dynamic"), expected, rtol=1e-4, atol=1e-5)
    assert len(captures) == 4


@on_gpu
@pytest.mark.parametrize("hidden", [(8,), (200, 200), (1100,)])
@pytest.mark.parametrize("batch_size", [16, 30])
def test_layers_of_a_graph_train_as_torchs_do(hidden, batch_size, captures):
    """Those that are one kernel, and wider ones that are not."""
    changes = ENOUGH | {"hidden_dims": hidden, "batch_size": batch_size, "latent_dim": 5}
    assert_same_run(run(**changes, compile="graph"), run(**changes, compile=False), rtol=1e-4, atol=2e-5)
    assert len(captures) == 2


@on_gpu
def test_auto_goes_on_where_a_capture_breaks(monkeypatch):
    """The capture is broken for real, by reading a number in it."""
    take = Step.__call__

    def reads(self, x, *others):
        if torch.cuda.is_current_stream_capturing():
            x.sum().item()
        return take(self, x, *others)

    expected = run(**ENOUGH, compile=False)
    monkeypatch.setattr(Step, "__call__", reads)
    with pytest.warns(NotCapturedWarning, match="training goes on without"):
        fallen_back = run(**ENOUGH)
    assert_same_run(fallen_back, expected, rtol=1e-4, atol=1e-5)
    assert torch.rand(3, device="cuda").isfinite().all()


@on_gpu
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")
def test_a_compiled_step_on_a_gpu_trains_as_one_that_is_not():
    torch._dynamo.reset()
    changes = {"warmup": 0.5, "device": "cuda"}
    assert_same_run(run(**changes, compile="inductor"), run(**changes, compile=False), rtol=1e-3, atol=1e-4)
