"""The weights of a model, and what else it keeps, as a safetensors file."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save as as_bytes
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = [
    "SAME",
    "check_storable",
    "give_state",
    "read_weights",
    "state_of",
    "write_tensors",
    "write_weights",
]

WRITING = ".d"
"""At the end of the name of a folder in which a file is written."""

SAME = "same_tensors"
"""In the metadata: names of tensors that are another one's, as JSON."""


def check_storable(model: nn.Module) -> None:
    """Raise unless a file can hold what the model keeps.

    Raises
    ------
    TypeError
        If its state is not all dense tensors, of types that safetensors knows.
    """
    state_of(model)


def write_weights(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write all tensors of a model's state; of those it has under two names, one, and the names.

    Raises
    ------
    TypeError
        As :func:`check_storable`.
    OSError
        If the file cannot be written.
    """
    tensors, same = state_of(model)
    write_tensors(tensors, path, metadata | {SAME: json.dumps(same)})


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors, no two of which share memory: the same ones as the same bytes.

    Raises
    ------
    OSError
        If the file cannot be written.
    """
    # safetensors writes to a file of a name of its own first: whose that is, if it stays, the folder says.
    folder = path.with_name(path.name + WRITING)
    folder.mkdir()
    try:
        written = folder / path.name
        save_file(tensors, written, metadata=metadata)
        _sort_metadata(written)
        written.replace(path)
    except safetensors.SafetensorError as error:  # a full disk, for example
        raise OSError(errno.EIO, str(error)) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sort_metadata(path: Path) -> None:
    """Put the metadata of a file, which has it in any order, in the order of its names."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) <= size:  # as long as it was, but for how a string may be written
            file.seek(8)
            file.write(text.ljust(size))


def read_weights(model: nn.Module, path: Path) -> dict[str, str]:
    """Give a model the state that was written.

    Returns
    -------
    dict
        The metadata of the file that was read, which may have been replaced since it was looked at.

    Raises
    ------
    RuntimeError
        If the file has not all its tensors, or other ones.
    """
    with safetensors.safe_open(path, framework="pt", device="cpu") as file:
        metadata = file.metadata() or {}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    give_state(model, tensors, metadata)
    return metadata


def give_state(model: nn.Module, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Give a model the state that was written as these tensors and this metadata.

    Raises
    ------
    RuntimeError
        If they are not all its tensors, or other ones.
    """
    if SAME in metadata:
        tensors = tensors | {name: tensors[kept] for name, kept in json.loads(metadata[SAME]).items()}
    own = [tensor for tensor in model.state_dict(keep_vars=True).values() if isinstance(tensor, Tensor)]
    own = [tensor for tensor in own if not is_lazy(tensor)]
    # Made in inference mode, they can be written to there only.
    with torch.inference_mode(any(tensor.is_inference() for tensor in own)):
        for tensor in own:
            if any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True)):
                tensor.data = tensor.data.contiguous()  # an expanded one cannot be written to
        # Before there was such a table, a view of another tensor was left out, and named in the metadata.
        missing, unexpected = model.load_state_dict(tensors, strict=SAME in metadata)
        own_state = model.state_dict()
    lost = [name for name in missing if not _shares(own_state, name, metadata.get(name, name))]
    if lost or unexpected:
        raise RuntimeError(
            f"missing: {', '.join(lost) or 'none'}; unexpected: {', '.join(unexpected) or 'none'}"
        )


def _shares(state: dict[str, Tensor], name: str, kept: str) -> bool:
    """Whether a tensor lies in the memory of another one, with which it was given its values."""
    if name == kept or kept not in state:
        return False
    return state[name].untyped_storage().data_ptr() == state[kept].untyped_storage().data_ptr()


def state_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Give the tensors of a model's state, no two in one memory, and whose names are other names of which."""
    tensors = dict[str, Tensor]()
    same = dict[str, str]()
    names = dict[tuple[object, ...], str]()
    taken = set[tuple[torch.device, int]]()
    kept = list[Tensor]()  # or another one could get the address of one that is gone
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            what = "a sparse tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise TypeError(
                f"a run folder holds dense tensors only, and the model keeps {what} as {name}: give buffers "
                "and get_extra_state() dense tensors; train without output_dir writes nothing"
            )
        plain = value.detach().resolve_conj().resolve_neg()
        view = (plain.device, plain.data_ptr(), plain.dtype, plain.shape, plain.stride())
        if plain.numel() and view in names:
            same[name] = names[view]
            continue
        names[view] = name
        stored = plain.contiguous()
        kept.append(plain)
        memory = stored.device, stored.untyped_storage().data_ptr()
        tensors[name] = stored.clone() if memory in taken else stored
        taken.add(memory)
    _check_types(tensors)
    return tensors, same


def _check_types(tensors: dict[str, Tensor]) -> None:
    names = {tensor.dtype: name for name, tensor in tensors.items()}
    for dtype, name in names.items():
        try:
            as_bytes({"one": torch.zeros(1, dtype=dtype, device="cpu")})
        except Exception as error:  # a KeyError, a ValueError or its own, by the type and the version
            raise TypeError(
                f"{name} is of {dtype}, which a safetensors file cannot hold: keep it as another type; "
                "train without output_dir writes nothing"
            ) from error
