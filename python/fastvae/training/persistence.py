"""Runs on disk: a folder with JSON and safetensors, nothing that can run code."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import safetensors
import torch
from torch import nn

from fastvae.errors import FileFormatError
from fastvae.models import LIKELIHOODS, Likelihood, ModelSpec, build_model
from fastvae.models.spec import check_parts
from fastvae.training.atomic import leftovers, replacing_together
from fastvae.training.config import RunConfig
from fastvae.training.device import choose_device, in_float32, undisturbed
from fastvae.training.history import Record, finite, is_record
from fastvae.training.interrupts import uninterrupted
from fastvae.training.randomness import repeatable
from fastvae.training.resumption import STATE, discard_state_of_another, is_state
from fastvae.training.weights import read_weights, write_weights

if TYPE_CHECKING:
    from fastvae.training.result import TrainedVAE

__all__ = [
    "METRICS",
    "PICTURES",
    "Description",
    "check_output_dir",
    "describe",
    "is_run",
    "load",
    "read_metrics",
    "remove_pictures",
    "save",
    "temporaries",
]

CONFIG, METRICS, MODEL = "config.json", "metrics.jsonl", "model.safetensors"
PICTURES = ("samples.png", "reconstructions.png", "traversal.png", "curves.png", "latent.png")
MARKER = "fastvae"
FORMAT_VERSION = 1


def save(result: TrainedVAE, path: str | Path) -> Path:
    """Write a run folder; see :meth:`fastvae.TrainedVAE.save`."""
    folder = check_output_dir(path)
    folder.mkdir(parents=True, exist_ok=True)
    config = dataclasses.asdict(result.config)
    run = _mark(config)
    head = {"format": MARKER, "format_version": FORMAT_VERSION, "torch": torch.__version__, "run": run}
    metadata = {
        "format": MARKER,
        "format_version": str(FORMAT_VERSION),
        "model": _canonical(config["model"]),
        "run": run,
    }
    lines = (json.dumps(finite(record), allow_nan=False) + "\n" for record in result.history)
    text = json.dumps(head | config, indent=2, allow_nan=False)
    replaced = _mark_of(_head(folder / CONFIG))
    with uninterrupted():
        # The weights last: the others can be put back.
        with replacing_together(folder / CONFIG, folder / METRICS, folder / MODEL) as temporaries:
            described, metrics, model = temporaries
            write_weights(result.model, model, metadata)
            metrics.write_text("".join(lines), encoding="utf-8")
            described.write_text(text + "\n", encoding="utf-8")
        if replaced != run:
            remove_pictures(folder)
        discard_state_of_another(folder, result.config, result.history)
    return folder


def remove_pictures(folder: Path) -> None:
    """Remove the pictures of an earlier run, as far as that goes, and nothing else."""
    for name in PICTURES:
        with contextlib.suppress(OSError):  # a run is not lost for want of a picture
            (folder / name).unlink(missing_ok=True)


def _mark(config: dict[str, Any]) -> str:
    """What config and weights of one run have in common: a digest of the config."""
    return hashlib.sha256(_canonical(config).encode()).hexdigest()[:16]


def _mark_of(content: dict[str, Any]) -> object:
    """The mark of a config that was read, also where it is older than marks."""
    sections = {field.name: content.get(field.name) for field in dataclasses.fields(RunConfig)}
    return content.get("run", _mark(sections))


def load(
    path: str | Path,
    *,
    device: str | torch.device = "auto",
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    likelihood: Likelihood | None = None,
) -> TrainedVAE:
    """Read a run folder back.

    Parameters
    ----------
    path : str or Path
        The folder that :func:`fastvae.train` or :meth:`fastvae.TrainedVAE.save` wrote, or a file in it.
    device : str or torch.device
        Where the model shall run.
    encoder, decoder, likelihood : nn.Module, optional
        Where the model was trained with modules of your own: the same ones, built as they were; their weights
        are replaced by the trained ones.

    Returns
    -------
    TrainedVAE
        As it was when it was saved, in eval mode.

    Raises
    ------
    FileNotFoundError
        If there is nothing at ``path``.
    FileFormatError
        If it is no run of fastvae, or damaged, or its files do not belong together.
    TypeError, ValueError
        If modules of your own are missing, or not those of the training.
    """
    from fastvae.training.result import TrainedVAE  # noqa: PLC0415  the two refer to each other

    chosen = choose_device(device)
    folder = _folder_of(path)
    config, run = _read_config(folder / CONFIG)
    built_in = None
    if "likelihood" not in config.model.custom and type(likelihood) in LIKELIHOODS.values():
        built_in, likelihood = _checked_built_in(config.model, cast("Likelihood", likelihood)), None
    parts = {"encoder": encoder, "decoder": decoder, "likelihood": likelihood}
    check_parts(config.model, parts)
    _check_weights_file(folder / MODEL, config.model, run)
    history = read_metrics(folder / METRICS)
    try:
        with torch.device("cpu"), repeatable(0, torch.device("cpu")), in_float32(), undisturbed():
            model = build_model(config.model, **parts)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{folder / CONFIG}: describes no model that can be built: {error}") from error
    if built_in is not None:
        model.likelihood = built_in
    try:
        with undisturbed():
            metadata = read_weights(model, folder / MODEL)
    except RuntimeError as error:
        whose = " the modules you passed" if config.model.custom else f" what {CONFIG} describes"
        raise FileFormatError(f"{folder / MODEL}: the weights do not fit{whose}: {error}") from error
    if metadata.get("run") != run:
        raise FileFormatError(f"{folder / MODEL} was replaced while the run was read; load it again")
    with undisturbed():
        return TrainedVAE(model.to(chosen), config, history)


def _checked_built_in(spec: ModelSpec, likelihood: Likelihood) -> Likelihood:
    """Give back a likelihood of fastvae's own that was passed as an object, as it may be to train."""
    variance = getattr(likelihood, "variance", None)
    if (likelihood.name, variance) != (spec.likelihood, spec.variance):
        raise ValueError(
            f"this model was trained with the {spec.likelihood} likelihood"
            f"{'' if spec.variance is None else f' of variance {spec.variance!r}'}, not {likelihood!r}: "
            "leave likelihood= out"
        )
    return likelihood


class Description(NamedTuple):
    """What a run folder says of itself.

    Attributes
    ----------
    config : RunConfig
    history : list of Record
    numbers : int
        How many its model has: weights, and what else it keeps.
    """

    config: RunConfig
    history: list[Record]
    numbers: int


def describe(path: str | Path) -> Description:
    """Read what a run folder says of itself: it takes no modules, also where the networks are the user's own.

    Raises
    ------
    FileNotFoundError, FileFormatError
        As :func:`load`.
    """
    folder = _folder_of(path)
    config, run = _read_config(folder / CONFIG)
    _check_weights_file(folder / MODEL, config.model, run)
    with safetensors.safe_open(folder / MODEL, framework="pt") as file:
        numbers = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return Description(config, read_metrics(folder / METRICS), numbers)


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, or the beginning of one, that may be written over."""
    return _head(folder / CONFIG).get("format") == MARKER or is_state(folder / STATE)


def _head(path: Path) -> dict[str, Any]:
    """Read a config as far as it is one."""
    try:
        head = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return head if isinstance(head, dict) else {}


def temporaries(folder: Path) -> list[Path]:
    """What writes that were killed have left in a folder."""
    return [left for name in (CONFIG, METRICS, MODEL, STATE) for left in leftovers(folder / name)]


def check_output_dir(path: str | Path) -> Path:
    """Give the folder to write a run to: a new one, an empty one, or one with an earlier run.

    Nothing is made or written here.

    Raises
    ------
    TypeError
        If ``path`` is no path.
    ValueError
        If it is a file, lies in a file, or is a folder with other things in it.
    PermissionError
        If nothing can be written there.
    """
    if not isinstance(path, str | Path):
        raise TypeError(f"the run folder must be a str or a Path, got {type(path).__name__}")
    folder = Path(path).expanduser()
    above = folder.absolute()
    while not os.path.lexists(above):
        above = above.parent
    if not above.is_dir():
        raise ValueError(f"{above} is a file; a run is written to a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "nothing can be written to this folder", str(above))
    if folder.is_dir() and not is_run(folder) and set(folder.iterdir()) - set(temporaries(folder)):
        raise ValueError(f"{folder} is not empty and holds no fastvae run; choose a new or an empty folder")
    return folder


def _folder_of(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such run folder")
    return path if path.is_dir() else path.parent


def _read_config(path: Path) -> tuple[RunConfig, object]:
    """Give a config, and the mark that the weights of its run have too."""
    if not path.exists():
        raise FileFormatError(f"{path.parent} is no fastvae run: it has no {CONFIG}")
    content = _parse(_read(path), path)
    if content.get("format") != MARKER:
        raise FileFormatError(f"{path} was not written by fastvae")
    _check_version(content.get("format_version"), path)
    try:
        config = RunConfig.of_json(content)
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error
    return config, content.get("run")


def read_metrics(path: Path) -> list[Record]:
    """Read the history of a run; without a file there is none.

    Raises
    ------
    FileFormatError
        If the file is damaged.
    """
    if not path.exists():
        return []
    records = [_parse(line, path) for line in _read(path).splitlines()]
    for number, record in enumerate(records, 1):
        if not is_record(record):
            raise FileFormatError(f"{path} is damaged: line {number} is no record of an epoch")
    return records


def _check_weights_file(path: Path, spec: ModelSpec, run: object) -> None:
    if not path.exists():
        raise FileFormatError(
            f"{path.parent} has no {MODEL}: the run was not finished, or the file was removed"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError) as error:
        raise FileFormatError(f"{path} is damaged, or no safetensors file: {error}") from error
    if metadata.get("format") != MARKER:
        raise FileFormatError(f"{path} was not written by fastvae")
    _check_version(metadata.get("format_version"), path)
    if metadata.get("model") != _canonical(dataclasses.asdict(spec)):
        raise FileFormatError(f"{path} and {CONFIG} describe two different models: they come from two runs")
    if metadata.get("run") != run:
        raise FileFormatError(
            f"{path} and {CONFIG} were not written together: they come from two "
            "runs, or a write was cut short"
        )


def _check_version(version: object, path: Path) -> None:
    if str(version) != str(FORMAT_VERSION):
        raise FileFormatError(
            f"{path} has format version {version}, and this fastvae reads version {FORMAT_VERSION}; "
            "a newer fastvae may have written it"
        )


def _read(path: Path) -> bytes:
    if path.is_dir():
        raise FileFormatError(f"{path} is a folder, not the file of a run")
    return path.read_bytes()


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise FileFormatError(f"{path} is damaged: expected a JSON object, got {type(content).__name__}")
    return content


def _canonical(model: dict[str, Any]) -> str:
    return json.dumps(model, sort_keys=True)
