"""The processes of one training, each of which takes a share of every batch."""

from __future__ import annotations

import itertools
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fastvae import errors

__all__ = ["ALONE", "Distributed", "Ranks", "Share", "check_distributed", "is_first", "joined"]

Distributed: TypeAlias = Literal["auto", False]
T = TypeVar("T")

LAUNCHED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun, and whatever starts processes as it does, tells each of them."""

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of so many bytes; their sums are int64."""

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

    Without a process group there is one, and nothing is exchanged.

    Parameters
    ----------
    rank, size : int
        Which process this is, from 0, and how many there are.
    device : torch.device
        Where this one trains.

    References
    ----------
    Li et al., "PyTorch Distributed: Experiences on Accelerating Data Parallel Training", VLDB 2020: gradients
    of shares of a batch, added up, are those of the batch.
    """

    def __init__(self, rank: int = 0, size: int = 1, *, device: torch.device | None = None) -> None:
        self.rank = rank
        self.size = size
        self._device = device or torch.device("cpu")

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
        """Give this process's rows of a batch of so many samples: neighbours, about as many in each."""
        start, stop = (samples * rank // self.size for rank in (self.rank, self.rank + 1))
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
            self._exchange(lambda: dist.all_reduce(tensor))

    def gather(self, value: T) -> list[T]:
        """Give the values of all processes, small ones, in their order."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        self._exchange(lambda: dist.all_gather_object(values, value))
        return values

    def gather_numbers(self, numbers: Tensor) -> Tensor:
        """Give the numbers of all processes, equally many each, one under another, on the CPU."""
        if self.size == 1:
            return numbers.cpu().unsqueeze(0)
        own = numbers.to(self._device).contiguous()
        all_of_them = [torch.empty_like(own) for _ in range(self.size)]
        self._exchange(lambda: dist.all_gather(all_of_them, own))
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

    def give_state(self, model: nn.Module) -> None:
        """Give a model the parameters and buffers that the first process has.

        Raises
        ------
        ValueError
            If it has others there.
        """
        if self.size == 1:
            return
        tensors = dict(itertools.chain(model.named_parameters(), model.named_buffers()))
        first, *others = self.gather({name: _kind(tensor) for name, tensor in tensors.items()})
        for rank, kinds in enumerate(others, 1):
            if list(kinds.items()) != list(first.items()):
                names = [name for name in first | kinds if first.get(name) != kinds.get(name)]
                pairs = [f"{name}: {first.get(name, 'none')} and {kinds.get(name, 'none')}" for name in names]
                raise ValueError(
                    "all processes of a training must have the same modules, but process 0 and process "
                    f"{rank} have {'; '.join(pairs[:5]) or 'their parameters in another order'}"
                )
        self._broadcast(list(tensors.values()))

    def give_buffers(self, model: nn.Module) -> None:
        """Give a model the buffers that the first process has, such as running statistics."""
        if self.size > 1:
            self._broadcast(list(model.buffers()))

    def check_alike(self, parameters: Sequence[Tensor], when: str) -> None:
        """Raise a ``RuntimeError`` unless parameters have the same bits in all processes."""
        if self.size == 1 or not parameters:
            return
        sums = [each.detach().contiguous().view(BITS[each.element_size()]).sum() for each in parameters]
        digests = self.gather_numbers(torch.stack(sums))
        if not (digests == digests[0]).all():
            apart = [rank for rank, digest in enumerate(digests) if not digest.equal(digests[0])]
            raise RuntimeError(
                f"the weights of process {apart[0]} are not those of process 0 {when}: something beside the "
                "training changes them, or the processors do not compute alike"
            )

    def _broadcast(self, tensors: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for tensor in tensors:
                sent = tensor.detach().contiguous()
                self._exchange(lambda sent=sent: dist.broadcast(sent, 0))  # type: ignore[misc]
                if sent.data_ptr() != tensor.data_ptr():
                    tensor.copy_(sent)

    def _exchange(self, collective: Callable[[], object]) -> None:
        try:
            collective()
        except RuntimeError as error:
            error.add_note(
                f"process {self.rank} of {self.size} could not exchange with the others: one of them may "
                "have ended, and tell why"
            )
            raise


def _kind(tensor: Tensor) -> str:
    """What has to be alike of tensors of one name."""
    return f"{'trained ' if tensor.requires_grad else ''}{tensor.dtype} of {tuple(tensor.shape)}"


ALONE = Ranks()


def check_distributed(distributed: Distributed) -> None:
    """Raise a ``ValueError`` for what says neither that processes train together nor that they do not."""
    # Not `in`: 0 is no False here.
    if distributed is not False and not (isinstance(distributed, str) and distributed == "auto"):
        raise ValueError(
            'distributed must be "auto", for the processes that torchrun starts to train together, or False, '
            f"for a training of its own in each; got {distributed!r}"
        )


def is_first() -> bool:
    """Whether this process is alone, or the first of several."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank() == 0
    return not _is_launched() or os.environ["RANK"] == "0"


def local_rank() -> int | None:
    """Which of the processes on this machine this is, where there are several and they were told."""
    several = dist.is_available() and (
        (dist.is_initialized() and dist.get_world_size() > 1) or _is_launched()
    )
    number = os.environ.get("LOCAL_RANK")
    return int(number) if several and number is not None else None


@contextmanager
def joined(distributed: Distributed, device: torch.device) -> Iterator[Ranks]:
    """A block in which the processes of a training are a group.

    That is the default group of torch.distributed where there is one; else one for the block, where a
    launcher told this process of others.

    Parameters
    ----------
    distributed : {"auto", False}
        False: the process is alone.
    device : torch.device
        Where this process trains.

    Raises
    ------
    ValueError
        For a device that processes cannot exchange from, or one that two of them have.
    """
    available = distributed is not False and dist.is_available()
    initialized = available and dist.is_initialized()
    if not (dist.get_world_size() > 1 if initialized else available and _is_launched()):
        yield ALONE
        return
    if device.type not in {"cpu", "cuda"}:
        raise ValueError(f'processes train together on "cpu" or "cuda", not on {device.type}')
    with ExitStack() as stack:
        if device.type == "cuda":
            stack.enter_context(torch.cuda.device(device))  # where exchanged objects are
        if not initialized:
            _initialize(device)
            stack.callback(dist.destroy_process_group)
        ranks = Ranks(dist.get_rank(), dist.get_world_size(), device=device)
        _check_devices(ranks, device)
        yield ranks


def _is_launched() -> bool:
    return all(os.environ.get(name) for name in LAUNCHED) and int(os.environ["WORLD_SIZE"]) > 1


@cache
def _rendezvous(*launched: str) -> tuple[Any, int, int]:
    """The store that processes find each other by, which one of them may keep, the rank and their number.

    Once for all trainings: the next one could find the store of the last, just when that ends.
    """
    del launched
    untyped: Any = dist
    store: tuple[Any, int, int] = next(untyped.rendezvous("env://"))
    return store


def _initialize(device: torch.device) -> None:
    untyped: Any = dist
    store, rank, size = _rendezvous(*(os.environ[name] for name in LAUNCHED))
    number, hook = next(_joined), sys.excepthook
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=untyped.PrefixStore(f"fastvae/{number}", store),
        rank=rank,
        world_size=size,
    )
    if number:  # each time torch has errors begin with the rank once more
        sys.excepthook = hook


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
