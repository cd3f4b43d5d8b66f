"""Steps that are captured once as a CUDA graph and replayed: one launch for everything from rows to weights.

A graph repeats its kernels with the addresses and the numbers they were captured with. So whatever differs
between steps (the rows of the batch, the seed of its noise, the weight of the KL) stands in tables on the
device, a row for each step of the epoch, and the graph reads them at a position that it advances itself.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from fastvae import noise
from fastvae.data import Data
from fastvae.errors import NotCapturedWarning
from fastvae.training.branches import GradientInUseError, LinearLayers, SideBranch, stream_of
from fastvae.training.config import Settings
from fastvae.training.history import EpochTotals
from fastvae.training.step import Step, Steps, pass_over

__all__ = ["CapturedSteps", "CudaRecorder", "Recorder"]

WARM_UP = 3
"""Full batches that run uncaptured first, as real steps: they load kernels and make workspaces."""


class Recorder(Protocol):
    """Turns work on a device into something that repeats it."""

    def __enter__(self) -> object:
        """Begin: work is done, recorded and repeated until the end."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End."""
        ...

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record the work without doing it, and give what does it."""
        ...


class CudaRecorder:
    """CUDA graphs, on a stream of its own.

    All work in between is on that stream, also what is not captured: what autograd accumulates into knows the
    stream it was made on, and would wait for another one within a capture, which breaks it.

    Parameters
    ----------
    device : torch.device
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = stream_of(device, "steps", threading.get_ident())
        self._current = torch.cuda.stream(self._stream)

    def __enter__(self) -> None:
        """Go to the stream, after everything that is under way."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        self._current.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Go back to the caller's stream once all work is done: after Ctrl-C a replay may still run."""
        self._current.__exit__(kind, error, traceback)
        self._stream.synchronize()

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture the work; see :class:`torch.cuda.graph`. Dropout in it draws anew at each replay."""
        graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[self._device.index]
        state = generator.clone_state()
        broken: BaseException | None = None
        try:
            # What other threads do with the device (a loader that pins memory) does not disturb this capture.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                try:
                    work()
                except BaseException as error:
                    broken = error
                    raise
        except BaseException as error:
            graph.reset()
            # The generator still takes itself to be within the capture, and would refuse to draw. It gets a
            # state of its own, which graphs that were captured before do not follow.
            generator.graphsafe_set_state(state)
            # Not that a broken capture could not be ended, but what broke it, which may be Ctrl-C.
            raise (broken or error) from None
        finally:
            broken = None  # its frames hold this one, and tensors of the capture
        return graph.replay


class CapturedSteps(Steps):
    """Steps of which the full batches are captured and replayed; smaller ones run uncaptured.

    Parameters
    ----------
    step, totals, settings, total_steps
        See :class:`~fastvae.training.step.Steps`.
    data : Data
        Gathered within the graph where it is resident on the device; else each batch is copied to where the
        graph reads it.
    device : torch.device
    recorder : Recorder
    fall_back : bool
        Go on uncaptured, with a warning, if the step cannot be captured.
    own_networks : bool
        Whether the networks are fastvae's own: then the gradients of weights are a branch of the graph.
    """

    def __init__(
        self,
        step: Step,
        totals: EpochTotals,
        settings: Settings,
        *,
        total_steps: int,
        data: Data,
        device: torch.device,
        recorder: Recorder,
        fall_back: bool,
        own_networks: bool = False,
    ) -> None:
        super().__init__(step, totals, settings, total_steps=total_steps)
        self._data = data
        self._recorder = recorder
        self._fall_back = fall_back
        self._branches = own_networks and device.type == "cuda"
        self._replay: Callable[[], None] | None = None
        self._full_steps = 0

        self._resident = data.resident_on(device)
        self._size = min(settings.batch_size, len(data)) if self._resident else 0
        """Samples in a full batch; of batches that arrive, those of the first."""
        self._batch = torch.empty(0, device=device)  # where batches that arrive are copied to

        length = max(data.batch_count(settings.batch_size), 1)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._seeds = torch.zeros(length, dtype=torch.int64, device=device)
        # Without a warm-up the weight never differs.
        self._weights = torch.zeros(length, dtype=torch.float32, device=device) if settings.warmup else None
        self._left = 0  # rows of the tables that are still to come
        if self._resident:
            self._order = torch.zeros(len(data), dtype=torch.int64, device=device)
            full = len(data) // self._size * self._size
            self._full_batches, self._rest = self._order[:full].view(-1, self._size), self._order[full:]
            self._pixel_seed = torch.zeros((), dtype=torch.int64, device=device)
            self._gather = partial(self._resident.gather, binarize=settings.binarize, seed=self._pixel_seed)

    def __enter__(self) -> None:
        """Begin the training."""
        self._recorder.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the training and give the memory of the graph back."""
        self._recorder.__exit__(kind, error, traceback)
        self._replay = None
        self._step.model.zero_grad(set_to_none=True)  # the last gradients are in it

    def epoch(self, epoch: int, batches: Iterator[Tensor]) -> Iterator[int]:
        """See :meth:`~fastvae.training.step.Steps.epoch`; resident data is gathered without ``batches``."""
        self._left = 0
        return self._arriving(batches) if self._resident is None else self._gathered(epoch)

    def _gathered(self, epoch: int) -> Iterator[int]:
        """Take the steps of an epoch of resident data."""
        order, _, binarize = pass_over(self._data, self._settings, epoch)
        self._order.copy_(order)
        self._pixel_seed.fill_(binarize.seed)
        for _ in range(len(self._full_batches)):
            self._fill_tables()
            self._full_step()
            yield self._size
        if len(self._rest):
            self._fill_tables()
            self._take(self._gather(self._rest))
            self._count()
            yield len(self._rest)

    def _arriving(self, batches: Iterator[Tensor]) -> Iterator[int]:
        """Take the steps of an epoch of batches that come from the host."""
        for x in batches:
            self._fill_tables()
            if not self._size:
                self._size, self._batch = len(x), torch.empty_like(x)
            if len(x) == self._size:
                self._batch.copy_(x)
                self._full_step()
            else:
                self._take(x)
                self._count()
            yield len(x)

    def _full_step(self) -> None:
        if self._full_steps == WARM_UP:
            self._capture()
        if self._replay is None:
            self._step_of_full_batch()
        else:
            self._replay()
        self._full_steps += 1
        self._count()

    def _capture(self) -> None:
        try:
            self._replay = self._recorded()
        except Exception as error:
            if not self._fall_back:
                error.add_note('compile="graph" captures the step as a CUDA graph; compile=False does not')
                raise
            self._step.model.zero_grad(
                set_to_none=True
            )  # memory of the capture, in which nothing was computed
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"the step could not be captured as a CUDA graph ({type(error).__name__}: {reason}); "
                "training goes on without, which is slower and gives the same; compile=False does not try",
                NotCapturedWarning,
                stacklevel=2,
            )

    def _recorded(self) -> Callable[[], None]:
        """Record the step, if that may be with the gradients of the weights in a branch."""
        if self._branches:
            try:
                return self._recorded_with(SideBranch(self._position.device))
            except GradientInUseError:
                self._step.model.zero_grad(set_to_none=True)
        return self._recorder(self._step_of_full_batch)

    def _recorded_with(self, branch: SideBranch) -> Callable[[], None]:
        def work() -> None:
            try:
                self._step_of_full_batch()
            except BaseException:
                # A capture that ends with a branch astray leaves the allocator in it for good.
                branch.rejoin()
                raise

        self._step.before_update = branch.join
        try:
            # Modules of a user's own never see this: what they make of a layer is not known, and code that
            # was compiled without it would be compiled again, in the capture.
            with LinearLayers(branch):
                return self._recorder(work)
        finally:
            self._step.before_update = None

    # What follows is captured: no number in it may differ between steps.

    def _step_of_full_batch(self) -> None:
        if self._resident is None:
            self._take(self._batch)
        else:
            self._take(self._gather(self._full_batches.index_select(0, self._position).squeeze(0)))

    def _take(self, x: Tensor) -> None:
        """Take the step of the current position with this batch, and advance."""
        seed = self._seeds.index_select(0, self._position).squeeze(0)
        weight: float | Tensor = self._settings.beta
        if self._weights is not None:
            weight = self._weights.index_select(0, self._position).squeeze(0)
        self._totals.accumulate(*self._step(x, seed, weight))
        self._position.add_(1)

    # Until here.

    def _count(self) -> None:
        """Count on the host what was done on the device."""
        self.taken += 1
        self._left -= 1
        self._totals.steps += 1

    def _fill_tables(self) -> None:
        """Write the tables for the next steps, once those of the last ones are used up.

        A table is as long as an epoch; a DataLoader may have more batches than it had when they were counted.
        """
        if self._left:
            return
        steps = range(self.taken, self.taken + len(self._seeds))
        self._seeds.copy_(
            noise.fold_in(torch.tensor(self._latent_seed), torch.arange(steps.start, steps.stop))
        )
        if self._weights is not None:
            self._weights.copy_(torch.tensor([self._weight_of(step) for step in steps]))
        self._position.zero_()
        self._left = len(steps)
