"""The training loop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from fastvae import noise
from fastvae.data import Data
from fastvae.data.binarize import Binarize
from fastvae.models import VAE, FlooredTerms
from fastvae.objectives import elbo, kl_weight
from fastvae.training.config import Settings
from fastvae.training.diagnosis import report_skipped
from fastvae.training.history import EpochTotals, Record
from fastvae.training.optimizer import CautiousAdam
from fastvae.training.progress import Progress
from fastvae.training.randomness import Stream, derive, seed_generators

__all__ = ["fit"]


def fit(
    model: VAE,
    data: Data,
    settings: Settings,
    *,
    device: torch.device,
    validate: Callable[[], dict[str, float]] | None,
    progress: Progress,
    on_epoch: Callable[[list[Record]], None],
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
        Gets the history after each epoch.

    Returns
    -------
    history : list of Record
        One per epoch. After an interruption the last may be of a part of an epoch.
    interrupted : bool
        Whether Ctrl-C ended it.

    Raises
    ------
    NonFiniteError
        If a whole epoch has no step with finite numbers.
    """
    optimizer = CautiousAdam(model, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay)
    total_steps = settings.epochs * data.batch_count(settings.batch_size)
    latent_seed = derive(settings.seed, Stream.LATENT)
    batch_norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    history: list[Record] = []
    totals = EpochTotals(device)
    started, epoch, step, beta = time.perf_counter(), 0, 0, 0.0

    progress.start(settings.epochs * len(data))
    try:
        for epoch in range(1, settings.epochs + 1):
            totals, started = EpochTotals(device), time.perf_counter()
            model.train()
            seed_generators(derive(settings.seed, Stream.MODULES, epoch), device)
            for x in _batches(data, settings, epoch, device):
                beta = kl_weight(step, total_steps, beta=settings.beta, warmup=settings.warmup)
                with _safe_for_one(batch_norms, len(x)):
                    terms = model(x, noise.fold_in(latent_seed, step), free_bits=settings.free_bits)
                kl = terms.floored_kl if isinstance(terms, FlooredTerms) else terms.kl
                skipped = optimizer.step(-elbo(terms.recon, kl, beta))
                totals.add(terms, skipped)
                step += 1
                progress.advance(len(x), f"{epoch}/{settings.epochs}", totals.read)
            record = _record(epoch, totals, beta, started)
            report_skipped(
                record, totals.steps, history, model=model, data=data, settings=settings, device=device
            )
            if validate:
                record |= {
                    f"val_{name}": value for name, value in validate().items() if f"val_{name}" in record
                }
            history.append(record)
            on_epoch(history)
    except KeyboardInterrupt:
        if len(history) < epoch and totals.read().samples:
            history.append(_record(epoch, totals, beta, started))
        return history, True
    finally:
        progress.close()
        model.eval()
    return history, False


def _batches(data: Data, settings: Settings, epoch: int, device: torch.device) -> Iterator[Tensor]:
    """Yield the batches of one epoch in its own order, as the model sees them."""
    order = noise.permutation(len(data), derive(settings.seed, Stream.SHUFFLE, epoch))
    source_seed = derive(settings.seed, Stream.SOURCE, epoch)
    binarize = Binarize(settings.binarize, derive(settings.seed, Stream.BINARIZE, epoch))
    for x, _ in data.batches(
        settings.batch_size, order=order, device=device, seed=source_seed, binarize=binarize
    ):
        yield x


def _record(epoch: int, totals: EpochTotals, beta: float, started: float) -> Record:
    means = totals.read()
    seconds = time.perf_counter() - started
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


def _safe_for_one(batch_norms: Sequence[nn.Module], size: int) -> AbstractContextManager[None]:
    """Let a last batch of one pass batch normalisation, which has no variance to divide by."""
    return _eval_mode(batch_norms) if size == 1 and batch_norms else nullcontext()


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
