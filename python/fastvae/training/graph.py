"""Steps that are captured once as CUDA graphs and replayed: one launch for everything from rows to weights.

A graph repeats its kernels with the addresses and the numbers they were captured with. So whatever differs
between steps (the rows of the batch, the seed of its noise, what is asked of the KL) stands in tables on the
device, a row for each step of the epoch, and the graph reads them at a position that it advances itself.

Where data is resident, another graph has several steps: what is read for them is read together, and there is
no launch between them. The one of one step takes what is left of an epoch.
"""

from __future__ import annotations

import gc
import math
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import Tensor

from fastvae import noise
from fastvae.data import Data
from fastvae.errors import NotCapturedWarning
from fastvae.ops.noise.seed import UnchangingSeed
from fastvae.training.branches import GradientInUseError, LinearLayers, SideBranch, stream_of
from fastvae.training.config import Settings
from fastvae.training.history import EpochTotals
from fastvae.training.step import Step, Steps, loss_slopes, pass_over

__all__ = ["CapturedSteps", "CudaRecorder", "Recorder"]

WARM_UP = 3
"""Full batches that run uncaptured first, as real steps: they load kernels and make workspaces."""

MOST_STEPS = 8
"""Of a graph."""

MOST_BYTES = 2**25
"""Of the batches of a graph, which are in memory together."""

ALIGNMENT = 16
"""Bytes: kernels are compiled for addresses that this divides, and once more for others."""

SEED_WIDTH = ALIGNMENT // 8
"""Numbers from a seed to the next."""


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
        self._pool: Any = None

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
        # The collector may find a kernel of Triton: to unload it from the device breaks a capture.
        gc.collect()
        collecting = gc.isenabled()
        gc.disable()
        try:
            # What other threads do with the device (a loader that pins memory) does not disturb this capture.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
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
            if collecting:
                gc.enable()
            broken = None  # its frames hold this one, and tensors of the capture
        # Nothing that a graph leaves behind is read by the next: all of them can have the same memory.
        self._pool = graph.pool()
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
        self._branch: SideBranch | None = None  # while steps are captured with one
        self._replays: dict[int, Callable[[], None]] = {}
        """What repeats so many steps."""
        self._to_capture = [1]
        """How many steps there are to be in each graph that was not tried yet."""
        self._full_steps = 0

        self._resident = data.resident_on(device)
        self._size = min(settings.batch_size, len(data)) if self._resident else 0
        """Samples in a full batch; of batches that arrive, those of the first."""
        self._batch = torch.empty(0, device=device)  # where batches that arrive are copied to

        length = max(data.batch_count(settings.batch_size), 1)
        self._position = torch.zeros(1, dtype=torch.int64, device=device)
        self._ahead = torch.arange(MOST_STEPS, device=device)
        self._seeds = torch.zeros(length, SEED_WIDTH, dtype=torch.int64, device=device)
        # Without a warm-up nothing that is asked of the KL differs; with a capacity its weight does not.
        self._weights: Tensor | None = None
        self._capacities: Tensor | None = None
        if settings.warmup:
            asked = torch.zeros(length, dtype=torch.float32, device=device)
            if settings.capacity:
                self._capacities = asked
            else:
                self._weights = asked
        self._left = 0  # rows of the tables that are still to come
        if self._resident:
            self._order = torch.zeros(len(data), dtype=torch.int64, device=device)
            full = len(data) // self._size * self._size
            self._full_batches, self._rest = self._order[:full].view(-1, self._size), self._order[full:]
            self._pixel_seed = torch.zeros((), dtype=torch.int64, device=device)
            self._gather = partial(self._resident.gather, binarize=settings.binarize, seed=self._pixel_seed)
            bytes_of_batch = 4 * self._size * math.prod(step.model.input_shape)
            self._together = bytes_of_batch % ALIGNMENT == 0
            steps = _steps_of_a_graph(len(self._full_batches), MOST_BYTES // bytes_of_batch)
            if steps > 1:
                self._to_capture.append(steps)

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
        self._replays.clear()
        self._step.model.zero_grad(set_to_none=True)  # the last gradients are in it

    def epoch(self, epoch: int, batches: Iterator[Tensor]) -> Iterator[int]:
        """See :meth:`~fastvae.training.step.Steps.epoch`; resident data is gathered without ``batches``."""
        self._left = 0
        return self._arriving(batches) if self._resident is None else self._gathered(epoch)

    def _gathered(self, epoch: int) -> Iterator[int]:
        """Take the steps of an epoch of resident data."""
        # Of many samples the order takes the processor as long as many steps take the device.
        order, _, binarize = pass_over(self._data, self._settings, epoch, self._order.device)
        self._order.copy_(order)
        self._pixel_seed.fill_(binarize.seed)
        left = len(self._full_batches)
        while left:
            self._fill_tables()
            steps = self._full_step(left)
            left -= steps
            yield steps * self._size
        if len(self._rest):
            self._fill_tables()
            self._take_next(self._gather(self._rest))
            self._count(1)
            yield len(self._rest)

    def _arriving(self, batches: Iterator[Tensor]) -> Iterator[int]:
        """Take the steps of an epoch of batches that come from the host."""
        for x in batches:
            self._fill_tables()
            if not self._size:
                self._size, self._batch = len(x), torch.empty_like(x)
            if len(x) == self._size:
                self._batch.copy_(x)
                self._full_step(1)
            else:
                self._take_next(x)
                self._count(1)
            yield len(x)

    def _full_step(self, left: int) -> int:
        """Take a step with a full batch, or the steps of a graph if so many are left; say how many."""
        if self._full_steps >= WARM_UP:
            while fitting := [steps for steps in self._to_capture if steps <= left]:
                self._capture(fitting[0])
        steps = max((steps for steps in self._replays if steps <= left), default=0)
        if steps:
            self._replays[steps]()
        else:
            steps = 1
            self._steps_of_full_batches(steps)
        self._full_steps += steps
        self._count(steps)
        return steps

    def _capture(self, steps: int) -> None:
        self._to_capture.remove(steps)
        try:
            self._replays[steps] = self._recorded(steps)
        except Exception as error:
            # None that was captured before follows the generator from here.
            self._to_capture.clear()
            self._replays.clear()
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

    def _recorded(self, steps: int) -> Callable[[], None]:
        """Record steps, if that may be with the gradients of the weights in a branch."""
        work = partial(self._steps_of_full_batches, steps)
        if self._branches:
            try:
                return self._recorded_with(SideBranch(self._position.device), work)
            except GradientInUseError:
                self._step.model.zero_grad(set_to_none=True)
                self._branches = False
        return self._recorder(work)

    def _recorded_with(self, branch: SideBranch, work: Callable[[], None]) -> Callable[[], None]:
        def work_and_rejoin() -> None:
            try:
                work()
            finally:
                # A capture that ends with a branch astray leaves the allocator in it for good.
                branch.rejoin()

        self._branch, self._step.before_update = branch, branch.join
        try:
            # Modules of a user's own never see this: what they make of a layer is not known, and code that
            # was compiled without it would be compiled again, in the capture.
            with LinearLayers(branch, self._step.model):
                return self._recorder(work_and_rejoin)
        finally:
            self._branch = self._step.before_update = None

    # What follows is captured: no number in it may differ between steps.

    def _steps_of_full_batches(self, steps: int) -> None:
        rows = self._position + self._ahead[:steps]
        if self._resident is None:
            batches: Sequence[Tensor] = [self._batch]
        else:
            indices = self._full_batches.index_select(0, rows)
            if self._together:
                # A row is drawn as it is in any batch.
                batches = self._gather(indices.flatten()).split(self._size)
            else:
                batches = [self._gather(index) for index in indices]
        self._take(batches, rows)

    def _take_next(self, x: Tensor) -> None:
        """Take a step with a batch of any size."""
        self._take([x], self._position + self._ahead[:1])

    def _take(self, batches: Sequence[Tensor], rows: Tensor) -> None:
        """Take steps with these batches and these rows of the tables, the next ones."""
        seeds = self._seeds.index_select(0, rows)
        weights: float | Tensor = self._settings.beta
        if self._weights is not None:
            weights = self._weights.index_select(0, rows).unsqueeze(1)
        capacities = None if self._capacities is None else self._capacities.index_select(0, rows)
        samples = len(batches[0])
        width = ALIGNMENT // 4
        of_one = torch.empty(len(batches), -(-samples // width) * width, device=rows.device)
        of_recon, of_kl = loss_slopes(of_one, of_one, weights, samples)
        for at, x in enumerate(batches):
            weight = weights[at, 0] if isinstance(weights, Tensor) else weights
            seed = UnchangingSeed(seeds[at, 0])
            capacity = self._settings.capacity if capacities is None else capacities[at]
            slopes = of_recon[at, :samples], of_kl[at, :samples]
            terms, skipped = self._step(x, seed, weight, slopes, capacity=capacity)
            with self._beside(*terms, skipped):
                self._totals.accumulate(terms, skipped)
        self._position.add_(len(batches))

    def _beside(self, *inputs: Tensor) -> AbstractContextManager[None]:
        """Where the next step does not wait for it, if there is such a branch."""
        return self._branch.after(*inputs) if self._branch else nullcontext()

    # Until here.

    def _count(self, steps: int) -> None:
        """Count on the host what was done on the device."""
        self.taken += steps
        self._left -= steps
        self._totals.steps += steps

    def _fill_tables(self) -> None:
        """Write the tables for the next steps, once those of the last ones are used up.

        A table is as long as an epoch; a DataLoader may have more batches than it had when they were counted.
        """
        if self._left:
            return
        steps = range(self.taken, self.taken + len(self._seeds))
        self._seeds[:, 0] = noise.fold_in(
            torch.tensor(self._latent_seed, device="cpu"), torch.arange(steps.start, steps.stop, device="cpu")
        )
        if self._weights is not None:
            self._weights.copy_(torch.tensor([self._weight_of(step) for step in steps], device="cpu"))
        if self._capacities is not None:
            self._capacities.copy_(torch.tensor([self._capacity_of(step) for step in steps], device="cpu"))
        self._position.zero_()
        self._left = len(steps)


def _steps_of_a_graph(full_batches: int, most: int) -> int:
    """How many steps a graph has where an epoch, by such graphs and single steps, then has the fewest."""
    most = max(min(MOST_STEPS, most, full_batches), 1)
    return min(range(most, 0, -1), key=lambda steps: full_batches // steps + full_batches % steps)
