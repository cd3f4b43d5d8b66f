"""The weights of a model, and what else it keeps, as a safetensors file."""

from __future__ import annotations

from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from safetensors.torch import save as as_bytes
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

__all__ = ["check_storable", "read_weights", "write_weights"]


def check_storable(model: nn.Module) -> None:
    """Raise unless a file can hold what the model keeps.

    Raises
    ------
    TypeError
        If its state is not all dense tensors, of types that safetensors knows.
    """
    _state_of(model)


def write_weights(model: nn.Module, path: Path, metadata: dict[str, str]) -> None:
    """Write all tensors of a model's state; of those it has under two names, one, and the names.

    Raises
    ------
    TypeError
        As :func:`check_storable`.
    OSError
        If the file cannot be written.
    """
    tensors, same = _state_of(model)
    try:
        save_file(tensors, path, metadata=metadata | same)
    except safetensors.SafetensorError as error:  # a full disk, for example
        raise OSError(str(error)) from error


def read_weights(model: nn.Module, path: Path) -> None:
    """Give a model the state that was written.

    Raises
    ------
    RuntimeError
        If the file has not all its tensors, or other ones.
    """
    tensors = load_file(path, device="cpu")
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    tensors |= {name: tensors[kept] for name, kept in metadata.items() if kept in tensors}
    for module in model.modules():
        for name, buffer in list(module.named_buffers(recurse=False)):
            if not is_lazy(buffer):  # an expanded one cannot be written to
                setattr(module, name, buffer.contiguous())
    model.load_state_dict(tensors)


def _state_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Give the tensors of a model's state, no two in one memory, and whose names are other names of which."""
    tensors = dict[str, Tensor]()
    same = dict[str, str]()
    names = dict[tuple[object, ...], str]()
    taken = set[tuple[torch.device, int]]()
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            what = "a sparse tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise TypeError(
                f"a run folder holds dense tensors only, and the model keeps {what} as {name}: give buffers "
                "and get_extra_state() dense tensors; train without output_dir writes nothing"
            )
        view = (value.device, value.data_ptr(), value.dtype, value.shape, value.stride())
        if value.numel() and view in names:
            same[name] = names[view]
            continue
        names[view] = name
        stored = value.detach().contiguous()
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
