"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastvae import noise
from fastvae.data import Data
from fastvae.models import VAE
from fastvae.models.modes import kept_in_eval_mode
from fastvae.training.compilation import NOT_COMPILED, Compilation
from fastvae.training.config import Settings
from fastvae.training.diagnosis import report_skipped
from fastvae.training.graph import CapturedSteps, CudaRecorder
from fastvae.training.history import EpochTotals, Record
from fastvae.training.memory import keep_freed_memory
from fastvae.training.progress import Progress
from fastvae.training.randomness import Stream, derive, seed_generators
from fastvae.training.ranks import ALONE, Ranks, Share
from fastvae.training.resumption import TrainingState
from fastvae.training.step import Step, Steps, pass_over

__all__ = ["fit"]


def fit(
    model: VAE,
    data: Data,
    settings: Settings,
    *,
    device: torch.device,
    validate: Callable[[], dict[str, float]] | None,
    progress: Progress,
    on_epoch: Callable[[list[Record], Steps], None],
    compilation: Compilation = NOT_COMPILED,
    start: TrainingState | None = None,
    ranks: Ranks = ALONE,
) -> tuple[list[Record], bool]:
    """Train a model in place.

    The whole random state is ``(seed, epoch, step)``. Call it inside
    :func:`~fastvae.training.randomness.repeatable`.

    Parameters
    ----------
    model : VAE
        On ``device``; left in eval mode.
    data : Data
        What to train on.
    settings : Settings
    device : torch.device
    validate : callable, optional
        Gives ``elbo``, ``recon`` and ``kl`` of the held-out data.
    progress : Progress
    on_epoch : callable
        Gets the history and the steps before the first epoch of a run and after each.
    compilation : Compilation
        What is made of a step.
    start : TrainingState, optional
        After which epoch to begin; its state is the model's already.
    ranks : Ranks
        The processes that share each batch. All have the same weights, and what else the model keeps is that
        of the first after each epoch.

    Returns
    -------
    history : list of Record
        One per epoch. After an interruption of one process the last may be of a part of an epoch.
    interrupted : bool
        Whether Ctrl-C ended it.

    Raises
    ------
    NonFiniteError
        If a whole epoch has no step with finite numbers.
    """
    if device.type == "cpu":
        keep_freed_memory()
    totals = EpochTotals(device)
    frozen = kept_in_eval_mode(model)
    steps = _steps(model, data, settings, totals, device, compilation, ranks)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    history: list[Record] = []
    if start is not None:
        history += start.history
        steps.go_on_from(start.steps, start.averages)
        start.averages.clear()  # a large model has no room for two
    started, epoch = time.perf_counter(), len(history)

    if epoch < settings.epochs:
        progress.start(settings.epochs * len(data), done=epoch * len(data))
    try:
        if start is None:
            on_epoch(history, steps)
        with steps:
            for epoch in range(len(history) + 1, settings.epochs + 1):
                totals.reset()
                started = time.perf_counter()
                model.train()
                for part in frozen:
                    part.eval()
                seed_generators(_modules_seed(settings, epoch, ranks), device)
                shown = f"{epoch}/{settings.epochs}{', one share' if ranks.size > 1 else ''}"
                for size in steps.epoch(epoch, _batches(data, settings, epoch, device, ranks)):
                    progress.advance(size, shown, totals.read)
                ranks.give_kept(model)
                ranks.check_same(trained, f"after epoch {epoch}")
                record = _record(epoch, totals, steps.weight, started, ranks)
                report_skipped(
                    record, totals.steps, history, model=model, data=data, settings=settings, device=device
                )
                if validate:
                    record |= {
                        f"val_{name}": value for name, value in validate().items() if f"val_{name}" in record
                    }
                history.append(record)
                on_epoch(history, steps)
    except KeyboardInterrupt:
        # Of several processes each may be somewhere else.
        if ranks.size == 1 and len(history) < epoch and totals.read().samples:
            history.append(_record(epoch, totals, steps.weight, started))
        return history, True
    finally:
        progress.close()
        model.eval()
    return history, False


def _steps(
    model: VAE,
    data: Data,
    settings: Settings,
    totals: EpochTotals,
    device: torch.device,
    compilation: Compilation,
    ranks: Ranks,
) -> Steps:
    step = Step(model, settings, device=device, inductor=compilation.kind == "inductor", ranks=ranks)
    total_steps = settings.epochs * data.batch_count(settings.batch_size)

    def share(number: int) -> Share:
        return ranks.share(min(settings.batch_size, len(data) - number * settings.batch_size))

    if compilation.kind != "graph":
        return Steps(
            step,
            totals,
            settings,
            total_steps=total_steps,
            own_networks=compilation.own_networks,
            shares=share if ranks.size > 1 else None,
        )
    return CapturedSteps(
        step,
        totals,
        settings,
        total_steps=total_steps,
        data=data,
        device=device,
        recorder=CudaRecorder(device),
        fall_back=not compilation.asked_for,
        own_networks=compilation.own_networks,
    )


def _modules_seed(settings: Settings, epoch: int, ranks: Ranks) -> int:
    """The seed of what is random in modules: each process has samples of its own."""
    seed = derive(settings.seed, Stream.MODULES, epoch)
    return seed if ranks.first else noise.fold_in(seed, ranks.rank)


def _batches(
    data: Data, settings: Settings, epoch: int, device: torch.device, ranks: Ranks = ALONE
) -> Iterator[Tensor]:
    """Yield the batches of one epoch in its own order, as the model sees them, or a process's share of each.

    Where the last batch has fewer samples than there are processes, some have an empty share of it.
    """
    order, source_seed, binarize = pass_over(data, settings, epoch)
    size = ranks.share(settings.batch_size)
    own = ranks.order(order, settings.batch_size)
    count = 0
    for x, _ in data.batches(
        size.stop - size.start, order=own, device=device, seed=source_seed, binarize=binarize
    ):
        count += 1
        yield x
    if ranks.size > 1 and count < data.batch_count(settings.batch_size):
        yield torch.empty(0, *data.shape, device=device)


def _record(epoch: int, totals: EpochTotals, beta: float, started: float, ranks: Ranks = ALONE) -> Record:
    means = totals.read(ranks)
    seconds = ranks.gather(time.perf_counter() - started)[0]
    return {
        "epoch": epoch,
        "elbo": means.recon - means.kl,
        "recon": means.recon,
        "kl": means.kl,
        "beta": beta,
        "val_elbo": None,
        "val_recon": None,
        "val_kl": None,
        "images_per_second": means.samples / seconds,
        "seconds": seconds,
        "skipped_steps": means.skipped_steps,
    }
