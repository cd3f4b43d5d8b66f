"""One step of training, the same whether it is captured or not, and the uncaptured steps of an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import FunctionType, TracebackType
from typing import Any, NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn

from fastvae import noise
from fastvae.data import Data
from fastvae.data.binarize import Binarize
from fastvae.models import VAE, FlooredTerms, Terms
from fastvae.objectives import kl_capacity, kl_weight
from fastvae.ops.noise.seed import UnchangingSeed
from fastvae.training.averages import Averages
from fastvae.training.config import Settings
from fastvae.training.dense import DensePass
from fastvae.training.history import EpochTotals
from fastvae.training.optimizer import CautiousAdam
from fastvae.training.randomness import Stream, derive
from fastvae.training.ranks import ALONE, Ranks, Share

__all__ = ["Pass", "Step", "Steps", "check_batches", "check_shares", "loss_slopes", "pass_over"]


class Pass(NamedTuple):
    """What is random about the data of one epoch."""

    order: Tensor
    source_seed: int
    binarize: Binarize


def pass_over(data: Data, settings: Settings, epoch: int, device: torch.device | None = None) -> Pass:
    """Give the order, made on a device (by default the CPU), the seed of the source and the drawn pixels."""
    return Pass(
        order=noise.permutation(len(data), derive(settings.seed, Stream.SHUFFLE, epoch), device=device),
        source_seed=derive(settings.seed, Stream.SOURCE, epoch),
        binarize=Binarize(settings.binarize, derive(settings.seed, Stream.BINARIZE, epoch)),
    )


class Step:
    """Forward, loss, backward and update for a batch; it reads nothing back from the device.

    Parameters
    ----------
    model : VAE
        On ``device``, in train mode while steps are taken.
    settings : Settings
    device : torch.device
    inductor : bool
        Compile the forward for batches of the size of the first one; others run as they are.
    ranks : Ranks
        The processes that share each batch.

    Attributes
    ----------
    before_update : callable, optional
        Called when there are gradients, before anything is made of them.
    dense : DensePass, optional
        Computes terms and gradients, of the batches that it takes; those of others are up to autograd.
    optimizer : CautiousAdam
    """

    def __init__(
        self,
        model: VAE,
        settings: Settings,
        *,
        device: torch.device,
        inductor: bool = False,
        ranks: Ranks = ALONE,
    ) -> None:
        self.model = model
        self.before_update: Callable[[], None] | None = None
        self.dense: DensePass | None = None
        self._device = device
        self.optimizer = CautiousAdam(
            model, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay, ranks=ranks
        )
        self._ranks = ranks
        self._free_bits = settings.free_bits
        self._batch_norms = _batch_norms(model)
        self._synchronized = [each for each in self._batch_norms if isinstance(each, nn.SyncBatchNorm)]
        self._terms = _terms(model, settings, device)
        # A seed is the same for every code that draws by it: compiled dropout draws what eager dropout does.
        self._compiled = (
            torch.compile(_on_its_own(self._terms), dynamic=False, options={"fallback_random": True})
            if inductor
            else None
        )
        self._compiled_size: int | None = None
        self._kept = dict[tuple[int, int, float], tuple[Tensor, Tensor]]()

    @property
    def runs_on_cpu(self) -> bool:
        """Whether its steps are taken on the CPU, as they are written."""
        return self._device.type == "cpu" and self._compiled is None

    def __call__(
        self,
        x: Tensor,
        seed: _Seed,
        weight: float | Tensor,
        slopes: tuple[Tensor, Tensor] | None = None,
        share: Share | None = None,
        capacity: float | Tensor = 0.0,
    ) -> tuple[Terms, Tensor]:
        """Take a step.

        Parameters
        ----------
        x : Tensor
            float32, ``(B, *shape)``, on the device.
        seed : int, int64 tensor or UnchangingSeed
            Of the latent noise.
        weight : float or Tensor
            Of the KL. A captured step takes it, and the seed, as tensors: a number would stay what it was.
        slopes : (Tensor, Tensor), optional
            What :func:`loss_slopes` gives for terms of float32, made for several steps at once. A hook may
            write to them.
        share : Share, optional
            Which rows of the batch these are, that other processes have others of; none of them, perhaps.
        capacity : float or Tensor
            What the mean KL of the batch is drawn to; the number 0 is the plain objective. As the weight is.

        Returns
        -------
        terms : Terms
            Of the batch, without a graph.
        skipped : Tensor
            1 if the step was skipped, else 0: a float32 scalar on the device.
        """
        share = share or Share(0, len(x), len(x))
        if not len(x):  # nothing but the part of the others, in each exchange that they make
            self._towards((x, x), x.new_zeros(0), capacity, share.samples)
            return Terms(*torch.zeros(2, 0, device=self._device)), self.optimizer.step(())
        adam = self.optimizer.native
        if self.dense is not None and adam is not None and self.before_update is None:
            passed = self.dense(
                x,
                seed,
                partial(self._kept_slopes, weight, capacity, share.samples),
                free_bits=self._free_bits,
                row_offset=share.start,
            )
            if passed is not None:
                terms, gradients, finite = passed
                looked_at: Sequence[Tensor] = trained_on(terms)
                with torch.no_grad():
                    if self.optimizer.shared is not None:
                        of_all, gradients = self.optimizer.shared.add_up(looked_at, gradients)
                        looked_at, finite = [of_all], False
                    skipped = adam.step(looked_at, gradients, finite=finite, kept=True)
                return Terms(terms.recon, terms.kl), skipped
        if self._compiled is None or self._compiled_size not in {None, len(x)}:
            with self._safe_for_one(share):
                terms = self._terms(x, seed, share.start)
        else:
            terms = self._run_compiled(self._compiled, x, seed, share)
        recon, kl = trained_on(terms)
        if slopes is None or recon.dtype is not slopes[0].dtype or kl.dtype is not slopes[1].dtype:
            slopes = loss_slopes(recon, kl, weight, share.samples)
        slopes = self._towards(slopes, kl, capacity, share.samples)
        skipped = self.optimizer.step((recon, kl), slopes, self.before_update)
        return Terms(terms.recon.detach(), terms.kl.detach()), skipped

    def _kept_slopes(
        self, weight: float | Tensor, capacity: float | Tensor, samples: int, recon: Tensor, kl: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What :func:`loss_slopes` gives, made once where nothing changes: a pass does not write to it."""
        if not isinstance(weight, float):
            return self._towards(loss_slopes(recon, kl, weight, samples), kl, capacity, samples)
        if (len(recon), samples, weight) not in self._kept:
            self._kept = {(len(recon), samples, weight): loss_slopes(recon, kl, weight, samples)}
        return self._towards(self._kept[len(recon), samples, weight], kl, capacity, samples)

    def _towards(
        self, slopes: tuple[Tensor, Tensor], kl: Tensor, capacity: float | Tensor, samples: int
    ) -> tuple[Tensor, Tensor]:
        """The derivatives where the mean KL is drawn to a capacity: those of ``|mean - capacity|``.

        The mean is that of the batch, whatever share of it this process has.
        """
        if isinstance(capacity, float) and not capacity:
            return slopes
        of_recon, of_kl = slopes
        total = kl.detach().sum().reshape(1)
        self._ranks.add_up(total)
        return of_recon, of_kl * (total / samples - capacity).sign()

    def _run_compiled(self, compiled: _Terms, x: Tensor, seed: _Seed, share: Share) -> Terms | FlooredTerms:
        # A number would be compiled in, and the next step compiled again.
        if isinstance(seed, int):
            seed = torch.full((), seed, device=self._device)
        first, self._compiled_size = self._compiled_size is None, len(x)
        try:
            with self._safe_for_one(share):
                return compiled(x, seed, share.start)
        except Exception as error:
            if first:
                error.add_note(
                    'compile="inductor" compiles the step by torch.compile; compile=False does not'
                )
            raise

    def _safe_for_one(self, share: Share) -> AbstractContextManager[None]:
        """Let a batch of one pass batch normalisation, which has no variance to divide by.

        Where processes have it look at the whole batch, all of them have to go one way.
        """
        if share.samples == 1:
            return _eval_mode(self._batch_norms)
        if share.stop - share.start == 1:
            return _eval_mode([each for each in self._batch_norms if each not in self._synchronized])
        return nullcontext()


def trained_on(terms: Terms | FlooredTerms) -> tuple[Tensor, Tensor]:
    """The two terms of the loss."""
    return terms.recon, terms.floored_kl if isinstance(terms, FlooredTerms) else terms.kl


def loss_slopes(
    recon: Tensor, kl: Tensor, weight: float | Tensor, samples: int | None = None
) -> tuple[Tensor, Tensor]:
    """The derivatives of the loss, ``-elbo(recon, kl, weight)``, with respect to its two terms.

    Backward begins with them: on small networks the bound itself, and what autograd makes of it, takes as
    long as a layer, and nobody asks for its value. They are new each time, as a hook may write to a gradient.
    The terms are ``(B,)``, those of a share of so many ``samples``, or ``(steps, B or more)`` for those of
    several steps.
    """
    samples = samples or len(recon)
    of_recon, of_kl = torch.full_like(recon, -1 / samples), torch.full_like(kl, 1 / samples)
    return of_recon, of_kl if isinstance(weight, float) and weight == 1 else of_kl * weight


class Steps:
    """The uncaptured steps of a training, one for each batch of the source.

    Parameters
    ----------
    step : Step
    totals : EpochTotals
        Gets the terms of each batch.
    settings : Settings
    total_steps : int
        Of the whole training.
    own_networks : bool
        Whether the networks are fastvae's own: then a step may do without autograd.
    shares : callable, optional
        Gives, for the number of a batch within its epoch, which rows of it are this process's.

    Attributes
    ----------
    taken : int
        Steps so far.
    """

    def __init__(
        self,
        step: Step,
        totals: EpochTotals,
        settings: Settings,
        *,
        total_steps: int,
        own_networks: bool = False,
        shares: Callable[[int], Share] | None = None,
    ) -> None:
        self.taken = 0
        self._shares = shares
        self._step = step
        self._totals = totals
        self._settings = settings
        self._total_steps = total_steps
        self._latent_seed = derive(settings.seed, Stream.LATENT)
        self._own_networks = own_networks

    def __enter__(self) -> None:
        """Begin the training."""
        step, settings = self._step, self._settings
        if self._own_networks and step.runs_on_cpu and settings.precision == "float32":
            step.dense = DensePass(step.model) if DensePass.takes(step.model) else None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the training."""
        self._step.dense = None

    @property
    def weight(self) -> float:
        """The weight of the KL in the last step; 0 before the first."""
        return self._weight_of(self.taken - 1) if self.taken else 0.0

    def averages(self) -> dict[str, Averages]:
        """Copy what Adam keeps, by the names of the parameters."""
        return self._step.optimizer.averages()

    def go_on_from(self, taken: int, averages: Mapping[str, Averages]) -> None:
        """Begin after so many steps, with what Adam kept of them."""
        self.taken = taken
        self._step.optimizer.restore(averages)

    def epoch(self, epoch: int, batches: Iterator[Tensor]) -> Iterator[int]:
        """Take the steps of one epoch, and yield the number of samples after each, or after several."""
        del epoch  # the batches are its own
        for number, x in enumerate(batches):
            share = self._shares(number) if self._shares else None
            seed = noise.fold_in(self._latent_seed, self.taken)
            weight, capacity = self._weight_of(self.taken), self._capacity_of(self.taken)
            terms, skipped = self._step(x, seed, weight, share=share, capacity=capacity)
            self._totals.add(terms, skipped)
            self.taken += 1
            yield share.samples if share else len(x)

    def _weight_of(self, step: int) -> float:
        settings = self._settings
        if settings.capacity:  # it is what grows
            return settings.beta
        return kl_weight(
            step, self._total_steps, beta=settings.beta, warmup=settings.warmup, cycles=settings.cycles
        )

    def _capacity_of(self, step: int) -> float:
        settings = self._settings
        if not settings.capacity:
            return 0.0
        return kl_capacity(step, self._total_steps, capacity=settings.capacity, warmup=settings.warmup)


_Seed: TypeAlias = int | Tensor | UnchangingSeed

_Terms = Callable[[Tensor, _Seed, int], Terms | FlooredTerms]
"""From a batch, a seed and the row of the noise that its first sample takes to the terms of the bound."""


def _terms(model: VAE, settings: Settings, device: torch.device) -> _Terms:
    free_bits = settings.free_bits
    dense = AUTOCAST[settings.precision]

    def terms(x: Tensor, seed: Any, row_offset: int) -> Terms | FlooredTerms:
        if dense is None:
            return model(x, seed, row_offset, free_bits=free_bits)
        # No cache: weights change with each step, and are used once in it.
        with torch.autocast(device.type, dense, cache_enabled=False):
            return model(x, seed, row_offset, free_bits=free_bits)

    return terms


AUTOCAST = {"float32": None, "bfloat16": torch.bfloat16}
"""What dense layers compute in, by the name of the precision; None is the dtype of the weights."""


def _on_its_own(function: _Terms) -> _Terms:
    """The function with a code object that no other has: compiled code is counted, and limited, by that."""
    plain = cast("FunctionType", function)
    return FunctionType(plain.__code__.replace(), plain.__globals__, plain.__name__, None, plain.__closure__)


def check_shares(data: Data, batch_size: int, ranks: Ranks) -> None:
    """Refuse data and batches that processes cannot share.

    Raises
    ------
    TypeError
        For a source that picks its own rows.
    ValueError
        If there are fewer samples in a batch than processes.
    """
    if ranks.size == 1:
        return
    if not data.can_split:
        raise TypeError(
            f"{ranks.size} processes cannot share the batches of a {data.name}, because it picks its own "
            "rows: give the Dataset behind it, without a DistributedSampler, batch_size= of all processes "
            "together, and workers=; distributed=False has each train a model of its own"
        )
    if min(batch_size, len(data)) < ranks.size:
        raise ValueError(
            f"each of {ranks.size} processes takes a share of every batch, so it needs at least {ranks.size} "
            f"samples: batch_size is {batch_size}, and there are {len(data)} samples to train on"
        )


def check_batches(model: nn.Module, data: Data, batch_size: int, ranks: Ranks = ALONE) -> None:
    """Refuse batch normalisation where every batch, or every share of one, is of one sample.

    Raises
    ------
    ValueError
        It would pass all of them as one alone passes, and learn no statistics.
    """
    batch_norms = _batch_norms(model)
    if not batch_norms:
        return
    rest = len(data) % batch_size
    if any(isinstance(each, nn.SyncBatchNorm) for each in batch_norms) and 0 < rest < ranks.size:
        raise ValueError(
            f"SyncBatchNorm waits for all {ranks.size} processes, and the last batch of an epoch has {rest} "
            f"of {len(data)} samples: take another batch_size than {batch_size}"
        )
    if ranks.size > 1 and all(isinstance(each, nn.SyncBatchNorm) for each in batch_norms):
        return
    several, least = f" for each of the {ranks.size} processes" if ranks.size > 1 else "", 2 * ranks.size
    if data.batch_count(batch_size) == len(data) or (several and min(batch_size, len(data)) < least):
        raise ValueError(
            f"batch normalisation learns nothing from one sample at a time, and each of the "
            f"{data.batch_count(batch_size)} batches has one sample{several}: take a batch_size of at least "
            f"{least}, or a layer that looks at no batch, as torch.nn.LayerNorm or torch.nn.GroupNorm"
        )


def _batch_norms(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@contextmanager
def _eval_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    training = [module for module in modules if module.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()
