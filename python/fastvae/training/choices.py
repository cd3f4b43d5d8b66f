"""What "auto" means: decisions that the data makes."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

from fastvae.data import Data, open_data
from fastvae.data.frames import check_columns
from fastvae.models import LIKELIHOODS, Bernoulli, Gaussian, Likelihood
from fastvae.training.config import BINARIZE, Settings

__all__ = ["LikelihoodChoice", "check_cycles", "choose_epochs", "choose_likelihood", "choose_validation"]

DEFAULT_STEPS = 2000
FEWEST_EPOCHS, MOST_EPOCHS = 20, 400
DEFAULT_FRACTION = 0.1
FEWEST_TO_SPLIT = 10
"""Fewer samples than this are all trained on."""
LARGEST_UNSCALED = 100.0
"""A network with ordinary weights does not reach numbers beyond this in an ordinary run."""
FLAT_IMAGE = 64
"""A vector of at least this many values between 0 and 1 is taken for an image, not for a row of a table."""


class LikelihoodChoice(NamedTuple):
    """A likelihood and how it came to be."""

    name: str
    variance: str | float | None
    reason: str
    custom: Likelihood | None = None
    built_in: Gaussian | None = None
    """One that was given as an object, to be trained in place: its variance may be one that was learned."""


def choose_epochs(steps_per_epoch: int) -> int:
    """Give the default number of epochs: small data is passed over more often.

    As many as make 2000 steps, but at least 20 and at most 400.
    """
    return min(max(math.ceil(DEFAULT_STEPS / steps_per_epoch), FEWEST_EPOCHS), MOST_EPOCHS)


def check_cycles(settings: Settings, total_steps: int) -> None:
    """Refuse more cycles than there are steps to warm up in.

    Raises
    ------
    ValueError
        Nearly every step would have the whole weight.
    """
    growing = settings.warmup * total_steps
    if settings.cycles > 1 and growing < 2 * settings.cycles:
        raise ValueError(
            f"cycles={settings.cycles} is too many: by warmup={settings.warmup:g} the weight grows in "
            f"{growing:.3g} of {total_steps} steps, and each cycle needs at least two of them; take fewer "
            "cycles, a larger warmup, or more epochs"
        )


def choose_likelihood(
    data: Data,
    held_out: Data | None,
    likelihood: str | Likelihood,
    variance: str | float,
    binarize: str,
) -> LikelihoodChoice:
    """Resolve the likelihood for the data, and check both sets and the other arguments against it.

    Raises
    ------
    TypeError, ValueError
        For an unknown likelihood, or data or arguments that do not fit it.
    """
    if isinstance(likelihood, Likelihood):
        choice = _given(likelihood, variance)
    elif likelihood == "auto":
        choice = _automatic(data, variance, binarize)
    elif isinstance(likelihood, str) and likelihood in LIKELIHOODS:
        gaussian = likelihood == Gaussian.name
        choice = LikelihoodChoice(
            likelihood, Gaussian(variance).variance if gaussian else None, "as asked for"
        )
    else:
        kinds = ", ".join(map(repr, ("auto", *LIKELIHOODS)))
        error = ValueError if isinstance(likelihood, str) else TypeError
        raise error(f"likelihood must be one of {kinds}, or a Likelihood, got {likelihood!r}")
    if choice.name == Bernoulli.name and variance != "learned":
        raise ValueError(
            f'variance={variance!r} belongs to likelihood="gaussian"; the Bernoulli likelihood has none'
        )
    if choice.name == Gaussian.name and binarize in BINARIZE[1:]:
        raise ValueError(f'binarize={binarize!r} makes zeros and ones: it needs likelihood="bernoulli"')
    checked = LIKELIHOODS[choice.name]() if choice.custom is None else choice.custom
    checked.check_range(*data.value_range())
    if isinstance(checked, Gaussian):
        _check_scale(*data.value_range())
    if held_out is not None:
        try:
            checked.check_range(*held_out.value_range())
        except ValueError as error:
            raise ValueError(f"validation: {error}") from error
    return choice


def _check_scale(low: float, high: float) -> None:
    """Refuse to train on numbers that are too large to be learned from unscaled."""
    largest = max(abs(low), abs(high))
    if largest > LARGEST_UNSCALED:
        raise ValueError(
            f"the Gaussian likelihood needs values of ordinary size, but the data lies between {low:g} "
            f"and {high:g}; standardise it first, x = (x - x.mean(0)) / x.std(0), or, if all values are of "
            f"one kind, divide it by {largest:g}"
        )


def choose_validation(data: Data, validation: object, *, seed: int, workers: int) -> tuple[Data, Data | None]:
    """Give the data to train on, and that to evaluate on after each epoch.

    Raises
    ------
    TypeError, ValueError
        If ``validation`` is no fraction and no data, or its samples have another shape.
    """
    if validation is None:
        return data, None
    if isinstance(validation, str) and validation == "auto":
        if data.test is not None:
            return data, data.test
        if not data.can_split or len(data) < FEWEST_TO_SPLIT:
            return data, None
        return data.split(DEFAULT_FRACTION, seed)
    if isinstance(validation, bool) or not isinstance(validation, numbers.Real):
        return data, _open_validation(data, validation, workers)
    fraction = float(validation)
    if not 0 <= fraction < 1:
        raise ValueError(
            f"validation must be a fraction between 0 and 1, data, or None, got {fraction:g}; "
            f"for n samples write n / {len(data)}"
        )
    return data.split(fraction, seed) if fraction else (data, None)


def _open_validation(data: Data, validation: object, workers: int) -> Data:
    held_out = open_data(validation, workers=workers, name="validation", pixels=data.pixels or None)
    if held_out.test is not None:
        held_out = held_out.test
    check_columns(data.feature_names, held_out.feature_names, name="validation")
    if held_out.shape != data.shape:
        raise ValueError(
            f"validation has samples of shape {held_out.shape}, the training data of shape {data.shape}"
        )
    return held_out


def _automatic(data: Data, variance: str | float, binarize: str) -> LikelihoodChoice:
    if variance != "learned":
        return LikelihoodChoice(Gaussian.name, Gaussian(variance).variance, "as a variance is given")
    if binarize in BINARIZE[1:]:
        return LikelihoodChoice(Bernoulli.name, None, "as the data is made binary")
    low, high = data.value_range()
    if low < 0 or high > 1:
        return LikelihoodChoice(Gaussian.name, "learned", f"as the data lies between {low:g} and {high:g}")
    if data.is_binary():
        return LikelihoodChoice(Bernoulli.name, None, "as all values are 0 or 1")
    if data.pixels or len(data.shape) > 1 or data.shape[0] >= FLAT_IMAGE:
        return LikelihoodChoice(
            Bernoulli.name, None, "as all values lie between 0 and 1 and look like pixels"
        )
    return LikelihoodChoice(
        Gaussian.name, "learned", f"as {data.shape[0]} values are a table's row, not an image"
    )


def _given(likelihood: Likelihood, variance: str | float) -> LikelihoodChoice:
    if variance != "learned":
        raise ValueError("give the variance to the likelihood, or variance= with its name, not both")
    if type(likelihood) is Bernoulli:
        return LikelihoodChoice(Bernoulli.name, None, "as asked for")
    if type(likelihood) is Gaussian:
        return LikelihoodChoice(Gaussian.name, likelihood.variance, "as asked for", built_in=likelihood)
    return LikelihoodChoice("custom", None, "as asked for", likelihood)
