"""What a value holds, as plain JSON values: texts, files, frames, models and tokenizers by content."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.digests import digest, model_digests, tensor_digest, tokenizer_digest
from workbench.runs.files import sha256_of
from workbench.runs.variant import Variant

_LONGEST_LIST = 64


def identity(value: Any, name: str = "value", folder: Path | None = None) -> Any:
    """Return what a value holds as plain JSON values; what is long becomes its size and SHA-256.

    A path counts by its last part and by what lies there, so that a folder may move. Frames count with their
    names, index and ``attrs``, dicts in their order; models and tokenizers to the last weight and setting. A
    dataclass with a method ``deciding`` counts by the dict that it returns, any other by its fields.

    Args:
        value: text, number, path, list, dict, set, dataclass, array, frame, tensor, model or tokenizer.
        name: what to call it in an error.
        folder: of the run, where the adapters of variants lie.

    Raises:
        ValueError: for anything else, whose content cannot be followed.

    >>> identity({"seed": 0, "sizes": (2, 4)})
    {'seed': 0, 'sizes': [2, 4]}
    """
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Enum):
        return identity([type(value).__qualname__, value.value], name, folder)
    if isinstance(value, str | Path):
        return _text_or_file(value)
    if isinstance(value, pd.DataFrame | pd.Series):
        return _frame(value.to_frame() if isinstance(value, pd.Series) else value)
    if isinstance(value, Variant):
        return _variant(value, folder)
    if is_dataclass(value) and not isinstance(value, type):
        held = {field.name: getattr(value, field.name) for field in fields(value)}
        return named(value.deciding() if hasattr(value, "deciding") else held, name, folder)
    if isinstance(value, dict):
        # functions go by the order of a dict, and rows come in it
        plain = all(isinstance(key, str) for key in value) and [*value] == sorted(value)
        return named(value, name, folder) if plain else identity([*value.items()], name, folder)
    if isinstance(value, set | frozenset):
        return identity(sorted(value, key=repr), name, folder)
    if isinstance(value, list | tuple | range):
        items = [identity(item, f"{name}[{index}]", folder) for index, item in enumerate(value)]
        return items if len(items) <= _LONGEST_LIST else {"items": len(items), "sha256": digest(items)}
    return _of_a_library(value, name, folder)


def named(values: dict[Any, Any], name: str = "value", folder: Path | None = None) -> dict[str, Any]:
    """Return what named values hold, whatever their order; as ``identity``."""
    return {str(key): identity(item, f"{name}[{key!r}]", folder) for key, item in values.items()}


def content_of(path: str | Path) -> str:
    """Return the SHA-256 of a file or folder; read again only when size, times or place on disk changed."""
    path = Path(path)
    if path.is_dir():
        return digest([[str(file.relative_to(path)), content_of(file)] for file in files_below(path)])
    told = path.stat()  # the time of change cannot be set back, as that of modification can
    return _file_digest(str(path.resolve()), told.st_size, told.st_mtime_ns, told.st_ctime_ns, told.st_ino)


def files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """Yield every file below a folder in order, also behind links, but for a link to a folder above it."""
    here = folder.resolve()
    for path in () if here in above else sorted(folder.iterdir()):
        if path.is_dir():
            yield from files_below(path, above | {here})
        elif path.is_file():
            yield path


@functools.lru_cache(maxsize=100_000)
def _file_digest(path: str, *_stamp: int) -> str:
    return sha256_of(path)


def _text_or_file(value: str | Path) -> Any:
    text = str(value)
    if isinstance(value, str) and (not text or "\n" in text or len(text) > 512):
        return text
    try:
        path = Path(text).expanduser()
        # a bare word such as "demo" is a name, also where a folder of that name lies around
        if path.exists() and (isinstance(value, Path) or os.sep in text or path.is_file()):
            return {"path": path.name, "sha256": content_of(path)}
    except (OSError, ValueError, RuntimeError):  # no name of a file after all
        return text
    return path.name if isinstance(value, Path) and path.is_absolute() else text


def _frame(frame: pd.DataFrame) -> dict[str, Any]:
    whole = hashlib.sha256(repr(frame.columns.names).encode("utf-8", "surrogatepass"))
    if frame.index.names != [None] or not frame.index.equals(pd.RangeIndex(len(frame))):
        index = _frame(frame.index.to_frame(index=False, name=[*map(repr, frame.index.names)]))
        whole.update(index["sha256"].encode())
    for place, (column, dtype) in enumerate(frame.dtypes.items()):
        values = frame.iloc[:, place]
        order = [*dtype.categories, dtype.ordered] if isinstance(dtype, pd.CategoricalDtype) else ""
        whole.update(f"{column!r} {dtype} {order}\n".encode("utf-8", "surrogatepass"))
        if isinstance(dtype, np.dtype) and dtype.kind != "O":
            whole.update(values.to_numpy().tobytes())
        else:
            cells = json.dumps(values.astype(object).tolist(), default=_cell)
            whole.update(cells.encode("utf-8", "surrogatepass"))
    return {"rows": len(frame), "sha256": whole.hexdigest(), "attrs": digest(_without_places(frame.attrs))}


def _cell(value: Any) -> Any:
    """Return what a value in a frame holds, or how it is written where that cannot be followed."""
    try:
        return identity(value)
    except ValueError:
        return repr(value)


def _without_places(value: Any) -> Any:
    """Return plain values with each absolute path by its last part."""
    if isinstance(value, dict):
        return {str(key): _without_places(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_places(item) for item in value]
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value)
    return value if value is None or isinstance(value, bool | int | float | str) else _cell(value)


def _variant(variant: Variant, folder: Path | None) -> dict[str, Any]:
    """Return a variant by what it is: the adapter by content, without the note for readers."""
    told = {**asdict(variant), "removed": list(variant.removed)}
    del told["note"]
    if folder and variant.adapter and (folder / variant.adapter).exists():
        told["adapter"] = content_of(folder / variant.adapter)
    return told


def _of_a_library(value: Any, name: str, folder: Path | None) -> Any:
    if hasattr(value, "named_parameters") and hasattr(value, "named_buffers"):
        return model_digests(value)
    if hasattr(value, "convert_tokens_to_ids") and hasattr(value, "special_tokens_map"):
        return tokenizer_digest(value)
    if hasattr(value, "data_ptr") and hasattr(value, "dtype"):
        return tensor_digest(value)
    if type(value).__module__ == "torch":
        return str(value)  # a dtype, a device
    if isinstance(value, np.ndarray) and value.ndim and value.dtype.kind != "O":
        held = hashlib.sha256(value.tobytes()).hexdigest()
        return {"array": list(value.shape), "dtype": str(value.dtype), "sha256": held}
    if isinstance(value, np.ndarray | np.generic):
        return identity(value.tolist(), name, folder)
    allowed = "plain data, a path, a frame, an array, a model, a tokenizer or a function"
    raise ValueError(f"{name} must be {allowed} to be an input of a stage, got {type(value).__name__}")
