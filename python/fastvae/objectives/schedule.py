"""How the weight of the KL grows during training."""

from __future__ import annotations

__all__ = ["kl_weight"]


def kl_weight(step: int, total_steps: int, *, beta: float, warmup: float) -> float:
    """The weight of the KL at a step: a straight line from near 0 to ``beta``, then ``beta``.

    The length of the warm-up is a fraction of the whole training, so that it ends whatever the number of
    epochs is.

    Parameters
    ----------
    step : int
        Counted from 0.
    total_steps : int
        Steps of the whole training.
    beta : float
        The final weight.
    warmup : float
        Fraction of all steps in [0, 1] after which the weight is ``beta``; 0 is no warm-up.

    Raises
    ------
    ValueError
        For a warm-up that is no such fraction.

    References
    ----------
    Bowman et al., "Generating Sentences from a Continuous Space", CoNLL 2016, section 3.1;
    Sonderby et al., "Ladder Variational Autoencoders", NeurIPS 2016, section 3.2.
    """
    if not 0 <= warmup <= 1:
        raise ValueError(
            f"kl_weight: warmup must lie between 0 and 1, a fraction of all steps, got {warmup}; for n steps "
            "write n / total_steps"
        )
    ramp = warmup * total_steps
    return beta * min(1.0, (step + 1) / ramp) if ramp > 0 else beta
