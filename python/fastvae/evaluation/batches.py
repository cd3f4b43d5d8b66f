"""What evaluations take: an iterable of tensors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from torch import Tensor


def tensors(function: str, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """The batches, each of which is looked at as it comes; those without samples are passed by.

    Raises
    ------
    TypeError
        For a tensor, whose items would be taken for batches, and for a batch that is none.
    """
    if isinstance(batches, Tensor):
        raise TypeError(f"{function}: batches must be an iterable of batches, got a tensor; one batch is [x]")
    return _each(function, batches)


def _each(function: str, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    for x in batches:
        if not isinstance(x, Tensor):
            raise TypeError(
                f"{function}: a batch must be a tensor, got {type(x).__name__}; of (samples, labels) take "
                "the samples: (x for x, *_ in batches)"
            )
        if x.dim() == 0 or len(x):
            yield x
