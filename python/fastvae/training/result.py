"""What training gives."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from fastvae import functional, noise
from fastvae.data import Data, open_data
from fastvae.data.binarize import AS_THEY_ARE, Binarize
from fastvae.data.frames import check_columns
from fastvae.models import VAE
from fastvae.models.vae import without_ones
from fastvae.training import persistence
from fastvae.training.config import RunConfig, as_count
from fastvae.training.device import undisturbed
from fastvae.training.held_out import evaluate_on, log_likelihood_on
from fastvae.training.history import Record
from fastvae.training.randomness import Stream, derive

__all__ = ["TrainedVAE"]

CHUNK = 64
"""Rows that pass a network together, always that many: a matrix product rounds differently for another
number, and the first of a thousand samples shall be the same bits as the first of one."""

P = ParamSpec("P")
T = TypeVar("T")


def _undisturbed(
    method: Callable[Concatenate[TrainedVAE, P], T],
) -> Callable[Concatenate[TrainedVAE, P], T]:
    """A method that gives the same also within autocast and inference mode."""

    @functools.wraps(method)
    def called(self: TrainedVAE, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with undisturbed():
            return method(self, *args, **kwargs)

    return called


class TrainedVAE:
    """A trained model with everything it takes to use it.

    Data may be anything :func:`fastvae.train` takes, or one sample; results are float32 tensors on the CPU,
    the same in ``no_grad``, ``inference_mode``, ``autocast`` and under any default dtype or device.

    Parameters
    ----------
    model : VAE
        Put into eval mode.
    config : RunConfig
        How it was built and trained.
    history : list of dict
        One record per epoch: ``epoch`` (from 1), ``elbo``, ``recon`` and ``kl`` (nats per sample at beta = 1,
        averaged over the epoch), ``beta`` (the weight of the KL at its end), ``val_elbo``, ``val_recon`` and
        ``val_kl`` (None without validation), ``images_per_second``, ``seconds``, ``skipped_steps``.

    Attributes
    ----------
    model, config, history
        As given.
    """

    def __init__(self, model: VAE, config: RunConfig, history: list[Record]) -> None:
        self.model = model.eval()
        self.config = config
        self.history = history

    def __repr__(self) -> str:
        trained = f"{len(self.history)} epochs" + (", interrupted" if self.interrupted else "")
        return (
            f"<TrainedVAE of {self.config.data.name}: {self.latent_dim} codes for samples of shape "
            f"{self.input_shape}, {trained}>"
        )

    @property
    def interrupted(self) -> bool:
        """Whether training was ended before its time."""
        return self.config.interrupted

    @property
    def latent_dim(self) -> int:
        """Number of codes."""
        return self.model.latent_dim

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return self.model.input_shape

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @_undisturbed
    def sample(self, n: int, *, seed: int = 0, row_offset: int = 0, sampled: bool = False) -> Tensor:
        """Decode codes drawn from the prior, unit Gaussian noise.

        Sample ``i`` depends on the seed and ``row_offset + i`` only: ``sample(100)[:10]`` is ``sample(10)``,
        and ``sample(50, row_offset=50)`` is its second half. So any number can be made a part at a time.

        Parameters
        ----------
        n : int
            How many.
        seed : int
        row_offset : int
            Number of the first one.
        sampled : bool
            Draw from the likelihood too. Without, the result is its mean, which looks better for images.

        Returns
        -------
        Tensor
            ``(n, *input_shape)``.
        """
        n = as_count("n", n)
        if row_offset < 0:
            raise ValueError(f"row_offset must not be negative, got {row_offset}")
        prior_seed, pixel_seed = derive(seed, Stream.PRIOR), derive(seed, Stream.OBSERVATION)
        first = row_offset - row_offset % CHUNK
        parts = []
        for start in range(first, row_offset + n, CHUNK):
            z = noise.normal((CHUNK, self.latent_dim), prior_seed, row_offset=start, device=self.device)
            with torch.no_grad():
                params = self.model.parameters_of(z)
                likelihood = self.model.likelihood
                parts.append(
                    likelihood.sample(params, pixel_seed, row_offset=start).cpu()
                    if sampled
                    else likelihood.mean(params).cpu()
                )
        return torch.cat(parts)[row_offset - first :][:n]

    @_undisturbed
    def posterior(self, x: object) -> tuple[Tensor, Tensor]:
        """Give the distribution of the codes of data: q(z | x), a Gaussian.

        Parameters
        ----------
        x : array, tensor, path, Dataset, ...
            Samples ``(N, *input_shape)``, or one ``input_shape``. A model trained with
            ``binarize="threshold"`` sees them binary, any other as they are: also values that no training
            data had, as an outlier may have (:meth:`evaluate` refuses what the likelihood cannot have).

        Returns
        -------
        mu, logvar : Tensor
            Mean and log-variance, ``(N, latent_dim)`` each, or ``(latent_dim,)`` for one sample. The
            log-variance of a plain autoencoder is minus infinity: its codes do not vary.

        Raises
        ------
        TypeError, ValueError
            If ``x`` is no data, its samples have another shape than the model's, or values are NaN or
            infinite.
        """
        data, single = self._open(x)
        means, logvars = [], []
        for batch, _ in data.batches(CHUNK, order=None, device=self.device, binarize=self._as_trained):
            seen = _filled(batch.reshape(-1, *self.input_shape))
            with torch.no_grad():
                mu, logvar = self.model.posterior(seen)
            means.append(mu[: len(batch)].cpu())
            logvars.append(logvar[: len(batch)].cpu())
        mu, logvar = torch.cat(means), torch.cat(logvars)
        if not mu.isfinite().all():
            data.value_range()  # raises where that is because of the data, and names the rows
        if not self.model.variational:
            logvar = torch.full_like(mu, -torch.inf)
        return (mu[0], logvar[0]) if single else (mu, logvar)

    @_undisturbed
    def encode(self, x: object, *, sample: bool = False, seed: int = 0) -> Tensor:
        """Give the codes of data.

        Parameters
        ----------
        x : array, tensor, path, Dataset, ...
            See :meth:`posterior`.
        sample : bool
            Draw from the posterior instead of giving its mean.
        seed : int
            For drawing.

        Returns
        -------
        Tensor
            ``(N, latent_dim)``, or ``(latent_dim,)`` for one sample.

        Raises
        ------
        TypeError, ValueError
            If ``x`` is no data, or its samples have another shape than the model's.
        """
        mu, logvar = self.posterior(x)
        return functional.reparametrize(mu, logvar, seed=derive(seed, Stream.POSTERIOR)) if sample else mu

    def decode(self, z: Tensor | np.ndarray | Sequence[float]) -> Tensor:
        """Give the expected samples for codes.

        Parameters
        ----------
        z : array-like
            ``(N, latent_dim)``, or one ``(latent_dim,)``.

        Returns
        -------
        Tensor
            ``(N, *input_shape)``, or ``input_shape``.

        Raises
        ------
        ValueError
            For another shape.
        """
        codes = _as_floats(z)
        if codes.dim() not in {1, 2} or codes.shape[-1] != self.latent_dim:
            raise ValueError(
                f"codes must be of shape (N, {self.latent_dim}) or ({self.latent_dim},), "
                f"got {tuple(codes.shape)}"
            )
        decoded = self._decode(codes.reshape(-1, self.latent_dim))
        return decoded[0] if codes.dim() == 1 else decoded

    def reconstruct(self, x: object) -> Tensor:
        """Encode data to its mean codes and decode them: the shape of ``x``; see :meth:`encode`."""
        return self.decode(self.encode(x))

    @_undisturbed
    def interpolate(self, a: object, b: object, steps: int = 10) -> Tensor:
        """Decode the straight lines between the mean codes of ``a`` and ``b``, both ends included.

        Parameters
        ----------
        a, b : array, tensor, ...
            As many samples each, or one; see :meth:`encode`.
        steps : int
            Points on a line, at least 2.

        Returns
        -------
        Tensor
            ``(N, steps, *input_shape)``, or ``(steps, *input_shape)`` for single samples.

        Raises
        ------
        ValueError
            For fewer than two steps, or numbers of samples that differ.
        """
        if as_count("steps", steps) < 2:
            raise ValueError("steps must be at least 2: the two ends")
        start, end = self.encode(a), self.encode(b)
        if start.shape != end.shape:
            raise ValueError(
                f"a and b must hold as many samples each, got codes of shape {tuple(start.shape)} and "
                f"{tuple(end.shape)}"
            )
        weight = torch.linspace(0, 1, steps, dtype=torch.float32, device="cpu")[:, None]
        line = torch.lerp(start.unsqueeze(-2), end.unsqueeze(-2), weight)
        return self._decode(line.reshape(-1, self.latent_dim)).reshape(*line.shape[:-1], *self.input_shape)

    def traverse(
        self, x: object = None, dim: int = 0, values: Tensor | np.ndarray | Sequence[float] | None = None
    ) -> Tensor:
        """Decode codes that differ in one dimension only.

        Parameters
        ----------
        x : array, tensor or None
            One sample whose mean code is varied; None is the origin, the mean of the prior.
        dim : int
            Which code varies.
        values : sequence of float, optional
            What it becomes; by default nine steps from -3 to 3, standard deviations of the prior.

        Returns
        -------
        Tensor
            ``(len(values), *input_shape)``.

        Raises
        ------
        IndexError
            If there is no such code.
        ValueError
            If ``x`` is not one sample, or ``values`` not a row of numbers.
        """
        dim = operator.index(dim)
        if not 0 <= dim < self.latent_dim:
            raise IndexError(f"dim must lie in [0, {self.latent_dim}), got {dim}")
        center = (
            torch.zeros(self.latent_dim, dtype=torch.float32, device="cpu") if x is None else self.encode(x)
        )
        if center.dim() == 2 and len(center) != 1:
            raise ValueError(f"traverse starts from one sample, got {len(center)}")
        line = (
            torch.linspace(-3, 3, 9, dtype=torch.float32, device="cpu")
            if values is None
            else _as_floats(values)
        )
        if line.dim() != 1:
            raise ValueError(f"values must be a row of numbers, got shape {tuple(line.shape)}")
        codes = center.reshape(1, -1).repeat(len(line), 1)
        codes[:, dim] = line
        return self._decode(codes)

    @_undisturbed
    def evaluate(self, data: object, *, num_samples: int = 0, seed: int = 0) -> dict[str, float]:
        """Evaluate the bound on data, at ``beta = 1`` and with one sample of the codes each.

        With ``num_samples`` codes each, log p(x) itself is estimated too.

        Parameters
        ----------
        data : array, tensor, path, Dataset, ...
            Where it comes with a test set, as a folder of MNIST's files does, that is evaluated.
        num_samples : int
            Codes drawn per sample for the log-likelihood, each of which is decoded; 0 leaves it out.
        seed : int
            Of the codes, and of drawn pixels where the model was trained with ``binarize="dynamic"``.

        Returns
        -------
        dict
            ``elbo``, ``recon`` and ``kl`` in nats per sample, ``active_units`` (codes in use), ``samples``;
            with ``num_samples``, ``log_likelihood``, the importance-weighted estimate of log p(x) in nats per
            sample (:func:`fastvae.evaluation.log_likelihood`).

        Raises
        ------
        TypeError, ValueError
            If it is no data, has another shape, or values the likelihood cannot have; for a negative
            ``num_samples``, or one for a plain autoencoder.
        """
        if num_samples != 0:
            num_samples = self._samples_to_draw(num_samples)
        opened, _ = self._open_to_evaluate(data)
        settings = self.config.training
        return evaluate_on(self.model, opened, settings, self.device, seed=seed, num_samples=num_samples)

    @_undisturbed
    def log_likelihood(self, data: object, *, num_samples: int = 100, seed: int = 0) -> Tensor:
        """Estimate log p(x) of each sample: how usual it is, as for finding outliers.

        See :func:`fastvae.evaluation.log_likelihood`; the mean is what :meth:`evaluate` gives for as many
        codes.

        Parameters
        ----------
        data : array, tensor, path, Dataset, ...
            Samples ``(N, *input_shape)``, or one ``input_shape``. Where it comes with a test set, that one.
        num_samples : int
            Codes drawn per sample, each of which is decoded. The estimate grows with them towards log p(x).
        seed : int
            Of the codes, and of drawn pixels where the model was trained with ``binarize="dynamic"``.

        Returns
        -------
        Tensor
            In nats, float64 on the CPU, ``(N,)``, or a scalar for one sample.

        Raises
        ------
        TypeError, ValueError
            As :meth:`evaluate`.

        References
        ----------
        Burda, Grosse and Salakhutdinov, "Importance Weighted Autoencoders", ICLR 2016, equation 8.
        """
        num_samples = self._samples_to_draw(num_samples)
        opened, single = self._open_to_evaluate(data)
        settings = self.config.training
        estimates = log_likelihood_on(
            self.model, opened, settings, self.device, seed=seed, num_samples=num_samples
        )
        return estimates[0] if single else estimates

    def _samples_to_draw(self, num_samples: int) -> int:
        num_samples = as_count("num_samples", num_samples)
        if not self.model.variational:
            raise ValueError(
                "a plain autoencoder gives data no probability: it has no log-likelihood to estimate; "
                "leave num_samples out"
            )
        return num_samples

    def _open_to_evaluate(self, data: object) -> tuple[Data, bool]:
        """Open data, or the test set that comes with it, whose values the likelihood can have."""
        opened, single = self._open(data)
        if opened.test is not None:
            opened = opened.test
        self.model.likelihood.check_range(*opened.value_range())
        return opened, single

    def save(self, path: str | Path) -> Path:
        """Write the model, its config and its history to a folder, which :func:`fastvae.load` reads.

        What ``resume=True`` goes on from is written by :func:`fastvae.train` itself, to its ``output_dir``.

        Parameters
        ----------
        path : str or Path
            A new or empty folder, or one with an earlier run, whose files are replaced.

        Returns
        -------
        Path
            The folder: ``config.json``, ``metrics.jsonl`` and ``model.safetensors``, each written atomically.

        Raises
        ------
        ValueError
            If ``path`` is a file, or a folder with other things in it.
        """
        return persistence.save(self, path)

    def _open(self, x: object) -> tuple[Data, bool]:
        """Open data of the model's shape; and say whether it was a single sample."""
        # An axis of size one is a matter of taste: (28, 28) and (1, 28, 28) are the same picture.
        wanted = without_ones(self.input_shape)
        single = isinstance(x, Tensor | np.ndarray) and (
            tuple(x.shape) == self.input_shape
            or (without_ones(x.shape) == wanted and without_ones(x.shape[1:]) != wanted)
        )
        samples = cast("Any", x)[None] if single else x
        data = open_data(samples, pixels=self.config.data.pixels or None)
        check_columns(self.config.data.feature_names, data.feature_names)
        if without_ones(data.shape) != wanted:
            raise ValueError(
                f"the model takes samples of shape {self.input_shape}, the data ({data.name}) has samples of "
                f"shape {data.shape}{_turned(self.input_shape, getattr(x, 'shape', ()))}"
            )
        return data, single

    @property
    def _as_trained(self) -> Binarize:
        """Gray pixels as the encoder knows them; drawn ones stay at their mean."""
        return Binarize("threshold") if self.config.training.binarize == "threshold" else AS_THEY_ARE

    @_undisturbed
    def _decode(self, z: Tensor) -> Tensor:
        parts = [torch.empty((0, *self.input_shape), dtype=torch.float32, device="cpu")]
        with torch.no_grad():
            parts += [
                self.model.decode(_filled(codes.to(self.device)))[: len(codes)].cpu()
                for codes in (torch.split(z, CHUNK) if len(z) else ())
            ]
        return torch.cat(parts)


def _turned(wanted: tuple[int, ...], shape: Sequence[int]) -> str:
    """Say what to do with pictures that have their channels last."""
    if len(wanted) == 3 and tuple(shape[-3:]) == (*wanted[1:], wanted[0]):
        axes = "2, 0, 1" if len(shape) == 3 else "0, 3, 1, 2"
        return f": put the channels first, x.transpose({axes}), of a tensor x.permute({axes})"
    return ""


def _as_floats(values: Tensor | np.ndarray | Sequence[float]) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach().to("cpu", torch.float32)
    return torch.from_numpy(np.array(values, np.float32, order="C"))


def _filled(rows: Tensor) -> Tensor:
    """Repeat the last row until there are CHUNK."""
    missing = CHUNK - len(rows)
    return rows if missing <= 0 else torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])])
