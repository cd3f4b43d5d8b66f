"""What it takes to go on with a training that was cut: its state after a whole epoch, in a file."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from torch import Tensor, nn

from fastvae.data import Data
from fastvae.data.base import scan_batch_size
from fastvae.errors import FileFormatError
from fastvae.training.atomic import replacing
from fastvae.training.averages import Averages
from fastvae.training.config import RunConfig
from fastvae.training.history import RECORD_KEYS, Record
from fastvae.training.weights import SAME, give_state, state_of, write_tensors

__all__ = ["STATE", "TrainingState", "discard_state_of_another", "fingerprint", "read_state"]

STATE = "resume.safetensors"
MARKER, FORMAT_VERSION = "fastvae training state", "1"

MOST_ROWS = 64
"""Of a data set, that its fingerprint is made of."""

FREE = {("training", "epochs"), ("training", "compile"), ("data", "name")}
"""What may be another one than before; of the epochs see :meth:`TrainingState.check_continues`."""

ARGUMENTS = {"preset": "model", "custom": "modules of your own", "input_shape": "the shape of a sample"}
"""What fields of a config are called where the word of :func:`fastvae.train` is another one."""


class TrainingState(NamedTuple):
    """A training after a whole epoch: all that going on takes beside the data and the modules.

    Attributes
    ----------
    config : RunConfig
    fingerprint : str or None
        Of the data.
    history : list of Record
        One per epoch.
    steps : int
        Taken so far.
    model : dict of Tensor
        What the model keeps, on the CPU.
    same : str
        Of what else it has, as :mod:`fastvae.training.weights` writes it.
    averages : dict of Averages
        What Adam keeps.
    """

    config: RunConfig
    fingerprint: str | None
    history: list[Record]
    steps: int
    model: dict[str, Tensor]
    same: str
    averages: dict[str, Averages]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        config: RunConfig,
        history: list[Record],
        *,
        steps: int,
        averages: dict[str, Averages],
        fingerprint: str | None,
    ) -> TrainingState:
        """Copy the state of a training as it stands."""
        tensors, same = state_of(model)
        return cls(
            config=config,
            fingerprint=fingerprint,
            history=list(history),
            steps=steps,
            model={name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()},
            same=json.dumps(same),
            averages=averages,
        )

    def give_to(self, model: nn.Module) -> None:
        """Give a model the state of the one that was trained.

        Raises
        ------
        ValueError
            If it is another model.
        """
        try:
            give_state(model, self.model, {SAME: self.same})
        except (KeyError, RuntimeError) as error:
            raise ValueError(
                f"the run to resume is of another model, so its weights do not fit: {error}"
            ) from error

    def write(self, folder: Path) -> None:
        """Write the file of a folder.

        Raises
        ------
        OSError
            If it cannot be written; an earlier one is left as it was.
        """
        tensors = {f"model/{name}": tensor for name, tensor in self.model.items()}
        for name, kept in self.averages.items():
            tensors |= {f"{kind}/{name}": tensor for kind, tensor in kept._asdict().items()}
        metadata = {
            "format": MARKER,
            "format_version": FORMAT_VERSION,
            "config": json.dumps(dataclasses.asdict(self.config)),
            "fingerprint": json.dumps(self.fingerprint),
            "history": json.dumps(self.history),
            "steps": json.dumps(self.steps),
            SAME: self.same,
        }
        with replacing(folder / STATE) as temporary:
            write_tensors(tensors, temporary, metadata)

    def check_continues(self, config: RunConfig, fingerprint: str | None, folder: Path) -> None:
        """Raise unless a training with this config, of data with this fingerprint, is this one, gone on with.

        Raises
        ------
        ValueError
            It says what differs.
        """
        way_out = "Leave resume out to train anew, which replaces that run, or choose another output_dir"
        differences = _differences(self.config, config)
        if differences:
            raise ValueError(
                f"the run in {folder} is another one than this, so it cannot be resumed: "
                f"{'; '.join(differences)}. {way_out}"
            )
        if fingerprint != self.fingerprint:
            raise ValueError(
                f"the run in {folder} was trained on other values than this data has, so it cannot be "
                f"resumed. {way_out}"
            )
        before, now, reached = self.config.training.epochs, config.training.epochs, len(self.history)
        if now < reached:
            raise ValueError(
                f"the run in {folder} has {reached} epochs already, and epochs={now} are fewer: it goes on "
                f"to epochs={reached + 1} or more. {way_out}"
            )
        if now != before and config.training.warmup:
            raise ValueError(
                f"the run in {folder} was made for epochs={before}, and warmup={config.training.warmup:g} is "
                f"a fraction of all steps: with epochs={now} it would have been another run from its "
                f"beginning. Resume it with epochs={before}; to train its networks for longer, pass those of "
                "fastvae.load as encoder=, decoder= and likelihood= to a new run"
            )


def read_state(folder: Path) -> TrainingState:
    """Read the file of a folder.

    Raises
    ------
    FileFormatError
        If there is none, or it is damaged or not one of fastvae's.
    """
    path = folder / STATE
    if not path.exists():
        raise FileFormatError(
            f"{folder} holds a run without {STATE}, so it cannot be resumed: an earlier fastvae or save() "
            "wrote it, or the file was removed. Leave resume out to train anew, which replaces that run"
        )
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise FileFormatError(f"{path} is damaged, or no safetensors file: {error}") from error
    if metadata.get("format") != MARKER:
        raise FileFormatError(f"{path} was not written by fastvae")
    if metadata.get("format_version") != FORMAT_VERSION:
        raise FileFormatError(
            f"{path} has format version {metadata.get('format_version')}, and this fastvae reads version "
            f"{FORMAT_VERSION}; a newer fastvae may have written it"
        )
    try:
        return _parsed(metadata, tensors)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _parsed(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> TrainingState:
    kinds: dict[str, dict[str, Tensor]] = {"model": {}, **{kind: {} for kind in Averages._fields}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        kinds[kind][rest] = tensor
    averages = {
        name: Averages(*(kinds[kind].pop(name) for kind in Averages._fields)) for name in list(kinds["mean"])
    }
    if any(kinds[kind] for kind in Averages._fields):
        raise ValueError("averages without a mean")
    if any(kept.powers.shape != (2,) for kept in averages.values()):
        raise ValueError("powers that are not two numbers")
    history = json.loads(metadata["history"])
    if any(record.keys() != RECORD_KEYS for record in history):
        raise ValueError("a record that is none of an epoch")
    return TrainingState(
        config=RunConfig.of_json(json.loads(metadata["config"])),
        fingerprint=json.loads(metadata["fingerprint"]),
        history=history,
        steps=json.loads(metadata["steps"]),
        model=kinds["model"],
        same=metadata[SAME],
        averages=averages,
    )


def discard_state_of_another(folder: Path, config: RunConfig) -> None:
    """Remove the file of a folder, unless a run with this config may be resumed from it."""
    path = folder / STATE
    if not path.exists():
        return
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            before = RunConfig.of_json(json.loads((file.metadata() or {})["config"]))
        if not _differences(before, config):
            return
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
        pass  # it is of no use to anyone
    path.unlink(missing_ok=True)


def fingerprint(data: Data) -> str | None:
    """Give a digest of rows spread over data in memory; None for data that is read as batches are needed."""
    if data.resident_on(torch.device("cpu")) is None:
        return None
    count = min(len(data), MOST_ROWS, scan_batch_size(data.shape))
    rows = torch.arange(count, device="cpu") * len(data) // count
    return hashlib.sha256(data.take(rows).numpy().tobytes()).hexdigest()[:16]


def _differences(before: RunConfig, now: RunConfig) -> list[str]:
    """Say what a run was trained with and what is given now, where these have to be the same."""
    sections = (
        (section, dataclasses.asdict(getattr(before, section)), dataclasses.asdict(getattr(now, section)))
        for section in ("model", "training", "data")
    )
    return [
        f"{ARGUMENTS.get(name, name)} was {was[name]!r} and is {value!r}"
        for section, was, given in sections
        for name, value in given.items()
        if (section, name) not in FREE and was[name] != value
    ]
