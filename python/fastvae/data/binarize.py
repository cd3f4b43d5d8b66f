"""Gray pixels to binary ones, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast

from torch import Tensor

from fastvae import noise
from fastvae.ops.gather_batch.reference import THRESHOLD

__all__ = ["AS_THEY_ARE", "Binarize"]


@dataclass(frozen=True)
class Binarize:
    """What a model sees of gray pixels.

    Attributes
    ----------
    kind : {"none", "dynamic", "threshold"}
        As they are; 1 with the probability of their value; 1 above 0.5.
    seed : int
        Of the drawing; one per epoch.

    References
    ----------
    Salakhutdinov and Murray, "On the Quantitative Analysis of Deep Belief Networks", ICML 2008, section 5,
    for drawn pixels.
    """

    kind: str = "none"
    seed: int = 0

    def __call__(self, x: Tensor, rows: Tensor) -> Tensor:
        """Give what the model sees of a batch.

        Parameters
        ----------
        x : Tensor
            Values in [0, 1], ``(B, *shape)``.
        rows : Tensor
            int64, ``(B,)``: the index of each sample in its data set, so that a sample gets the same pixels
            in whatever batch it comes.
        """
        if self.kind == "dynamic":
            uniform = noise.uniform(x.shape, self.seed, rows=rows, event_dims=x.dim() - 1, device=x.device)
            return (uniform < x).to(x.dtype)
        if self.kind == "threshold":
            return (x > THRESHOLD).to(x.dtype)
        return x

    @property
    def gathered(self) -> Literal["dynamic", "threshold"] | None:
        """The kind as :func:`fastvae.functional.gather_batch` calls it, which gives the same bits."""
        return None if self.kind == "none" else cast('Literal["dynamic", "threshold"]', self.kind)


AS_THEY_ARE = Binarize()
