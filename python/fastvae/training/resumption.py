"""What it takes to go on with a training that was cut: its state after a whole epoch, in a file."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import safetensors
import torch
from torch import Tensor, nn

from fastvae.data import Data
from fastvae.errors import FileFormatError
from fastvae.training.atomic import replacing
from fastvae.training.averages import Averages
from fastvae.training.config import RunConfig
from fastvae.training.history import Record, finite, is_record
from fastvae.training.ranks import Ranks
from fastvae.training.weights import SAME, give_state, state_of, write_tensors

__all__ = [
    "STATE",
    "TrainingState",
    "check_given_alike",
    "check_samples_alike",
    "discard_state_of_another",
    "fingerprint",
    "is_state",
    "read_state",
    "remove_state",
]

STATE = "resume.safetensors"
MARKER, FORMAT_VERSION = "fastvae training state", "1"
GENERATORS = ("generator/training", "generator/held_out")

MOST_STEPS = 2**53
"""More than any training takes."""

MOST_BYTES = 2**26
"""Of a data set, that its fingerprint is made of."""

FREE = {("training", "epochs"), ("training", "compile"), ("data", "name")}
"""What may be another one than before; of the epochs see :meth:`TrainingState.check_continues`."""

ARGUMENTS = {
    "preset": "model",
    "custom": "modules of your own",
    "input_shape": "shape of a sample",
    "samples": "samples to train on",
    "validation_samples": "samples held out",
    "feature_names": "columns",
    "pixels": "8-bit pixels",
}
"""What fields of a config are called where the word of :func:`fastvae.train` is another one."""

_DAMAGED = (AttributeError, KeyError, RecursionError, TypeError, ValueError)
"""What may come of metadata that is not as it was written."""

WHOLE = "Each needs the whole data, not a part: it takes its share of every batch itself"

SAMPLED_ROWS = 8
"""Of data that is read as batches are needed: those by which processes tell whether theirs is the same."""

WAY_OUT = "Leave resume out to train anew, which replaces that run, or choose another output_dir"


class TrainingState(NamedTuple):
    """A training after a whole epoch: all that going on takes beside the data and the modules.

    Attributes
    ----------
    config : RunConfig
    fingerprints : sequence of str or None
        Of the data to train on, and of that held out.
    history : list of Record
        One per epoch.
    steps : int
        Taken so far.
    model : dict of Tensor
        What the model keeps, on the CPU.
    same : dict of str
        What else it has, which is the tensor of another name; see :mod:`fastvae.training.weights`.
    averages : dict of Averages
        What Adam keeps.
    generators : sequence of Tensor or None
        The states of the data's own generators.
    """

    config: RunConfig
    fingerprints: Sequence[str | None]
    history: list[Record]
    steps: int
    model: dict[str, Tensor]
    same: dict[str, str]
    averages: dict[str, Averages]
    generators: Sequence[Tensor | None]

    @classmethod
    def of(
        cls,
        model: nn.Module,
        config: RunConfig,
        history: Sequence[Record],
        *,
        steps: int,
        averages: dict[str, Averages],
        fingerprints: Sequence[str | None],
        generators: Sequence[torch.Generator | None],
    ) -> TrainingState:
        """Copy the state of a training as it stands."""
        tensors, same = state_of(model)
        return cls(
            config=config,
            fingerprints=fingerprints,
            history=list(history),
            steps=steps,
            model={name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()},
            same=same,
            averages=averages,
            generators=[None if each is None else each.get_state() for each in generators],
        )

    def give_to(self, model: nn.Module, generators: Sequence[torch.Generator | None]) -> None:
        """Give a model, and the generators of the data, the states that they had."""
        give_state(model, self.model, {SAME: json.dumps(self.same)})
        for generator, state in zip(generators, self.generators, strict=True):
            if generator is not None and state is not None:
                generator.set_state(state)

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
        for name, state in zip(GENERATORS, self.generators, strict=True):
            if state is not None:
                tensors[name] = state
        metadata = {
            "format": MARKER,
            "format_version": FORMAT_VERSION,
            "config": json.dumps(dataclasses.asdict(self.config)),
            "fingerprints": json.dumps(self.fingerprints),
            "history": json.dumps(self.history),
            "steps": json.dumps(self.steps),
            SAME: json.dumps(self.same),
        }
        with replacing(folder / STATE) as temporary:
            write_tensors(tensors, temporary, metadata)

    def check_continues(self, config: RunConfig, fingerprints: Sequence[str | None], folder: Path) -> None:
        """Raise unless a training with this config, of such data, is this one, gone on with.

        Raises
        ------
        ValueError
            It says what differs.
        """
        differences = _differences(self.config, config)
        if differences:
            raise ValueError(
                f"the run in {folder} is another one than this, so it cannot be resumed: "
                f"{'; '.join(differences)}. {WAY_OUT}"
            )
        kinds = ("trained on other values", "evaluated on other held-out values")
        for kind, was, given in zip(kinds, self.fingerprints, fingerprints, strict=True):
            # Of data that is read as batches are needed nothing is known.
            if was is not None and given is not None and was != given:
                raise ValueError(
                    f"the run in {folder} was {kind} than this data has, so it cannot be resumed. {WAY_OUT}"
                )
        before, now, reached = self.config.training.epochs, config.training.epochs, len(self.history)
        if now < reached:
            raise ValueError(
                f"the run in {folder} has {reached} epochs already, and epochs={now} are fewer: it goes on "
                f"to epochs={reached + 1} or more. {WAY_OUT}"
            )
        if now != before and config.training.warmup:
            raise ValueError(
                f"the run in {folder} was made for epochs={before}, and warmup={config.training.warmup:g} is "
                f"a fraction of all steps: with epochs={now} it would have been another run from its "
                f"beginning. Resume it with epochs={before}; to train its networks for longer, pass those of "
                "fastvae.load as encoder=, decoder= and likelihood= to a new run"
            )

    def check_fits(
        self, model: nn.Module, generators: Sequence[torch.Generator | None], folder: Path
    ) -> None:
        """Raise unless a model is like the one that was trained, and the same of it is trained.

        And unless the data has generators of its own where it had.

        Raises
        ------
        ValueError
            It names what differs.
        """
        for state, generator in zip(self.generators, generators, strict=True):
            now = None if generator is None else generator.get_state()
            if (None if state is None else state.shape) != (None if now is None else now.shape):
                raise ValueError(
                    f"the DataLoader of the run in {folder} had {'no' if state is None else 'a'} generator "
                    f"like this, so it cannot be resumed: its order would be another one. {WAY_OUT}"
                )
        tensors, same = state_of(model)
        kept, own = _all_kinds(self.model, self.same), _all_kinds(tensors, same)
        what = "keeps other tensors"
        # What is one tensor now would get the values of two.
        parted = [name for name in same if self.same.get(name, name) == name and name in kept]
        if kept == own and parted:
            raise ValueError(
                f"the model of the run in {folder} had tensors apart that are one in this one, so it cannot "
                f"be resumed: {', '.join(f'{name} and {same[name]}' for name in parted)}. {WAY_OUT}"
            )
        if kept == own:
            trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
            kept, own = _kinds({name: each.mean for name, each in self.averages.items()}), _kinds(trained)
            what = "had other parameters trained"
        if kept != own:
            differ = sorted(kept.keys() ^ own.keys()) or sorted(
                f"{name} was {kept[name]} and is {own[name]}" for name in kept if kept[name] != own[name]
            )
            raise ValueError(
                f"the model of the run in {folder} {what} than this one, so it cannot be resumed: "
                f"{'; '.join(differ[:5])}{'; ...' if len(differ) > 5 else ''}. {WAY_OUT}"
            )


def _all_kinds(tensors: Mapping[str, Tensor], same: Mapping[str, str]) -> dict[str, str]:
    """Those of all tensors of a model but the ones that may have any shape."""
    kinds = _kinds(tensors)
    kinds |= {name: kinds[kept] for name, kept in same.items()}
    return {name: kind for name, kind in kinds.items() if not name.endswith("_extra_state")}


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """What has to be alike of tensors of one name."""
    return {name: f"{tensor.dtype} of {tuple(tensor.shape)}" for name, tensor in tensors.items()}


def is_state(path: Path) -> bool:
    """Whether a file holds the state of a training."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") == MARKER
    except (OSError, safetensors.SafetensorError):
        return False


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
            f"wrote it, there was no room for that file, or it was removed. {WAY_OUT}"
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
    except _DAMAGED as error:
        raise FileFormatError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _parsed(metadata: Mapping[str, str], tensors: dict[str, Tensor]) -> TrainingState:
    generators = [tensors.pop(name, None) for name in GENERATORS]
    kinds: dict[str, dict[str, Tensor]] = {"model": {}, **{kind: {} for kind in Averages._fields}}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        kinds[kind][rest] = tensor
    averages = {
        name: Averages(*(kinds[kind].pop(name) for kind in Averages._fields)) for name in list(kinds["mean"])
    }
    if any(kinds[kind] for kind in Averages._fields):
        raise ValueError("averages without a mean")
    for name, kept in averages.items():
        _check_averages(name, kept)
    history, steps, same, fingerprints = (
        json.loads(metadata[name]) for name in ("history", "steps", SAME, "fingerprints")
    )
    epochs = [record["epoch"] for record in history if is_record(record)]
    if not isinstance(history, list) or epochs != list(range(1, len(history) + 1)):
        raise ValueError("the history is not one record for each epoch")
    if type(steps) is not int or not len(history) <= steps < MOST_STEPS:
        raise ValueError(f"steps is {steps!r}")
    if not all(kept in kinds["model"] for kept in same.values()):
        raise ValueError("names of tensors that are not there")
    if [each for each in fingerprints if each is None or isinstance(each, str)] != fingerprints or (
        len(fingerprints) != 2
    ):
        raise ValueError("fingerprints that are not two")
    return TrainingState(
        config=RunConfig.of_json(json.loads(metadata["config"])),
        fingerprints=fingerprints,
        history=history,
        steps=steps,
        model=kinds["model"],
        same=same,
        averages=averages,
        generators=generators,
    )


def _check_averages(name: str, kept: Averages) -> None:
    mean, square, powers = kept
    if powers.shape != (2,) or powers.dtype is not torch.float64 or not ((powers >= 0) & (powers <= 1)).all():
        raise ValueError(f"the powers of {name} are not two numbers from 0 to 1")
    if mean.dtype != square.dtype or mean.shape != square.shape or not mean.is_floating_point():
        raise ValueError(f"the averages of {name} are not alike")
    # The square of a large gradient may be infinite.
    if not (mean.isfinite().all() and (square >= 0).all()):
        raise ValueError(f"the averages of {name} are no averages")


def discard_state_of_another(folder: Path, config: RunConfig, history: Sequence[Record]) -> None:
    """Remove the file of a folder, unless it is of the run that has this config and history."""
    path = folder / STATE
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        before = json.loads(metadata["history"])
        # No two trainings take the same time. The last epoch of an interrupted one is a part.
        in_both = min(len(before), len(history))
        same = list(map(finite, before[:in_both])) == list(map(finite, history[:in_both]))
        if same and not _differences(RunConfig.of_json(json.loads(metadata["config"])), config):
            return
    except (OSError, *_DAMAGED, safetensors.SafetensorError):
        pass  # there is none, or it is of no use to anyone
    remove_state(folder)


def remove_state(folder: Path) -> None:
    """Remove the file of a folder, as far as that goes: a run is not lost for it."""
    with contextlib.suppress(OSError):
        (folder / STATE).unlink(missing_ok=True)


def fingerprint(data: Data | None) -> str | None:
    """Give a digest of data in memory: of all of it, or of rows spread over it.

    None for data that is read as batches are needed.
    """
    resident = None if data is None else data.resident_on(torch.device("cpu"))
    if resident is None:
        return None
    values, of_float, rows = resident
    digest = hashlib.sha256(repr((values.dtype, values.shape, of_float)).encode())
    size = max(values[0].nbytes, 1)
    count = min(len(values), max(MOST_BYTES // size, 1))
    spread = (
        values if count == len(values) else values[torch.arange(count, device="cpu") * len(values) // count]
    )
    for part in (spread, *([] if rows is None else [rows])):
        digest.update(part.contiguous().numpy().data)
    return digest.hexdigest()[:16]


def check_given_alike(
    ranks: Ranks,
    config: RunConfig,
    sources: Sequence[Data | None],
    fingerprints: Sequence[str | None],
    start: TrainingState | None,
) -> None:
    """Raise, in all processes of a training, unless they were given the same.

    Raises
    ------
    ValueError
        It says what differs.
    """
    reached = None if start is None else (start.steps, list(map(finite, start.history)))
    # Whether one of them picks its own rows decides on how it is shared.
    values = [
        None if data is None else (data.shape, data.can_split, print_)
        for data, print_ in zip(sources, fingerprints, strict=True)
    ]
    first, *others = ranks.gather((config, values, reached))
    for rank, other in enumerate(others, 1):
        words = "in process 0", f"in process {rank}"
        differences = _differences(first[0], other[0], free={("data", "name")}, words=words)
        if first[0].data.samples != other[0].data.samples:
            differences.append(WHOLE)
        elif first[1] != other[1]:
            differences.append(f"process {rank} has data with other values than process 0. {WHOLE}")
        if differences:
            raise ValueError(
                f"all processes of a training must be given the same: {'; '.join(differences)}; "
                "distributed=False has each train a model of its own"
            )
        if first[2] != other[2]:
            raise ValueError(
                f"process {rank} finds another run to resume than process 0, or none: output_dir must be a "
                "folder that all processes see"
            )


def check_samples_alike(ranks: Ranks, data: Data, what: str) -> None:
    """Raise, in all processes, unless data that is read as batches are needed seems to be one in all.

    A few rows are compared, but not what comes out otherwise when it is read again.

    Raises
    ------
    ValueError
        It says which process has others.
    """
    if ranks.size == 1:
        return
    rows = torch.arange(SAMPLED_ROWS, device="cpu") * len(data) // SAMPLED_ROWS
    with ranks.together():
        digests = [
            [hashlib.sha256(x.numpy().tobytes()).hexdigest() for x in data.take(rows)] for _ in range(2)
        ]
    seen = [one if one == again else None for one, again in zip(*digests, strict=True)]
    first, *others = ranks.gather(seen)
    for rank, other in enumerate(others, 1):
        if any(
            one != two for one, two in zip(first, other, strict=True) if one is not None and two is not None
        ):
            raise ValueError(f"process {rank} reads other samples {what} than process 0. {WHOLE}")


def _differences(
    before: RunConfig,
    now: RunConfig,
    *,
    free: Collection[tuple[str, str]] = FREE,
    words: tuple[str, str] = ("before", "now"),
) -> list[str]:
    """Say what a run was trained with and what is given now, where these have to be the same."""
    sections = (
        (section, dataclasses.asdict(getattr(before, section)), dataclasses.asdict(getattr(now, section)))
        for section in ("model", "training", "data")
    )
    return [
        f"{ARGUMENTS.get(name, name)} {was[name]!r} {words[0]} and {value!r} {words[1]}"
        for section, was, given in sections
        for name, value in given.items()
        if (section, name) not in free and was[name] != value
    ]
