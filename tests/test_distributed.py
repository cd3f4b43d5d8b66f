"""Processes that train together get the model of one: the same noise, pixels and batches, by shares.

The cases are in rank_cases.py. A few processes do all of them, one after the other; a training of one process
in this one is what they are compared with.
"""

import functools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fastvae
import rank_cases
from fastvae import functional, noise
from fastvae.data import open_data
from fastvae.data.base import Summary
from fastvae.evaluation import evaluate
from fastvae.evaluation.evaluate import EvaluationSums
from fastvae.models import ModelSpec, Terms, build_model
from fastvae.training import load, train
from fastvae.training import ranks as ranks_module
from fastvae.training.compilation import choose_compilation
from fastvae.training.config import Settings
from fastvae.training.dense import DensePass
from fastvae.training.device import choose_device
from fastvae.training.history import EpochTotals
from fastvae.training.interrupts import AsCtrlC, deadly
from fastvae.training.loop import _batches
from fastvae.training.randomness import Stream, derive
from fastvae.training.ranks import Ranks
from fastvae.training.resumption import SAMPLED_ROWS
from fastvae.training.shared_gradients import SharedGradients
from fastvae.training.step import Step
from rank_cases import CASES, ONE_STEP, PIXELS, SAMPLES, WHOLE

TESTS = Path(__file__).parent
SECONDS = 240.0
"""More than any of these take."""

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
    reason="this torch has no processes that train together",
)


def environment(rank, size, port, **more):
    return {
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "PYTHONPATH": os.pathsep.join([str(TESTS), *sys.path]),
        **more,
    }


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


def started(size, folder, names):
    """The processes of a training, at the cases that are named."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, "-W", "error", TESTS / "rank_cases.py", *names, folder],
            env=environment(rank, size, port, FILE_STORE=str(folder / "store")),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def ended(processes):
    """What processes print; all of them end."""
    try:
        return [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()


def by_one_thread(work):
    """What it gives; torch's products depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work()
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[2, 3], ids=["two", "three"])
def together(request, tmp_path_factory):
    """What each of several processes gets of all cases."""
    folder = tmp_path_factory.mktemp(f"ranks{request.param}")
    processes = started(request.param, folder, CASES)
    for text, process in zip(ended(processes), processes, strict=True):
        assert process.returncode == 0, text
    # Written by the processes above.
    results = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(request.param)]
    return {name: [of_one[name] for of_one in results] for name in CASES}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process gets of a case."""
    folder, results = tmp_path_factory.mktemp("alone"), {}

    def result(name):
        if name not in results:
            results[name] = by_one_thread(lambda: CASES[name](0, folder))
        return results[name]

    return result


def assert_one_run(one, other):
    """Of two processes."""
    assert one["times"] == other["times"]
    assert_same_bits(one, other)


def assert_same_bits(one, other):
    assert one["history"] == other["history"]
    assert one["state"].keys() == other["state"].keys()
    for name, tensor in one["state"].items():
        assert torch.equal(tensor, other["state"][name]), name


def assert_close(history, expected, bound=2e-5):
    """The numbers of two histories, to a bound relative to the sizes of the terms."""
    assert len(history) == len(expected)
    for record, right in zip(history, expected, strict=True):
        assert record.keys() == right.keys()
        for name, value in record.items():
            if value is None or isinstance(value, int):
                assert value == right[name], name
            else:
                size = max(abs(right[term]) for term in ("recon", "kl", "beta"))
                assert abs(value - right[name]) <= bound * size, (name, value, right[name])


ALIKE = (
    "other_weights", "at_once", "own_group", "validated_on_a_loader", "sparse_gradients", "synchronized",
    "skipped_for_a_term", "after_a_failure", "after_a_failure_in_an_own_group",
)  # fmt: skip


@pytest.mark.parametrize("name", [*WHOLE, *ALIKE])
def test_processes_get_one_model_and_the_bounds_of_one_process(name, together, alone):
    """To the rounding of float32, over three epochs; of bfloat16 to that of bfloat16."""
    first, *others = together[name]
    for other in others:
        assert_one_run(first, other)
    # A rounding of bfloat16 is 2^-9, averaged over the values of a sample.
    assert_close(first["history"], alone(name)["history"], bound=1e-3 if name == "bfloat16" else 2e-5)


@pytest.mark.parametrize("name", [*ONE_STEP, "step_without_kernels", "step_compiled"])
def test_the_gradient_is_that_of_the_whole_batch(name, together, alone):
    """To rounding, so the pixels and the noise of each share are those of the batch."""
    of_all = together[name][0]
    expected = alone(name if name in ONE_STEP else "step_of_mlp")
    assert of_all.keys() == expected.keys()
    for parameter, gradient in of_all.items():
        size = expected[parameter].abs().max()
        assert size > 0
        torch.testing.assert_close(gradient, expected[parameter], rtol=0, atol=4e-6 * size.item())


def test_the_noise_of_a_share_is_that_of_its_rows(together):
    """Bit for bit; of the last batch, which has one sample, all but the last process have nothing."""
    shares = [of_one["codes"] for of_one in together["noise_of_shares"]]
    assert [len(codes) for codes in shares] == [2] * (len(shares) - 1) + [3]
    mu, logvar = torch.ones(20, 3), -torch.ones(20, 3)
    for step, rows in enumerate((20, 20, 1)):
        drawn = torch.cat([codes[step] for codes in shares if step < len(codes)])
        seed = noise.fold_in(derive(0, Stream.LATENT), step)
        expected = functional.reparametrize(mu[:rows], logvar[:rows], seed=seed)
        assert torch.equal(drawn, expected)


def test_a_process_reads_its_own_share_of_a_data_set(together):
    read = [of_one["read"] for of_one in together["read_as_needed"]]
    own = [rows[-per_epoch:] for rows, per_epoch in zip(read, rows_of_each(len(read)), strict=True)]
    assert sorted(row for rows in own for row in rows) == list(range(SAMPLES))
    for rows in read:
        # Its share of a look at all, and of the epoch; and what a data set and a network are looked at by.
        assert len(rows) <= 2 * (SAMPLES // len(read) + SAMPLES // 20 + 1) + 2 * SAMPLED_ROWS + 5


def test_samples_that_are_drawn_anew_are_not_compared(together):
    for of_one in together["augmented"]:
        assert len(of_one["history"]) == 1


def rows_of_each(size):
    """How many rows each process visits in an epoch of batches of 20."""
    batches = [20] * (SAMPLES // 20) + [SAMPLES % 20]
    shares = [[Ranks(rank, size).share(samples) for samples in batches] for rank in range(size)]
    return [sum(share.stop - share.start for share in of_one) for of_one in shares]


def test_what_modules_keep_is_that_of_the_first(together):
    """Running statistics are of its shares, and all have them."""
    first, *others = together["batch_norm"]
    assert first["state"]["encoder.2.num_batches_tracked"] > 0
    for other in others:
        assert_one_run(first, other)


def test_whatever_modules_keep_is_that_of_the_first(together):
    """Of any type, strides and shape, and beside tensors; not what depends on the batch and is not kept."""
    first, *others = together["odd_state"]
    for other in others:
        assert other == first
    assert any(name.endswith("_extra_state") for name in first)


@pytest.mark.parametrize("name", ["after_a_failure", "after_a_failure_in_an_own_group"])
def test_a_failure_in_one_process_ends_the_training_in_all(name, together):
    """At once, and the next one begins anew."""
    for rank, of_one in enumerate(together[name]):
        assert ("OSError: out of order" if rank == 1 else "RuntimeError") in of_one["error"]


def test_nothing_is_left_behind(together):
    for of_one in together["after_a_failure"]:
        assert of_one["left"] == {"group": False, "hook": True, "filters": True}


def test_processes_drop_other_units(together):
    first, *others = together["dropout"]
    for other in others:
        assert_one_run(first, other)
        assert not torch.equal(first["masks"], other["masks"])


def test_a_parameter_without_a_gradient_stays_as_it_is(together, alone):
    """Whatever the weight decay, and where a share is empty."""
    for of_one in together["unused"]:
        assert torch.equal(of_one["state"]["encoder.unused"], torch.ones(3))
    assert_close(together["unused"][0]["history"], alone("unused")["history"])


def test_a_step_is_skipped_by_all_or_none(together, alone):
    """One of them meets the infinite number; the first one warns, whoever that was."""
    expected = alone("skipped")["history"]
    for name in ("skipped", "skipped_for_a_term"):
        assert [record["skipped_steps"] for record in alone(name)["history"]] == [1, 1, 1]
    first, *others = together["skipped"]
    assert_close(first["history"], expected)
    assert first["warned"] == 1
    for other in others:
        assert_one_run(first, other)
        assert other["warned"] == 0


def test_the_first_writes_the_folder(together):
    first, *others = together["folder_of_all"]
    assert first["written"] > 0
    for other in others:
        assert_one_run(first, other)
        assert other["written"] == 0


def test_a_run_is_resumed_bit_for_bit(together):
    for cut, whole in zip(together["resumed"], together["at_once"], strict=True):
        assert_same_bits(cut, whole)


def test_a_run_is_resumed_by_another_number_of_processes(together, alone):
    """Its first epochs are those of one process."""
    first, *others = together["resumed_with_others"]
    expected = alone("at_once")["history"]
    assert first["history"][:2] == expected[:2]
    assert_close(first["history"], expected)
    for other in others:
        assert_one_run(first, other)


def test_a_group_of_the_users_own_is_left(together):
    for of_one in together["own_group"]:
        assert of_one["left"]
        assert "TypeError: the encoder is in DistributedDataParallel" in of_one["wrapped"]


def test_without_sharing_each_process_trains_by_itself(together):
    """The same bits as a process that was told of no other."""
    for rank, of_one in enumerate(together["own_training"]):
        assert_same_bits(of_one, by_one_thread(lambda: rank_cases.own_training(rank, None)))  # noqa: B023


REFUSED = {
    "loader": "TypeError: .* cannot share the batches of a DataLoader",
    "small batch": "ValueError: .* batch_size is 1, and there are 93 samples",
    "few samples": "ValueError: .* batch_size is 20, and there are 1 samples",
    "norm": "ValueError: batch normalisation .* batch_size of at least [46]",
    "seed": "ValueError: .* seed 0 in process 0 and 1 in process 1.* distributed=False",
    "shards": "ValueError: .* process 1 has data with other values than process 0. Each needs the whole",
    "held out": "ValueError: process 1 reads other samples to validate on than process 0",
    "kind": "ValueError: .* process 1 has data with other values",
    "layout": r"ValueError: .* decoder.0.weight: trained .* and trained .* with strides \(1, 8\)",
    "extra state": "TypeError: processes have to exchange the extra state of encoder, and pickle",
    "large shards": "ValueError: process 1 reads other samples to train on than process 0. Each needs the",
    "beta": "ValueError: (?!.*whole data).* beta 1.0 in process 0 and 2.0 in process 1; distributed=False",
    "lengths": "ValueError: .* samples to train on 45 in process 0 and 46 in process 1",
    "order": "ValueError: .* buffers, but process 0 and process 1 have them in another order",
    "activation": "ValueError: .* have encoder.2: ReLU and Tanh",
    "synchronized": "ValueError: SyncBatchNorm waits for all [23] processes, and the last batch .* 1 of 41",
    "batches": r"ValueError: .* encoder.last: torch.float32 of .* persistent=False|ValueError.*encoder.last",
    "frozen": r"ValueError: .* decoder.0.weight: trained torch.float32 of \(8, 3\) and torch.float32 of",
    "drifting": "RuntimeError: the weights of process 1 are not those of process 0 after epoch 1",
    "resume": "ValueError: process 1 finds another run to resume",
}


@pytest.mark.parametrize("name", REFUSED)
def test_all_processes_refuse_what_they_cannot_do_together(name, together):
    for of_one in together["refusals"]:
        assert re.match(REFUSED[name], of_one[name]), of_one[name]


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("missing", "FileNotFoundError: data: there is no file"),
        ("modules", "ValueError: the encoder must give"),
    ],
)
def test_all_processes_end_where_one_fails(name, error, together):
    """Before any work, and the others say which and why."""
    for rank, of_one in enumerate(together["refusals"]):
        other = re.escape(f"RuntimeError: process 1 of {len(together['refusals'])} did not get as far")
        assert re.match(error if rank == 1 else f"{other}.*{error}", of_one[name]), of_one[name]


def torchrun(folder, *arguments):
    """Two processes, started as people do."""
    done = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
            "--monitor-interval", "0.1", *arguments,
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_torchrun_trains_on_the_command_line(tmp_path):
    """One run folder, one report."""
    options = "train digits --epochs 2 --no-progress --device cpu"
    done = torchrun(tmp_path, "-m", "fastvae", *options.split())
    # torch 2.10 says there which processes are connected.
    assert [line for line in done.stdout.splitlines() if "[Gloo]" not in line] == ["runs/digits"]
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["digits"]
    kept = load(tmp_path / "runs/digits")
    expected = train("digits", epochs=2, progress=False, device="cpu")
    assert_close(rank_cases.told(kept)["history"], rank_cases.told(expected)["history"])


RESTARTED = """
import os
import numpy as np
import fastvae
from fastvae.training import loop

record = loop._record

def cut(epoch, *args, **kwargs):
    if epoch == 3 and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0" and os.environ["RANK"] == "0":
        os._exit(9)
    return record(epoch, *args, **kwargs)

loop._record = cut
x = np.random.default_rng(0).random((64, 100), dtype=np.float32)
result = fastvae.train(
    x, epochs=4, batch_size=32, device="cpu", validation=None, progress=False, output_dir="run", resume=True
)
"""


def test_torchrun_begins_anew_where_a_process_ends(tmp_path):
    """In the same store, where the addresses of the first ones are."""
    (tmp_path / "script.py").write_text(RESTARTED)
    torchrun(tmp_path, "--max-restarts", "1", "script.py")
    assert len(load(tmp_path / "run").history) == 4


def test_the_sweep_of_the_documentation_runs(tmp_path, monkeypatch):
    document = TESTS.parent / "docs/processes.md"
    if not document.exists():
        pytest.skip("docs/ is not beside these tests")
    pytest.importorskip("sklearn")
    (code,) = re.findall(r"```python\n(.*?)```", document.read_text(encoding="utf-8"), flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fastvae, "train", functools.partial(train, epochs=1))
    launch(monkeypatch, RANK=2, WORLD_SIZE=4)
    exec(code, names := {})
    assert names["vae"].config.training.beta == 2
    assert load("runs/beta-2").config.training.beta == 2


WAITING = """
import os, signal, sys
import numpy as np
import fastvae
from fastvae.training import loop, run_folder

run_folder.FEWEST_SECONDS_KEPT, run_folder.WRITING_SHARE = 0.0, 1e9  # each epoch
signal.signal(signal.SIGINT, signal.default_int_handler)  # the background of a shell has it ignored
folder = sys.argv[1]
record = loop._record

def tell(epoch, *args, **kwargs):
    if epoch == 3:
        open(os.path.join(folder, "trains" + os.environ["RANK"]), "w").close()
    return record(epoch, *args, **kwargs)

loop._record = tell
x = np.random.default_rng(0).random((64, 100), dtype=np.float32)
result = fastvae.train(
    x, epochs=10**6, batch_size=32, device="cpu", validation=None, progress=False, output_dir=folder + "/run"
)
print("interrupted", result.interrupted, len(result.history))
"""


@pytest.fixture
def training(tmp_path):
    """Two processes that train until they are ended."""
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", WAITING, tmp_path],
            env=environment(rank, 2, port, OMP_NUM_THREADS="1"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    wait_for(lambda: all((tmp_path / f"trains{rank}").exists() for rank in range(2)), processes)
    yield processes
    for process in processes:
        process.kill()


def test_ctrl_c_keeps_the_run_of_all(training, tmp_path):
    """As torchrun passes it on, to each process."""
    for process in training:
        process.send_signal(signal.SIGINT)
    first, second = ended(training)
    assert "interrupted True" in first, first
    assert re.search("interrupted True|KeyboardInterrupt", second), second
    assert load(tmp_path / "run").interrupted


def test_a_process_that_is_killed_ends_the_others(training, tmp_path):
    """With an error that says so, and what the first one had is kept."""
    training[1].kill()
    first, _ = ended(training)
    assert training[0].returncode == 1
    assert "process 0 of 2 could not exchange with the others" in first
    reached = int(re.search(r"resume=True goes on with the run in .* after epoch (\d+)", first)[1])
    names: dict = {"sys": None}
    arguments = WAITING[WAITING.index("x = np") : WAITING.index("print(")]
    code = arguments.replace("10**6", str(reached + 2)).replace('/run"', '/run", resume=True')
    exec(f"import numpy as np\nimport fastvae\n{code}", names | {"folder": str(tmp_path)}, names)
    assert len(names["result"].history) == reached + 2


def wait_for(event, processes):
    """Wait for something that processes do, as long as they live."""
    latest = time.monotonic() + SECONDS
    while not event():
        assert all(process.poll() is None for process in processes), ended(processes)
        assert time.monotonic() < latest
        time.sleep(0.02)


# ------------------------------------------------------------------------------- the parts


@given(size=st.integers(1, 9), samples=st.integers(0, 60), batch_size=st.integers(1, 20))
def test_shares_are_all_of_each_batch(size, samples, batch_size):
    """In order, each row once, and no process has over one more than another."""
    order = noise.permutation(samples, 5)
    batches = [Ranks(0, 1).share(samples), *(Ranks(rank, size).share(batch_size) for rank in range(size))]
    assert batches[0] == (0, samples, samples)
    assert [share.stop for share in batches[1:-1]] == [share.start for share in batches[2:]]
    assert {share.stop - share.start for share in batches[1:]} <= {batch_size // size, -(-batch_size // size)}
    for rank, share in enumerate(batches[1:]):
        smaller = Ranks(rank, size).share(batch_size - 1)
        assert smaller.stop - smaller.start <= share.stop - share.start
    of_each = [list(Ranks(rank, size).order(order, batch_size)) for rank in range(size)]
    for batch in order.split(batch_size):
        for rank, own in enumerate(of_each):
            share = Ranks(rank, size).share(len(batch))
            mine, of_each[rank] = own[: share.stop - share.start], own[share.stop - share.start :]
            assert mine == list(batch[share.start : share.stop])
    assert not any(of_each)


@pytest.mark.parametrize("size", range(1, 9))
def test_the_batches_of_processes_are_those_of_one(size):
    """Pixels included, and each process has a batch for each, if an empty one."""
    cpu = torch.device("cpu")
    for samples in range(size, 42):
        data = open_data(PIXELS[:samples])
        settings = Settings(
            epochs=1, batch_size=max(8, size), learning_rate=1e-3, weight_decay=0, beta=1, warmup=0, seed=4,
            binarize="dynamic",
        )  # fmt: skip
        whole = list(_batches(data, settings, 1, cpu))
        shares = [list(_batches(data, settings, 1, cpu, Ranks(rank, size))) for rank in range(size)]
        assert {len(of_one) for of_one in shares} == {len(whole)}
        for parts, batch in zip(zip(*shares, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(parts), batch)


SPEC = ModelSpec(
    input_shape=(36,), latent_dim=3, preset="mlp", hidden_dims=(8,), likelihood="bernoulli", variance=None,
    variational=True,
)  # fmt: skip


class Twice(Ranks):
    """Two processes that have the same."""

    def __init__(self):
        super().__init__(0, 2)

    def add_up(self, tensor):
        assert tensor.is_contiguous()
        tensor.mul_(2)


class AndOthers(Ranks):
    """Processes that have a little beside this one."""

    def __init__(self):
        super().__init__(0, 2)

    def add_up(self, tensor):
        tensor.add_(1e-3).add_(1e-3)


def test_gradients_of_half_precision_are_added_up_in_float32():
    gradient = torch.randn(1000).to(torch.bfloat16)
    parameter = nn.Parameter(torch.zeros(1000, dtype=torch.bfloat16))
    _, added = SharedGradients(AndOthers(), [parameter]).add_up([], [gradient])
    assert torch.equal(added[0], (gradient.float() + 1e-3 + 1e-3).to(torch.bfloat16))
    assert not torch.equal(added[0], gradient + 1e-3 + 1e-3)


@pytest.mark.parametrize("dense", [True, False])
def test_a_step_asks_what_all_have(dense, monkeypatch):
    """Not its own terms and gradients, which are finite."""
    settings = Settings(
        epochs=1, batch_size=8, learning_rate=1e-3, weight_decay=0, beta=1, warmup=0, seed=4, binarize="none"
    )  # fmt: skip
    model = build_model(SPEC)
    step = Step(model, settings, device=torch.device("cpu"), ranks=Twice())
    step.dense = DensePass(model) if dense else None
    x = torch.rand(4, 36)
    _, skipped = step(x, 1, 1.0, share=Ranks(0, 2).share(8))
    assert not skipped

    class OneIsInfinite(Twice):
        def add_up(self, tensor):
            super().add_up(tensor)
            step.optimizer.shared._finite.fill_(torch.nan)

    step.optimizer.shared._ranks = OneIsInfinite()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    _, skipped = step(x, 1, 1.0, share=Ranks(0, 2).share(8))
    assert skipped
    assert all(map(torch.equal, before, model.parameters()))


def test_gradients_keep_their_dtype_and_their_strides():
    """Those of a parameter that is laid out otherwise are beside it, as autograd has them."""
    parameters = [
        nn.Parameter(torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(5).to(torch.bfloat16)),
        nn.Parameter(torch.randn(2, 3, dtype=torch.float64)),
        nn.Parameter(torch.randn(7)),
        nn.Parameter(torch.randn(0)),
        nn.Parameter(torch.randn(())),
    ]
    shared = SharedGradients(Twice(), parameters)
    gradients = [torch.randn_like(parameter) for parameter in parameters]
    gradients[3] = None
    for _ in range(2):
        finite, added = shared.add_up([torch.ones(3), torch.tensor(2.0)], gradients)
        assert finite.isfinite().all()
        assert added[3] is None
        for parameter, one, two in zip(parameters, gradients, added, strict=True):
            if one is not None:
                assert two.dtype is parameter.dtype
                assert two.stride() == parameter.stride()
                assert torch.equal(two, 2 * one)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_an_output_that_is_not_finite_is_seen_by_all(value):
    parameter = nn.Parameter(torch.ones(3))
    shared = SharedGradients(Twice(), [parameter])
    finite, _ = shared.add_up([torch.tensor([1.0, value])], [torch.ones(3)])
    assert not finite.isfinite().any()
    finite, _ = shared.add_up([torch.tensor([1.0, 3e38])], [torch.ones(3)])
    assert finite.isfinite().all()


def test_an_evaluation_in_parts_is_the_whole():
    """Also where a part has no data; to the rounding of the networks, in other batches."""
    model = build_model(SPEC)
    x = torch.rand(23, 36)
    expected = evaluate(model, x.split(7), seed=9)
    whole = EvaluationSums(3)
    for start, stop in ((0, 10), (10, 10), (10, 23)):
        part = EvaluationSums(3)
        part.add(model, x[start:stop].split(7) if stop > start else [], 9, start)
        whole.take_in(part.numbers())
    assert whole.means() == pytest.approx(expected, rel=1e-6)


def test_a_graph_is_for_one_process():
    cuda = torch.device("cuda", 0)
    with pytest.raises(ValueError, match='compile="graph" captures the steps of one process, and here 2'):
        choose_compilation("graph", cuda, SPEC, 1000, Ranks(0, 2))
    assert choose_compilation("auto", cuda, SPEC, 1000, Ranks(0, 2)).kind is None
    assert choose_compilation("inductor", cuda, SPEC, 1000, Ranks(0, 2)).kind == "inductor"


@pytest.mark.parametrize("wrong", [0, 1, None, "torchrun"])
def test_what_says_nothing_of_sharing_is_refused(wrong):
    with pytest.raises(ValueError, match='distributed must be "auto"'):
        train("digits", distributed=wrong)


def launch(monkeypatch, **told):
    """Tell this process what a launcher would."""
    for name, value in (told | {"MASTER_ADDR": "localhost", "MASTER_PORT": 1}).items():
        monkeypatch.setenv(name, str(value))


def test_each_process_of_a_machine_takes_its_own_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    current = [0]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    assert choose_device("auto").index == 0
    for name, value in {
        "RANK": "6",
        "WORLD_SIZE": "8",
        "LOCAL_RANK": "2",
        "MASTER_ADDR": "x",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    assert choose_device("auto").index == choose_device("cuda").index == 2
    assert choose_device("cuda:1").index == 1
    current[0] = 3  # by torch.cuda.set_device
    assert choose_device("auto").index == 3
    current[0] = 0
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # a launcher hid the others
    assert choose_device("auto").index == 0


@pytest.mark.parametrize(("rank", "size"), [("x", "2"), ("0", "many"), ("2", "2"), ("-1", "2"), ("0", "0")])
def test_a_launcher_that_makes_no_sense_is_refused(rank, size, monkeypatch):
    launch(monkeypatch, RANK=rank, WORLD_SIZE=size, LOCAL_RANK="y")
    arguments = rank_cases.SMALL | {"epochs": 1, "device": "auto"}
    with pytest.raises(ValueError, match=rf"RANK is '{rank}' and WORLD_SIZE '{size}'; distributed=False"):
        train(PIXELS, **arguments)
    assert len(train(PIXELS, **arguments, distributed=False).history) == 1
    monkeypatch.setenv("WORLD_SIZE", " ")  # a launcher of another kind
    assert len(train(PIXELS, **arguments).history) == 1


def test_a_process_that_waits_for_others_says_so(monkeypatch):
    """After a while, if that is shown."""
    told = []
    monkeypatch.setattr(ranks_module, "SECONDS_UNTOLD", 0.01)
    with ranks_module._waiting(told.append):
        time.sleep(0.5)
    assert len(told) == 1
    assert "waiting for the other processes" in told[0]
    with ranks_module._waiting(told.append):
        pass
    assert len(told) == 1


def test_a_signal_ends_a_process_that_waits_for_others():
    """SIGTERM of the command line, whose handler in Python is not called there; nobody else's is touched."""
    before = signal.getsignal(signal.SIGTERM)
    own = AsCtrlC()
    try:
        signal.signal(signal.SIGTERM, own)
        with deadly():
            assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is own
        signal.signal(signal.SIGTERM, print)
        with deadly():
            assert signal.getsignal(signal.SIGTERM) is print
    finally:
        signal.signal(signal.SIGTERM, before)


def test_several_processes_can_be_asked_for():
    with pytest.raises(ValueError, match="distributed=True is for several processes"):
        train(PIXELS, distributed=True)


@pytest.mark.parametrize("bad", [(), (3,), (0, 4, 5, 9, 11, 12, 16)])
def test_a_look_at_parts_tells_of_the_whole(bad):
    x = np.random.default_rng(3).normal(size=(17, 4)).astype(np.float32)
    x[list(bad), 2] = np.nan
    data = open_data(x)
    ranges = [(0, 0), (0, 6), (6, 17)]
    parts = [data.summarize(torch.arange(start, stop)) for start, stop in ranges]
    merged, whole = Summary.of(parts), data.summarize(None)
    names = ["samples", "bad_count", "bad_rows"] + ([] if bad else ["low", "high", "binary"])
    for name in names:
        assert getattr(merged, name) == getattr(whole, name), name
    assert torch.equal(merged.bad_features, whole.bad_features)
    data.know(merged)
    if bad:
        with pytest.raises(ValueError, match=f"{len(bad)} of 17 samples"):
            data.value_range()
    else:
        assert data.value_range() == (x.min(), x.max())


def test_one_process_of_a_launcher_is_alone(monkeypatch):
    """With torchrun --nproc-per-node 1 nothing is exchanged."""
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with ranks_module.joined("auto", torch.device("cpu")) as ranks:
        assert ranks.size == 1
    assert ranks_module.is_first()


def test_devices_that_cannot_exchange_are_refused(monkeypatch):
    for name, value in {
        "RANK": "0",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": "1",
    }.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="not on mps"), ranks_module.joined("auto", torch.device("mps")):
        pass


def test_totals_of_shares_are_those_of_all():
    class Sum(Ranks):
        def add_up(self, tensor):
            tensor.add_(torch.tensor([-10.0, 1.0, 2.0], dtype=tensor.dtype))

    totals = EpochTotals(torch.device("cpu"))
    totals.add(Terms(torch.tensor([-1.0, -3.0]), torch.tensor([0.5, 0.5])), torch.zeros(()))
    totals.add(Terms(*torch.zeros(2, 0)), torch.zeros(()))
    totals.add(Terms(torch.tensor([-torch.inf]), torch.zeros(1)), torch.ones(()))
    assert totals.read(Sum(0, 2)) == (-14 / 4, 2 / 4, 4, 1)
    assert totals.read() == (-4 / 2, 1 / 2, 2, 1)
