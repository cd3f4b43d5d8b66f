"""What a person sees while a model trains: one bar, updated in place, and a few lines around it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

from fastvae.training.history import Means

__all__ = ["Progress"]

REFRESH_SECONDS = 0.5
"""Reading the means waits for the device, so it is done no more often than this."""
BAR = "{desc} {percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}"


class Progress:
    """A progress bar on standard error.

    Parameters
    ----------
    show : bool
        Without, nothing is ever written.
    """

    def __init__(self, *, show: bool) -> None:
        self._show = show
        self._bar: tqdm[None] | None = None
        self._read_at = 0.0

    def say(self, text: str) -> None:
        """Write a line, above the bar if there is one."""
        if self._show:
            tqdm.write(text, file=sys.stderr)

    def start(self, images: int, *, done: int = 0) -> None:
        """Show the bar for a training over this many samples, some of which are done."""
        self._bar = tqdm(
            total=images,
            initial=done,
            unit=" images",
            unit_scale=True,
            disable=not self._show,
            bar_format=BAR,
            dynamic_ncols=True,
            # A log file gets a line now and then, a terminal a living bar.
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
        )

    def advance(self, images: int, epoch: str, means: Callable[[], Means]) -> None:
        """Count a batch; ``means`` is called when the numbers shown are to be renewed."""
        if self._bar is None or not self._show:
            return
        now = time.monotonic()
        ends = self._bar.n + images >= (self._bar.total or 0)
        if ends or now - self._read_at > REFRESH_SECONDS:
            self._read_at = now
            current = means()
            self._bar.set_description_str(f"epoch {epoch}", refresh=False)
            self._bar.set_postfix_str(
                f"ELBO {current.recon - current.kl:.2f}, recon {current.recon:.2f}, KL {current.kl:.2f}",
                refresh=False,
            )
        self._bar.update(images)

    def close(self) -> None:
        """Leave the bar as it stands and go to the next line."""
        if self._bar is not None:
            self._bar.close()
