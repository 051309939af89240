"""An adapter's folder: what it was trained on, and whether its files are still those that were written."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from workbench.checks import read_whole, told, whole_number
from workbench.models.layers import kept_layers
from workbench.places import toml_beside
from workbench.runs.files import sha256_of, write_text_atomic

#: beside peft's own files in an adapter's folder
RECORD = "healing.json"
_FILES = SETTINGS, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: settings under which peft changes the model's own weights or layers, or uses the matrices now and then only
_NOT_PLAIN = toml_beside(__file__, "limits")["adapters"]["not_plain"]
_PLAIN = {"runtime_config": {"ephemeral_gpu_offload": False}}
#: how the matrices began, where that left the model's own weights as they were
_BEGINNINGS = (True, False, None, "gaussian", "orthogonal")


def read_record(path: str | Path) -> dict[str, Any]:
    """Return what ``heal`` wrote of an adapter: kept_layers, model, config, data.

    Raises:
        ValueError: for a folder without such a record, or one that is damaged.
    """
    record = Path(path) / RECORD
    if not record.is_file():
        way_out = "for one of another trainer give layers=, the original indices of its layers"
        raise ValueError(f"{path} is not an adapter that heal wrote: it has no {RECORD}; {way_out}")
    found = _read(record)
    whole = isinstance(found.get("kept_layers"), list)
    if not whole or not all(isinstance(found.get(name, {}), dict) for name in ("sha256", "model")):
        raise ValueError(f"{record} is damaged: it names no layers and files; heal again, or copy it again")
    return found


def write_record(folder: str | Path, record: dict[str, Any], files: Sequence[str] = _FILES) -> None:
    """Write an adapter's record into its folder, with the SHA-256 of its files, which loading compares."""
    whole = {**record, "sha256": adapter_digests(folder, files)}
    write_text_atomic(Path(folder) / RECORD, json.dumps(whole, indent=1))


def adapter_digests(folder: str | Path, files: Sequence[str] = _FILES) -> dict[str, str]:
    """Return the SHA-256 of an adapter's files by their names."""
    return {name: sha256_of(Path(folder) / name) for name in files}


def check_layers(path: Path, trained: list[int], layers: Sequence[int] | None, model: Any = None) -> None:
    """Refuse an adapter of other layers than the caller says, or than a model has."""
    if layers is not None and trained != list(layers):
        raise ValueError(f"layers must be those that {path} was trained on, {trained}, got {list(layers)}")
    if model is not None and trained != (here := list(kept_layers(model))):
        both = f"trained on {trained}, the model has {here}"
        raise ValueError(f"adapter {path} was trained on other layers than the model has: {both}")


def checked_adapter(path: str | Path, layers: Sequence[int] | None = None) -> list[int]:
    """Return the layers that an adapter was trained on, once its files are found whole.

    Args:
        path: folder of the adapter.
        layers: the same by the caller's word, for an adapter without a record.

    Raises:
        ValueError: for a folder without a record and without ``layers``, or with both and they differ; one
            without weights in safetensors, or with other files than the record was written with; an adapter
            that is no LoRA, or that changes weights of the model itself.
    """
    path = Path(path)
    own = layers is None or (path / RECORD).is_file()
    record: dict[str, Any] = read_record(path) if own else {"kept_layers": layers}
    if not (path / WEIGHTS).is_file():
        raise ValueError(f"{path} has no {WEIGHTS}; an adapter's weights are read from safetensors only")
    settings = _read(path / SETTINGS)
    if settings.get("peft_type") != "LORA" or settings.get("bias", "none") != "none":
        kind = [settings.get("peft_type"), settings.get("bias")]
        raise ValueError(f"{path} must be a LoRA adapter with bias 'none', it is {kind}")
    _check_settings(path, settings)
    known, found = record.get("sha256"), adapter_digests(path)
    if known is not None and (altered := [name for name in found if known.get(name) != found[name]]):
        raise ValueError(f"{path / altered[0]} was altered since the adapter was written; heal again")
    trained = [whole_number(layer, "layers", 0) for layer in record["kept_layers"]]
    check_layers(path, trained, layers)
    return trained


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse settings under which peft would touch the model itself, compute nothing finite, or not end."""
    changed = [name for name in _NOT_PLAIN if settings.get(name) not in (None, False, [], _PLAIN.get(name))]
    if settings.get("init_lora_weights", True) not in _BEGINNINGS:
        changed.append("init_lora_weights")
    if changed:
        value = f"{changed[0]}={settings[changed[0]]!r}"
        raise ValueError(f"{path} must hold plain LoRA matrices alone, it also has {value:.80}")
    scales = [settings.get("lora_alpha", 1), *dict(settings.get("alpha_pattern") or {}).values()]
    if not all(isinstance(scale, int | float) and math.isfinite(scale) for scale in scales):
        raise ValueError(f"{path} must have a finite lora_alpha, got {scales}")
    patterns = [settings.get(name) for name in ("target_modules", "exclude_modules", "layers_pattern")]
    patterns += [one for name in ("rank_pattern", "alpha_pattern") for one in settings.get(name) or ()]
    if endless := [one for one in patterns if isinstance(one, str) and re.search(r"\)\s*[*+{]", one)]:
        raise ValueError(f"{path} must name its modules plainly, {endless[0]:.60} may take for ever to match")


def _read(path: Path) -> dict[str, Any]:
    with told(f"{path} is missing or damaged; heal again, or copy the folder again", Exception):
        return dict(json.loads(read_whole(path)))
