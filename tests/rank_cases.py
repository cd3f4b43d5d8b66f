"""Trainings that processes do together, for test_distributed.py, which also has a single process do them.

    python rank_cases.py CASE... FOLDER

in each process, told of the others by the environment, writes what each case gives to ``FOLDER/RANK.pt``.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from fastvae.data import datasets
from fastvae.errors import NonFiniteWarning
from fastvae.training import TrainedVAE, train
from fastvae.training.step import Step

SAMPLES = 103
PIXELS = np.random.default_rng(1).integers(0, 256, (SAMPLES, 6, 6), dtype=np.uint8)
TABLE = np.random.default_rng(2).normal(size=(SAMPLES, 5)).astype(np.float32)
SMALL = {
    "latent_dim": 3,
    "hidden_dims": (8,),
    "epochs": 3,
    "batch_size": 20,
    "progress": False,
    "device": "cpu",
}
TIMES = ("seconds", "images_per_second")

CASES: dict[str, Callable[[int, Path], Any]] = {}


def case(function: Callable[[int, Path], Any]) -> Callable[[int, Path], Any]:
    """Keep a case by its name: it gets the number of its process and a folder that all have."""
    CASES[function.__name__] = function
    return function


def run(data: Any = PIXELS, **changes: Any) -> TrainedVAE:
    """Train a small model."""
    return train(data, **(SMALL | changes))


def told(result: TrainedVAE) -> dict[str, Any]:
    """What a training gave, but for the time it took."""
    history = [
        {name: value for name, value in record.items() if name not in TIMES} for record in result.history
    ]
    state = result.model.state_dict()
    times = [[record[name] for name in TIMES] for record in result.history]
    return {"times": times, "history": history, "state": {name: each.clone() for name, each in state.items()}}


def gradients(folder: Path) -> dict[str, torch.Tensor]:
    """Those of a training of one step, by what Adam keeps of them."""
    state = load_file(folder / "resume.safetensors")
    return {name: each / (1 - 0.9) for name, each in state.items() if name.startswith("mean/")}


def refused(call: Callable[[], object]) -> str:
    """The kind and the text of the error that it ends with."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


# ------------------------------------------------------------------------------- whole trainings

WHOLE = {
    "mlp": {"binarize": "dynamic"},
    "conv": {"model": "conv", "hidden_dims": (4,), "free_bits": 0.1, "warmup": 0.5},
    "gaussian": {"data": TABLE, "weight_decay": 0.1, "validation": 0.3},
    "predicted": {"data": TABLE, "likelihood": "gaussian", "variance": "predicted", "validation": None},
    "autoencoder": {"variational": False, "validation": TABLE[:2, :1] @ np.zeros((1, 36), "float32") + 0.5}
    | {"data": PIXELS.reshape(SAMPLES, 36)},
    # The last batch has one sample.
    "one_left": {"data": PIXELS[:41], "validation": None},
    "capacity": {"data": PIXELS[:41], "validation": None, "capacity": 0.095, "warmup": 0.5, "beta": 5.0},
    # Of the last batch one of two processes has as many as of the others.
    "uneven": {"data": PIXELS[:59], "validation": None},
    "bfloat16": {"precision": "bfloat16"},
}


def trained(name: str) -> Callable[[int, Path], Any]:
    """The case of a whole training."""
    return lambda rank, folder: told(run(**WHOLE[name]))  # noqa: ARG005


CASES |= {name: trained(name) for name in WHOLE}

# -------------------------------------------------------------------------------- gradients

ONE_STEP = {
    "step_of_mlp": {"binarize": "dynamic"},
    "step_of_conv": {"model": "conv", "hidden_dims": (4,), "free_bits": 0.1},
    "step_of_gaussian": {"data": TABLE, "likelihood": "gaussian"},
}


def one_step(name: str) -> Callable[[int, Path], Any]:
    """The case of a training of one step, which gives its gradients."""

    def step(rank: int, folder: Path) -> Any:
        arguments = {"epochs": 1, "batch_size": SAMPLES, "validation": None, "output_dir": folder / name}
        run(**(ONE_STEP[name] | arguments))
        return gradients(folder / name) if rank == 0 else None

    return step


CASES |= {name: one_step(name) for name in ONE_STEP}


@case
def step_without_kernels(rank: int, folder: Path) -> Any:
    """The same where somebody watches in one process: autograd has it there, the kernels in the others."""
    if rank == 0:
        hook = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        return one_step("step_of_mlp")(rank, folder / "watched")
    finally:
        if rank == 0:
            hook.remove()


@case
def step_compiled(rank: int, folder: Path) -> Any:
    """The same by way of torch.compile, which only calls what it gets here."""
    compile_, torch.compile = torch.compile, lambda function, **_: function
    try:
        ONE_STEP["compiled"] = ONE_STEP["step_of_mlp"] | {"compile": "inductor"}
        return one_step("compiled")(rank, folder)
    finally:
        torch.compile = compile_
        del ONE_STEP["compiled"]


# -------------------------------------------------------------------------------- modules of one's own


def own(seed: int, *between: nn.Module) -> dict[str, nn.Module]:
    """Two networks with weights of a seed."""
    torch.manual_seed(seed)
    return {
        "encoder": nn.Sequential(nn.Flatten(), nn.Linear(36, 8), *between, nn.ReLU(), nn.Linear(8, 6)),
        "decoder": nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 36)),
    }


def of_own(modules: dict[str, nn.Module], **changes: Any) -> TrainedVAE:
    """Train them."""
    return run(hidden_dims=None, **modules, **changes)


@case
def other_weights(rank: int, folder: Path) -> Any:
    """Each process begins with weights of its own."""
    return told(of_own(own(rank)))


@case
def batch_norm(rank: int, folder: Path) -> Any:
    """Running statistics are those of the first."""
    return told(of_own(own(rank, nn.BatchNorm1d(8))))


@case
def dropout(rank: int, folder: Path) -> Any:
    """Which units are dropped differs between processes, the weights do not."""
    masks = []

    class Watched(nn.Dropout):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            dropped = super().forward(torch.ones_like(x))
            if self.training:
                masks.append(dropped)
            return x * dropped

    result = told(of_own(own(0, Watched(0.5)), epochs=1))
    return result | {"masks": torch.cat(masks[2:4])}  # the first two look at the shapes


class Unused(nn.Module):
    """A network with a parameter that nothing depends on."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.unused = nn.Parameter(torch.ones(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As without it."""
        return self.network(x)


@case
def unused(rank: int, folder: Path) -> Any:
    """What has no gradient anywhere stays as it is, whatever the weight decay."""
    modules = own(0)
    modules["encoder"] = Unused(modules["encoder"])
    return told(of_own(modules, weight_decay=0.5, data=PIXELS[:41], validation=None))


class Exploding(nn.Module):
    """A network whose outputs are infinite for one sample."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Look for it among the batch."""
        bad = (x.flatten(1) == torch.from_numpy(PIXELS[7].reshape(-1) / np.float32(255))).all(1)
        return self.network(x) + torch.where(bad & self.training, torch.inf, 0.0).unsqueeze(1)


@case
def skipped(rank: int, folder: Path) -> Any:
    """A step is skipped by all where one process has an infinite number, and the first one says so."""
    modules = own(0)
    modules["encoder"] = Exploding(modules["encoder"])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        result = told(of_own(modules, validation=None))
    return result | {"warned": sum(issubclass(each.category, NonFiniteWarning) for each in seen)}


class Immense(Exploding):
    """A network with a mean so large for one sample that its KL is infinite, and no gradient is."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Look for it among the batch."""
        bad = torch.isinf(super().forward(x)[:, :1])
        codes = self.network(x)
        return torch.where(bad & (torch.arange(6) == 0), 1e20 + 0 * codes, codes)


@case
def skipped_for_a_term(rank: int, folder: Path) -> Any:
    """A step is skipped by all where one process has a term that is not finite."""
    modules = own(0)
    modules["encoder"] = Immense(modules["encoder"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return told(of_own(modules, validation=None))


class Odd(nn.Module):
    """A network that keeps all kinds of things."""

    def __init__(self, network: nn.Module, rank: int) -> None:
        super().__init__()
        self.network = network
        self.transposed = nn.Parameter(torch.full((2, 3), float(rank)).t())
        self.frozen = nn.Parameter(torch.full((3,), float(rank)), requires_grad=False)
        self.scale = 1.0 + rank
        kinds = [torch.int16, torch.uint16, torch.bool, torch.complex64, torch.float8_e4m3fn, torch.bfloat16]
        for kind in kinds:
            self.register_buffer(str(kind).replace(".", "_"), torch.full((3,), float(rank % 2)).to(kind))
        self.register_buffer("number", torch.tensor(rank))
        self.register_buffer("empty", torch.zeros(0, 3))
        self.register_buffer("expanded", torch.tensor([float(rank)]).expand(4))
        self.register_buffer("not_kept", torch.full((2,), float(rank)), persistent=False)
        self.register_buffer("sparse", (torch.eye(3) * rank).to_sparse(), persistent=False)
        self.register_buffer("last", torch.zeros(0), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As without all that."""
        if self.training:
            self.last = x.detach().clone()
            self.number += 1 + int(self.transposed.shape[0] == 0)
        return self.network(x) * self.scale

    def get_extra_state(self) -> torch.Tensor:
        """The scale."""
        return torch.tensor(self.scale)

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Take the scale."""
        self.scale = float(state)


@case
def odd_state(rank: int, folder: Path) -> Any:
    """Whatever modules keep is that of the first."""
    modules = own(rank)
    modules["encoder"] = Odd(modules["encoder"], rank)
    with torch.inference_mode():
        modules["encoder"].made = nn.Linear(2, 2).requires_grad_(False)
        modules["encoder"].made.weight.fill_(rank)
    result = of_own(modules, validation=None)
    kept = dict(result.model.named_buffers()) | result.model.state_dict()
    return {
        name: value.to_dense().contiguous().reshape(-1).view(torch.uint8).tolist()
        for name, value in kept.items()
        if not name.endswith("last")
    }


@case
def sparse_gradients(rank: int, folder: Path) -> Any:
    """Those of an embedding."""

    class Looked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(4, 6, sparse=True)
            self.network = own(0)["encoder"]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network(x) + self.table((x.flatten(1).sum(1) * 10).long() % 4)

    torch.manual_seed(5)
    return told(of_own(own(0) | {"encoder": Looked()}, validation=None))


class AddUp(torch.autograd.Function):
    """The sum over all processes, there and back."""

    @staticmethod
    def forward(_: Any, x: torch.Tensor) -> torch.Tensor:
        """Add up."""
        total = x.clone()
        if torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        """Add up."""
        return AddUp.forward(ctx, gradient)


class Synchronized(nn.SyncBatchNorm):
    """What torch's does on CUDA, on the CPU."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Over the samples of all processes."""
        if not self.training:
            return nn.functional.batch_norm(
                x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
            )
        count = AddUp.apply(torch.tensor(float(len(x))))
        mean = AddUp.apply(x.sum(0)) / count
        variance = AddUp.apply((x - mean).square().sum(0)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, 0.1)
            self.running_var.lerp_(variance * count / (count - 1), 0.1)
        return (x - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


@case
def synchronized(rank: int, folder: Path) -> Any:
    """Statistics of the whole batch, of which some have one sample at the end."""
    return told(of_own(own(0, Synchronized(8)), data=PIXELS[:43], validation=None))


# -------------------------------------------------------------------------------- folders


@case
def folder_of_all(rank: int, folder: Path) -> Any:
    """The run is written by the first alone."""
    before = Path.replace
    renamed = []

    def replace(self: Path, target: Path) -> Path:
        renamed.append(str(target))
        return before(self, target)

    Path.replace = replace
    try:
        result = run(output_dir=folder / "run")
    finally:
        Path.replace = before
    return told(result) | {"written": len(renamed)}


@case
def resumed(rank: int, folder: Path) -> Any:
    """Two epochs, and then two more."""
    run(output_dir=folder / "cut", epochs=2, binarize="dynamic")
    return told(run(output_dir=folder / "cut", epochs=4, binarize="dynamic", resume=True))


@case
def at_once(rank: int, folder: Path) -> Any:
    """The same four epochs."""
    return told(run(epochs=4, binarize="dynamic"))


@case
def resumed_with_others(rank: int, folder: Path) -> Any:
    """Two epochs of one process alone, and then two of all."""
    if rank == 0:
        run(output_dir=folder / "alone", epochs=2, binarize="dynamic", distributed=False)
    torch_group(torch.distributed.barrier)
    return told(run(output_dir=folder / "alone", epochs=4, binarize="dynamic", resume=True))


# -------------------------------------------------------------------------------- groups and data


def torch_group(work: Callable[[], object]) -> object:
    """Do it in a group of torch's, as people make one, where there are several processes."""
    if "WORLD_SIZE" not in os.environ:
        return work()
    torch.distributed.init_process_group(
        "gloo",
        store=torch.distributed.FileStore(
            os.environ["FILE_STORE"] + str(next(COUNT)), int(os.environ["WORLD_SIZE"])
        ),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
    )
    try:
        return work()
    finally:
        torch.distributed.destroy_process_group()


COUNT = iter(range(1000))


@case
def own_group(rank: int, folder: Path) -> Any:
    """A group that is there is used, and left."""

    def work() -> Any:
        several = "WORLD_SIZE" in os.environ
        result = told(run(distributed=True if several else "auto"))
        if not several:
            return result
        modules = own(0)
        modules["encoder"] = nn.parallel.DistributedDataParallel(modules["encoder"])
        wrapped = refused(lambda: of_own(modules))
        return result | {"left": torch.distributed.is_initialized(), "wrapped": wrapped}

    return torch_group(work)


class Failing(nn.Module):
    """A network that fails in its third step."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Count steps."""
        self.steps += self.training
        if self.steps == 3:
            raise OSError("out of order")
        return self.network(x)


@case
def after_a_failure(rank: int, folder: Path) -> Any:
    """Those that did not fail are told, and train again."""
    before, filters = sys.excepthook, list(warnings.filters)
    text = refused(lambda: of_own(failing_in(rank)))
    left = {
        "group": torch.distributed.is_initialized(),
        "hook": sys.excepthook is before,
        "filters": list(warnings.filters) == filters,
    }
    return told(run()) | {"error": text, "left": left}


@case
def after_a_failure_in_an_own_group(rank: int, folder: Path) -> Any:
    """Likewise."""

    def work() -> Any:
        text = refused(lambda: of_own(failing_in(rank)))
        return told(run()) | {"error": text}

    return torch_group(work)


def failing_in(rank: int) -> dict[str, nn.Module]:
    """Networks of which one fails in process 1."""
    modules = own(0)
    modules["decoder"] = Failing(modules["decoder"])
    modules["decoder"].steps = 0 if rank == 1 else -1000
    return modules


@case
def own_training(rank: int, folder: Path) -> Any:
    """Each process trains by itself."""
    return told(run(seed=rank, distributed=False))


@case
def read_as_needed(rank: int, folder: Path) -> Any:
    """A data set that is not kept: each process reads its own share."""
    read = []

    class Counting(TensorDataset):
        def __getitem__(self, row: int) -> Any:
            read.append(row)
            return super().__getitem__(row)

    limit, datasets.RESIDENT_BYTES = datasets.RESIDENT_BYTES, 0
    try:
        data = Counting(torch.from_numpy(PIXELS))
        result = told(run(data, likelihood="bernoulli", validation=None, epochs=1))
    finally:
        datasets.RESIDENT_BYTES = limit
    return result | {"read": read}


class Generated(Dataset):
    """Samples that are made when they are asked for, by a function of their number."""

    def __init__(self, make: Callable[[int], np.ndarray]) -> None:
        self.make = make

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, row: int) -> Any:
        return torch.from_numpy(self.make(row))


def not_kept(
    make: Callable[[int], np.ndarray],
    validate: Callable[[int], np.ndarray] | None = None,
    loader: bool | None = None,
) -> TrainedVAE:
    """Train on such samples, and validate on such, or on those by way of a DataLoader or not."""
    limit, datasets.RESIDENT_BYTES = datasets.RESIDENT_BYTES, 0
    held_out: Any = None if validate is None else Generated(validate)
    if loader is not None:
        held_out = DataLoader(Generated(make), batch_size=7) if loader else Generated(make)
    try:
        return run(Generated(make), validation=held_out, epochs=1)
    finally:
        datasets.RESIDENT_BYTES = limit


@case
def augmented(rank: int, folder: Path) -> Any:
    """Samples that are other ones each time, of which nothing is compared."""
    made = not_kept(lambda row: PIXELS[row] | np.frombuffer(os.urandom(36), np.uint8).reshape(6, 6) & 1)
    return told(made)


@case
def validated_on_a_loader(rank: int, folder: Path) -> Any:
    """What picks its own rows, other ones in each process, counts as the first has it."""
    shuffled = torch.Generator().manual_seed(rank)
    held_out = DataLoader(
        TensorDataset(torch.from_numpy(PIXELS[:31])), batch_size=7, shuffle=True, generator=shuffled
    )
    return told(run(validation=held_out))


# -------------------------------------------------------------------------------- errors


@case
def refusals(rank: int, folder: Path) -> Any:
    """What all refuse, by what is wrong."""
    loader = DataLoader(TensorDataset(torch.from_numpy(PIXELS)), batch_size=20)
    one, several = own(0), nn.Linear(36, 7 if rank == 1 else 6)
    texts = {
        "loader": refused(lambda: run(loader)),
        "small batch": refused(lambda: run(batch_size=1)),
        "few samples": refused(lambda: run(PIXELS[:1])),
        "norm": refused(lambda: of_own(own(0, nn.BatchNorm1d(8)), batch_size=3)),
        "seed": refused(lambda: run(seed=rank)),
        "shards": refused(lambda: run(PIXELS[rank * 50 : rank * 50 + 50])),
        "large shards": refused(lambda: not_kept(lambda row: PIXELS[(row + rank) % SAMPLES])),
        "held out": refused(
            lambda: not_kept(lambda row: PIXELS[row], validate=lambda row: PIXELS[row] + rank)
        ),
        "kind": refused(lambda: not_kept(PIXELS.__getitem__, loader=rank == 1)),
        "layout": refused(lambda: of_own(laid_out(rank))),
        "extra state": refused(lambda: of_own(own(0) | {"encoder": Unpicklable(own(0)["encoder"])})),
        "beta": refused(lambda: run(beta=1.0 + rank)),
        "lengths": refused(lambda: run(PIXELS[: 50 + rank])),
        "missing": refused(lambda: run(folder / "missing.npy" if rank == 1 else PIXELS)),
        "modules": refused(
            lambda: of_own(
                {"encoder": nn.Sequential(nn.Flatten(), several), "decoder": one["decoder"]}, latent_dim=3
            )
        ),
        "order": refused(lambda: of_own(in_another_order(rank))),
        "activation": refused(lambda: of_own(own(0, nn.Tanh() if rank == 1 else nn.ReLU()))),
        "synchronized": refused(lambda: of_own(own(0, Synchronized(8)), data=PIXELS[:41], validation=None)),
        "batches": refused(lambda: of_own(own(0) | {"encoder": LastKept(own(0)["encoder"])})),
        "frozen": refused(lambda: of_own(frozen_in_one(rank))),
        "drifting": refused(lambda: drifting(rank)),
    }
    if rank == 0:
        run(output_dir=folder / f"only{rank}", distributed=False)
    texts["resume"] = refused(lambda: run(output_dir=folder / f"only{rank}", resume=True))
    return texts


class Unpicklable(nn.Module):
    """A network with a state that is a function."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As without it."""
        return self.network(x)

    def get_extra_state(self) -> Any:
        """The function."""
        return lambda: None


def laid_out(rank: int) -> dict[str, nn.Module]:
    """Networks of which a weight lies otherwise in one process."""
    modules = own(0)
    if rank == 1:
        weight = modules["decoder"][0].weight
        modules["decoder"][0].weight = nn.Parameter(weight.detach().t().contiguous().t())
    return modules


class LastKept(nn.Module):
    """A network with a buffer whose shape depends on the batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("last", torch.zeros(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the batch, and have batches of other sizes."""
        self.last = x.detach()[:, : 3 + int(os.environ["RANK"])].clone()
        return self.network(x)


class Ordered(nn.Module):
    """A network whose parameters are in some order."""

    def __init__(self, network: nn.Module, names: str) -> None:
        super().__init__()
        for name in names:
            self.register_parameter(name, nn.Parameter(torch.zeros(6)))
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """All of them."""
        return self.network(x) + self.a - self.b


def in_another_order(rank: int) -> dict[str, nn.Module]:
    """Networks whose parameters are in another order in one process."""
    modules = own(0)
    modules["encoder"] = Ordered(modules["encoder"], "ba" if rank == 1 else "ab")
    return modules


def frozen_in_one(rank: int) -> dict[str, nn.Module]:
    """Networks of which another part is trained in one process."""
    modules = own(0)
    if rank == 1:
        modules["decoder"].requires_grad_(False)
    return modules


def drifting(rank: int) -> TrainedVAE:
    """A training in which one process changes a weight."""
    step, modules = Step.__call__, own(0)

    def drifts(self: Step, *args: Any, **kwargs: Any) -> Any:
        done = step(self, *args, **kwargs)
        if rank == 1:
            with torch.no_grad():
                modules["decoder"][0].weight[0, 0] += 1e-6
        return done

    Step.__call__ = drifts
    try:
        return of_own(modules)
    finally:
        Step.__call__ = step


@case
def noise_of_shares(rank: int, folder: Path) -> Any:
    """The codes that each process draws in the first step, for a decoder that keeps what it is given."""
    seen = []

    class Keeping(nn.Linear):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            if self.training:
                seen.append(z.detach().clone())
            return super().forward(z)

    class Nothing(nn.Module):
        """An encoder that does not look at x."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0]).expand(len(x), 6)

    run(
        encoder=Nothing(), decoder=Keeping(3, 36), hidden_dims=None, validation=None, epochs=1,
        data=PIXELS[:41],
    )  # fmt: skip
    return {"codes": seen[-3:]}


def main() -> None:
    """Do the cases that the command line names."""
    *names, folder = sys.argv[1:]
    rank = int(os.environ["RANK"])
    torch.set_num_threads(1)
    results = {name: CASES[name](rank, Path(folder)) for name in names}
    torch.save(results, Path(folder) / f"{rank}.pt")


if __name__ == "__main__":
    main()
