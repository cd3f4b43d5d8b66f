"""Gray pixels to binary ones, batch by batch."""

from __future__ import annotations

from torch import Tensor

from fastvae import noise

__all__ = ["binarize"]

THRESHOLD = 0.5


def binarize(x: Tensor, rows: Tensor, kind: str, seed: int) -> Tensor:
    """Give what the model sees of a batch.

    Parameters
    ----------
    x : Tensor
        Values in [0, 1], ``(B, *shape)``.
    rows : Tensor
        int64, ``(B,)``: the index of each sample in its data set, so that a sample gets the same pixels in
        whatever batch it comes.
    kind : {"none", "dynamic", "threshold"}
        As they are; 1 with the probability of their value; 1 above 0.5.
    seed : int
        Of the drawing; one per epoch.

    References
    ----------
    Salakhutdinov and Murray, "On the Quantitative Analysis of Deep Belief Networks", ICML 2008, section 5,
    for drawn pixels.
    """
    if kind == "dynamic":
        uniform = noise.uniform(x.shape, seed, rows=rows, event_dims=x.dim() - 1, device=x.device)
        return (uniform < x).to(x.dtype)
    if kind == "threshold":
        return (x > THRESHOLD).to(x.dtype)
    return x
