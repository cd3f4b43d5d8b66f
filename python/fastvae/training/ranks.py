"""The processes of one training, each of which takes a share of every batch."""

from __future__ import annotations

import itertools
import os
import pickle
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fastvae import errors
from fastvae.data import Data
from fastvae.data.base import Summary
from fastvae.training.interrupts import deadly

__all__ = [
    "ALONE",
    "Distributed",
    "Ranks",
    "Share",
    "check_distributed",
    "check_modules",
    "is_first",
    "joined",
    "local_rank",
    "look_through",
]

Distributed: TypeAlias = Literal["auto"] | bool
T = TypeVar("T")

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, and whatever starts processes as it does, tells each of them."""

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}
"""Integers of so many bytes; of more it is ``int64``. Their sums are ``int64``."""

SECONDS_UNTOLD = 10.0
"""What a process waits for the others without a word."""

_joined = itertools.count()
"""Groups so far: each has names of its own in the store, in which those of earlier ones stay."""


class Share(NamedTuple):
    """Which rows of a batch a process takes."""

    start: int
    stop: int
    samples: int
    """In the whole batch."""


class Ranks:
    """The processes of one training, and which of them this is.

    Without a group there is one, and nothing is exchanged.

    Parameters
    ----------
    rank, size : int
        Which process this is, from 0, and how many there are.
    device : torch.device
        Where this one trains.
    group : ProcessGroup, optional
        Of torch.distributed; by default the one of all processes.

    References
    ----------
    Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020: gradients
    of shares of a batch, added up, are those of the batch.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, *, device: torch.device | None = None, group: Any = None
    ) -> None:
        self.rank = rank
        self.size = size
        self._device = device or torch.device("cpu")
        self._group = group

    @property
    def first(self) -> bool:
        """Whether this is the process that writes, warns and shows progress."""
        return self.rank == 0

    @contextmanager
    def warned_once(self) -> Iterator[None]:
        """A block whose warnings of fastvae come from the first process alone."""
        if self.first:
            yield
            return
        with warnings.catch_warnings():
            for name in errors.__all__:
                if issubclass(category := getattr(errors, name), Warning):
                    warnings.simplefilter("ignore", category)
            yield

    def share(self, samples: int) -> Share:
        """Give this process's rows of a batch of so many samples: neighbours, about as many in each.

        No process has more of a smaller batch: the last ones have what is left.
        """
        each, left = divmod(samples, self.size)
        start, stop = (
            number * each + max(number - (self.size - left), 0) for number in (self.rank, self.rank + 1)
        )
        return Share(start, stop, samples)

    def order(self, order: Tensor, batch_size: int) -> Tensor:
        """Give this process's rows of each batch of an epoch, one batch after the other."""
        if self.size == 1:
            return order
        full = len(order) // batch_size * batch_size
        share, rest = self.share(batch_size), self.share(len(order) - full)
        of_full = order[:full].view(-1, batch_size)[:, share.start : share.stop]
        return torch.cat((of_full.flatten(), order[full:][rest.start : rest.stop]))

    def add_up(self, tensor: Tensor) -> None:
        """Put the sum over all processes in place of a contiguous tensor: the same bits in each."""
        if self.size > 1:
            self._exchange(lambda: dist.all_reduce(tensor, group=self._group))

    def gather(self, value: T) -> list[T]:
        """Give the values of all processes, small ones, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        self._exchange(lambda: dist.all_gather_object(values, value, group=self._group))
        return values

    def gather_numbers(self, numbers: Tensor) -> Tensor:
        """Give the numbers of all processes, equally many each, one under another, on the CPU."""
        if self.size == 1:
            return numbers.cpu().unsqueeze(0)
        own = numbers.to(self._device).contiguous()
        all_of_them = [torch.empty_like(own) for _ in range(self.size)]
        self._exchange(lambda: dist.all_gather(all_of_them, own, group=self._group))
        return torch.stack(all_of_them).cpu()

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block in which nothing is exchanged, and that fails in all processes if it does in one.

        Raises
        ------
        RuntimeError
            In those where it did not; it says which failed, and why.
        """
        if self.size == 1:
            yield
            return
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        texts = self.gather(None if failed is None else f"{type(failed).__name__}: {failed}")
        if failed is not None:
            raise failed
        for rank, text in enumerate(texts):
            if text is not None:
                raise RuntimeError(f"process {rank} of {self.size} did not get as far as this one: {text}")

    def give_model(self, model: nn.Module) -> None:
        """Give a model what the one of the first process keeps: parameters, buffers and extra state.

        Raises
        ------
        ValueError
            If it is another model there.
        """
        if self.size == 1:
            return
        self._check_alike(
            [(name, type(module).__qualname__) for name, module in model.named_modules()], "modules"
        )
        tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
        self._give(tensors, "parameters and buffers")
        self._give_extra_state(model)

    def give_kept(self, model: nn.Module) -> None:
        """Give a model what the first process keeps beside the parameters, such as running statistics.

        Raises
        ------
        ValueError
            If that has other types or shapes there.
        """
        if self.size == 1:
            return
        kept = model.state_dict(keep_vars=True)
        buffers = {name: buffer for name, buffer in model.named_buffers() if name in kept}
        if buffers:
            self._give(buffers, "buffers, of which those that depend on the batch are persistent=False")
        self._give_extra_state(model)

    def check_same(self, parameters: Sequence[Tensor], when: str) -> None:
        """Raise a ``RuntimeError`` unless parameters have the same bits in all processes."""
        if self.size == 1 or not parameters:
            return
        sums = [
            each.detach().reshape(-1).view(BITS.get(each.element_size(), torch.int64)).sum()
            for each in parameters
        ]
        digests = self.gather_numbers(torch.stack(sums))
        if not (digests == digests[0]).all():
            apart = [rank for rank, digest in enumerate(digests) if not digest.equal(digests[0])]
            raise RuntimeError(
                f"the weights of process {apart[0]} are not those of process 0 {when}: something beside the "
                "training changes them, or the processors do not compute alike"
            )

    def _check_alike(self, described: Sequence[tuple[str, str]], what: str) -> None:
        """Raise unless processes describe what they have by the same names and words, in one order."""
        first, *others = self.gather(list(described))
        for rank, other in enumerate(others, 1):
            if other == first:
                continue
            one, two = dict(first), dict(other)
            pairs = [
                f"{name or 'the model'}: {one.get(name, 'none')} and {two.get(name, 'none')}"
                for name in one | two
                if one.get(name) != two.get(name)
            ]
            raise ValueError(
                f"all processes of a training must have the same {what}, but process 0 and process {rank} "
                f"have {'; '.join(pairs[:5]) or 'them in another order'}"
            )

    def _give(self, tensors: Mapping[str, Tensor], what: str) -> None:
        """Give tensors the values of the first process."""
        self._check_alike([(name, _kind(tensor)) for name, tensor in tensors.items()], what)
        others = list[tuple[Tensor, Tensor]]()
        for tensor in tensors.values():
            if not tensor.numel():
                continue
            if tensor.layout is not torch.strided:
                given = self.gather(tensor.detach())[0].to(tensor.device)
                if not torch.equal(given.to_dense(), tensor.to_dense()):
                    others.append((tensor, given))
                continue
            own = tensor.detach().resolve_conj().resolve_neg().contiguous()
            # As bytes: not every type can be sent.
            sent = own.reshape(-1).view(torch.uint8).to(self._device, copy=True)
            self._exchange(lambda sent=sent: dist.broadcast(sent, 0, group=self._group))  # type: ignore[misc]
            if not torch.equal(sent, own.reshape(-1).view(torch.uint8).to(sent.device)):
                others.append((tensor, sent.to(tensor.device).view(tensor.dtype).view(tensor.shape)))
        with self.together():
            for tensor, given in others:
                _write(tensor, given)

    def _give_extra_state(self, model: nn.Module) -> None:
        """Give modules that have a state beside tensors that of the first process."""
        having = {
            name: module
            for name, module in model.named_modules()
            if type(module).get_extra_state is not nn.Module.get_extra_state
        }
        if not having:
            return
        with self.together():
            own = {name: _pickled(name, module.get_extra_state()) for name, module in having.items()}
        first = self.gather(own)[0]
        with self.together():
            for name, module in having.items():
                if own[name] != first[name]:
                    module.set_extra_state(pickle.loads(first[name]))  # noqa: S301  of a process of this training

    def _exchange(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:
            error.add_note(
                f"process {self.rank} of {self.size} could not exchange with the others: one of them may "
                "have ended, and tell why"
            )
            raise

    def leave(self) -> None:
        """Let go of the group, whose connections end with it."""
        self._group = None


def _kind(tensor: Tensor) -> str:
    """What has to be alike of tensors of one name."""
    kind = f"{tensor.dtype} of {tuple(tensor.shape)}"
    if not tensor.requires_grad:
        return kind
    # Gradients are added up as they lie in memory.
    return f"trained {kind}" + ("" if tensor.is_contiguous() else f" with strides {tensor.stride()}")


def _write(tensor: Tensor, given: Tensor) -> None:
    """Write to a tensor, whatever it is."""
    with torch.inference_mode(tensor.is_inference()), torch.no_grad():
        expanded = tensor.layout is torch.strided and any(
            step == 0 < size - 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)
        )
        if expanded:
            tensor.data = given  # it cannot be written to
        else:
            tensor.copy_(given)


def _pickled(name: str, state: object) -> bytes:
    try:
        return pickle.dumps(state)
    except Exception as error:
        raise TypeError(
            f"processes have to exchange the extra state of {name or 'the model'}, and pickle cannot take it "
            f"({error}): give get_extra_state() a tensor or plain numbers"
        ) from error


ALONE = Ranks()


def check_distributed(distributed: Distributed) -> None:
    """Raise a ``ValueError`` for what says neither that processes train together nor that they do not."""
    # Not `in`: 0 is no False here.
    if not (isinstance(distributed, bool) or (isinstance(distributed, str) and distributed == "auto")):
        raise ValueError(
            'distributed must be "auto", for the processes that torchrun starts to train together, True, if '
            f"there have to be several, or False, for a training of its own in each; got {distributed!r}"
        )


def check_modules(model: nn.Module, ranks: Ranks) -> None:
    """Raise a ``TypeError`` for modules that exchange gradients themselves, where processes do."""
    wrapped = [name for name, each in model.named_modules() if isinstance(each, DistributedDataParallel)]
    if ranks.size > 1 and wrapped:
        raise TypeError(
            f"the {wrapped[0]} is in DistributedDataParallel, and fastvae.train exchanges gradients itself: "
            "give the module in it, its .module"
        )


def look_through(sources: Sequence[Data | None], ranks: Ranks) -> None:
    """Look at all samples once, each process at its share, of data that does not pick its own rows."""
    if ranks.size == 1:
        return
    several = [data for data in sources if data is not None and data.can_split]
    shapes = ranks.gather([(len(data), data.shape) for data in several])
    if any(other != shapes[0] for other in shapes):  # which is told later, by another name
        return
    with ranks.together():
        own = [
            data.summarize(torch.arange(share.start, share.stop, device="cpu"))
            for data, share in zip(several, (ranks.share(len(data)) for data in several), strict=True)
        ]
    for data, parts in zip(several, zip(*ranks.gather(own), strict=True), strict=True):
        data.know(Summary.of(parts))


def is_first() -> bool:
    """Whether this process is alone, or the first of several."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    try:
        launched = _launched()
    except ValueError:
        return True
    return launched is None or launched[0] == 0


def local_rank() -> int | None:
    """Which of the processes on this machine this is, where there are several and it was told."""
    number, size = (os.environ.get(name, "").strip() for name in ("LOCAL_RANK", "WORLD_SIZE"))
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    if not number.isdecimal() or not (several or (size.isdecimal() and int(size) > 1)):
        return None
    return int(number)


@contextmanager
def joined(
    distributed: Distributed, device: torch.device, say: Callable[[str], None] | None = None
) -> Iterator[Ranks]:
    """A block in which the processes of a training are a group, which ends with it.

    They are those of the default group of torch.distributed where there is one, else those that a launcher
    told this process of.

    Parameters
    ----------
    distributed : {"auto"} or bool
        False: the process is alone; True: it must not be.
    device : torch.device
        Where this process trains.
    say : callable, optional
        Gets a line if the others keep this process waiting.

    Raises
    ------
    ValueError
        For a device that processes cannot exchange from, one that two of them have, or a launcher that makes
        no sense; where there is one process and ``distributed`` is True.
    """
    available = distributed is not False and dist.is_available()
    initialized = available and dist.is_initialized()
    launched = _launched() if available and not initialized else None
    if not (launched or (initialized and dist.get_world_size() > 1)):
        if distributed is True:
            raise ValueError(
                "distributed=True is for several processes, and this one was told of no other: start them by "
                "torchrun --nproc-per-node N script.py"
            )
        yield ALONE
        return
    if device.type not in {"cpu", "cuda"}:
        raise ValueError(f'processes train together on "cpu" or "cuda", not on {device.type}')
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))  # where exchanged objects are
        with _waiting(say):
            if initialized:
                # A group of our own: what is left of a training that failed in one process meets no other.
                group = dist.new_group(backend=backend)
                stack.callback(_destroy, group)
            else:
                group = None
                stack.callback(setattr, sys, "excepthook", sys.excepthook)  # of which torch makes its own
                _initialize(backend)
                stack.callback(dist.destroy_process_group)
            ranks = Ranks(dist.get_rank(), dist.get_world_size(), device=device, group=group)
            del group
            stack.callback(ranks.leave)
            _check_devices(ranks, device)
        yield ranks


def _launched() -> tuple[int, int] | None:
    """The rank of this process and their number, if a launcher started several.

    Raises
    ------
    ValueError
        For numbers that are none.
    """
    told = {name: os.environ.get(name, "").strip() for name in LAUNCHED}
    if not all(told.values()):
        return None
    try:
        rank, size = int(told["RANK"]), int(told["WORLD_SIZE"])
    except ValueError:
        rank, size = 0, 0
    if size < 1 or not 0 <= rank < size:
        raise ValueError(
            "the environment speaks of processes that train together, but RANK is "
            f"{told['RANK']!r} and WORLD_SIZE {told['WORLD_SIZE']!r}; distributed=False trains in this one "
            "alone"
        )
    return (rank, size) if size > 1 else None


@contextmanager
def _waiting(say: Callable[[str], None] | None) -> Iterator[None]:
    """A block that waits for other processes; if that takes long, a line says so."""

    def tell() -> None:
        if say is not None:
            say(
                "waiting for the other processes that torchrun, or the environment (RANK, WORLD_SIZE), "
                "speaks of: all must call fastvae.train; distributed=False trains in this one alone"
            )

    timer = threading.Timer(SECONDS_UNTOLD, tell)
    timer.daemon = True
    timer.start()
    try:
        with deadly():
            yield
    finally:
        timer.cancel()


@cache
def _rendezvous(*launched: str) -> tuple[Any, int, int]:
    """The store that processes find each other by, which one of them may keep, the rank and their number.

    Once for all trainings: the next one could find the store of the last, just when that ends.
    """
    del launched
    untyped: Any = dist
    store: tuple[Any, int, int] = next(untyped.rendezvous("env://"))
    return store


def _initialize(backend: str) -> None:
    untyped: Any = dist
    store, rank, size = _rendezvous(*(os.environ[name] for name in LAUNCHED))
    # Where torchrun has begun anew, the addresses of those that have ended are in its store.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = untyped.PrefixStore(f"fastvae/{attempt}/{next(_joined)}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size)


def _destroy(group: Any) -> None:
    if dist.is_initialized():  # or the user has ended all groups meanwhile
        dist.destroy_process_group(group)


def _check_devices(ranks: Ranks, device: torch.device) -> None:
    """Refuse two processes on one CUDA device, which NCCL does with a text that says less."""
    own = (device.type, str(torch.cuda.get_device_properties(device).uuid) if device.type == "cuda" else None)
    others = ranks.gather(own)
    if len({kind for kind, _ in others}) > 1:
        kinds = ", ".join(kind for kind, _ in others)
        raise ValueError(f"all processes of a training must have one kind of device, got {kinds}")
    if device.type == "cuda" and len(set(others)) < len(others):
        raise ValueError(
            f"two of the {ranks.size} processes have the same CUDA device ({device}): start as many on a "
            'machine as it has devices, and take device="cuda" or "auto", which gives each its own'
        )
