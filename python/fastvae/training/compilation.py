"""What is made of a training step: nothing, CUDA graphs, or compiled code."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch

from fastvae.models import ModelSpec
from fastvae.training.config import Compile
from fastvae.training.ranks import ALONE, Ranks

__all__ = ["NOT_COMPILED", "Compilation", "check_compile", "choose_compilation"]

FEWEST_STEPS = 50
"""Captures take as long as some steps do: with fewer steps than this they are left out."""


class Compilation(NamedTuple):
    """What is made of a step, and how it came to be."""

    kind: Literal["graph", "inductor"] | None
    reason: str
    asked_for: bool = True
    """Whether a step that cannot be captured is an error."""
    own_networks: bool = False
    """Whether nothing but fastvae's own networks makes gradients: it is known what is done with them."""

    def __str__(self) -> str:
        how = {"graph": "steps in CUDA graphs", "inductor": "forward and loss compiled by inductor"}
        text = how[self.kind] if self.kind else "steps as they are"
        return f"{text} ({self.reason})" if self.reason else text


NOT_COMPILED = Compilation(None, "")


def check_compile(compile: Compile, device: torch.device) -> None:  # noqa: A002  as the argument is called
    """Raise a ``ValueError`` unless steps can be compiled that way on the device."""
    if compile == "graph" and device.type != "cuda":
        raise ValueError(
            f'compile="graph" captures CUDA graphs, and the device is {device}: use compile="auto", which '
            'captures where there is CUDA, or "inductor", which compiles for any device'
        )


def choose_compilation(
    compile: Compile,  # noqa: A002
    device: torch.device,
    spec: ModelSpec,
    steps: int,
    ranks: Ranks = ALONE,
) -> Compilation:
    """Resolve ``compile`` for a model and a number of steps.

    ``"auto"`` captures where nothing can go wrong: a graph would freeze what modules of the user's own do in
    Python.

    Raises
    ------
    ValueError
        For a graph in several processes.
    """
    if ranks.size > 1:
        if compile == "graph":
            raise ValueError(
                'compile="graph" captures the steps of one process, and here '
                f'{ranks.size} share each batch: use compile="auto", "inductor" or False'
            )
        reason = "" if compile == "auto" else "as asked for"
        return Compilation(
            "inductor" if compile == "inductor" else None, reason, own_networks=not spec.custom
        )
    if compile == "auto":
        if device.type != "cuda":
            return Compilation(None, "", own_networks=not spec.custom)
        if spec.custom:
            return Compilation(
                None, f'as the {" and ".join(spec.custom)} may do anything; see compile="graph"'
            )
        if steps < FEWEST_STEPS:
            return Compilation(None, f"as a capture does not pay for {steps} steps")
        return Compilation("graph", "", asked_for=False, own_networks=True)
    return Compilation(compile or None, "as asked for", own_networks=not spec.custom)
