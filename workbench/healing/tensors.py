"""Whole tensors in an adapter's place: what a merge of two adapters leaves of the weights it changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from workbench.checks import told
from workbench.healing.records import adapter_digests, check_layers, read_record, write_record
from workbench.models.layers import unwrap

#: the file that tells such a folder from a LoRA adapter's
TENSORS = "tensors.safetensors"


def holds_tensors(path: str | Path) -> bool:
    """Say whether a folder holds whole tensors."""
    return (Path(path) / TENSORS).is_file()


def write_tensors(folder: str | Path, tensors: Mapping[str, Tensor], record: dict[str, Any]) -> None:
    """Write tensors by the names of the model's parameters, and a record as ``heal`` writes one.

    Args:
        folder: is there, and empty.
        tensors: on any device.
        record: ``kept_layers`` and ``model``, and what else is to be known.
    """
    whole = {name: one.detach().cpu().contiguous() for name, one in tensors.items()}
    save_file(whole, Path(folder) / TENSORS)
    write_record(folder, record, [TENSORS])


def put_tensors(model: Any, path: str | Path, layers: Sequence[int] | None = None) -> None:
    """Exchange parameters of the model for the tensors of a folder, one by one; the caller puts them back.

    Args:
        model: with the very layers that the tensors belong to.
        path: the folder.
        layers: the original indices of those layers by the caller's word; the record's must be the same.

    Raises:
        ValueError: for a folder that is damaged or altered, other layers, quantized weights, a tensor that
            the model does not have, that has another shape, or that holds a NaN.
    """
    path, base = Path(path), unwrap(model)
    record = checked_tensors(path, layers)
    if getattr(base, "is_quantized", False):
        raise ValueError("model must have full weights to take whole tensors; load it with quantization=None")
    check_layers(path, record["kept_layers"], None, model)
    parameters = dict(base.named_parameters())
    with (
        told(f"{path / TENSORS} cannot be read", SafetensorError),
        safe_open(path / TENSORS, framework="pt") as file,
    ):
        for name in file.keys():  # noqa: SIM118 - not a mapping
            if name not in parameters:
                raise ValueError(f"{path} has {name}, which the model has not")
            _put(name, parameters[name], file.get_tensor(name), path)


def checked_tensors(path: str | Path, layers: Sequence[int] | None = None) -> dict[str, Any]:
    """Return the record of a folder of tensors, once it is found whole.

    Raises:
        ValueError: for a damaged or altered folder, or one of other layers than ``layers``.
    """
    record = read_record(path)
    if record.get("sha256") != adapter_digests(path, [TENSORS]):
        raise ValueError(f"{Path(path) / TENSORS} was altered since it was written; merge again")
    check_layers(Path(path), record["kept_layers"], layers)
    return record


def _put(name: str, parameter: Any, tensor: Tensor, path: Path) -> None:
    if tensor.shape != parameter.shape:
        shapes = [*tensor.shape], [*parameter.shape]
        raise ValueError(f"{path} does not fit: its {name} and the model's have shapes {shapes}")
    if not torch.isfinite(tensor).all():
        raise ValueError(f"{path} must hold finite numbers, {name} does not")
    parameter.data = tensor.to(parameter.device, parameter.dtype)
