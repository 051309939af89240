"""Where a result came from: stable fingerprints of inputs, the code that ran, and the machine it ran on."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from types import CellType, CodeType, FunctionType
from typing import Any

import pandas as pd

import workbench
from workbench.places import PACKAGE

_LIBRARIES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "lm-eval",
    "sentence-transformers",
    "numpy",
    "pandas",
    "plotly",
)
_LONGEST_LIST = 64


def plain(value: Any, name: str = "value") -> Any:
    """Turn an input of a stage into plain JSON values; long lists and frames become their size and SHA-256.

    Args:
        value: text, number, bool, None, path (inside the checkout it counts by its place there), list, tuple,
            set, dict, dataclass, numpy scalar or array, frame.
        name: what to call the value in an error.

    Raises:
        ValueError: for anything else (a model, a function), whose content no fingerprint can follow.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        inside = value.is_absolute() and value.is_relative_to(PACKAGE.parent)
        return (value.relative_to(PACKAGE.parent) if inside else value).as_posix()
    if isinstance(value, pd.DataFrame | pd.Series):
        frame = value.to_frame("value") if isinstance(value, pd.Series) else value
        content = [list(frame.columns), frame.astype(object).values.tolist()]
        return {"rows": len(frame), "sha256": _digest(json.dumps(content, default=str))}
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value), name)
    if isinstance(value, dict):
        return {str(key): plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return plain(sorted(value, key=repr), name)
    if isinstance(value, list | tuple | range):
        items = [plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
        return items if len(items) <= _LONGEST_LIST else {"items": len(items), "sha256": _digest(items)}
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return plain(value.tolist(), name)
    raise ValueError(
        f"{name} must be plain data (text, numbers, lists, dicts, paths, frames) to be an input of a stage, "
        f"got {type(value).__name__}; for a model pass describe_model(model)"
    )


def inputs_fingerprint(inputs: dict[str, Any]) -> str:
    """Return the SHA-256 of plain inputs; the order of keys does not matter."""
    return _digest(plain(inputs, "inputs"))


def code_inputs(compute: Callable[..., Any]) -> dict[str, Any]:
    """Return what a stage's function depends on besides its declared inputs.

    That is: its own byte code and that of the notebook's functions it calls, the plain values it reads from
    the notebook or was bound to (a batch size, a list of texts), and the source of every module of the
    package it calls into. So editing a number in the notebook or fixing a metric makes the stage run again,
    editing a plot does not.
    """
    code: dict[str, str] = {}
    values: dict[str, Any] = {}
    modules: set[str] = set()
    followed: list[FunctionType] = []
    pending: list[tuple[str, Any]] = [("stage", compute)]
    while pending:
        name, value = pending.pop()
        if isinstance(value, functools.partial):
            pending += [(f"{name}({key})", item) for key, item in enumerate(value.args)]
            pending += [(f"{name}({key})", item) for key, item in value.keywords.items()]
            pending.append((name, value.func))
        elif module := _module_of(name, value):
            modules.add(module)
        elif isinstance(value, FunctionType):
            if value not in followed and (not followed or value.__globals__ is followed[0].__globals__):
                followed.append(value)
                code[name] = _digest(_code_parts(value.__code__))
                pending += [(f"{name}.{inner}", item) for inner, item in _names_in(value).items()]
        elif (found := _plain_or_none(value)) is not None:
            values[name] = found
    sources = {"workbench": _digest([_source_digest(path) for path in sorted(PACKAGE.rglob("*.py"))])}
    return {"code": code, "values": dict(sorted(values.items())), "modules": sources if modules else {}}


def environment() -> dict[str, Any]:
    """Return versions, platform, commit, command and time (UTC): the part of provenance no input tells."""
    commit = _git("rev-parse", "HEAD")
    return {
        "versions": library_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "commit": commit,
        "uncommitted_changes": bool(_git("status", "--porcelain")) if commit else None,
        "command": command(),
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
    }


@functools.lru_cache
def library_versions() -> dict[str, str]:
    """Return the installed versions of the libraries that results depend on, without importing them."""
    installed = {"workbench": workbench.__version__}
    for name in _LIBRARIES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            installed[name] = "not installed"
    return installed


def command() -> str:
    """Return the notebook (in a Jupyter kernel) or the command line that is running."""
    notebook = os.environ.get("JPY_SESSION_NAME")
    return f"notebook {Path(notebook).name}" if notebook else shlex.join(sys.argv)


def _digest(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _names_in(function: FunctionType) -> dict[str, Any]:
    """Return what each name and default in the function's code is bound to (None for an attribute)."""
    values = {name: function.__globals__.get(name) for name in sorted(_names(function.__code__))}
    values.update(zip(function.__code__.co_freevars, map(_held, function.__closure__ or ()), strict=True))
    defaults = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return {**values, **{f"={i}": value for i, value in enumerate(defaults)}}


def _held(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # a variable of the enclosing function that is not assigned yet


def _names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return set(code.co_names).union(*map(_names, inner))


def _code_parts(code: CodeType) -> list[Any]:
    constants = [_code_parts(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _plain_or_none(value: Any) -> Any:
    try:
        return plain(value)
    except (ValueError, TypeError):
        return (
            None  # a model, a tokenizer, a function: declared through describe_model, or followed as a module
        )


def _module_of(name: str, value: Any) -> str:
    """Return the module of the package behind a name in the code, "" for a name that is not the package's."""
    if value is None:  # an attribute, as in `workbench.heal`
        return workbench._MODULE_OF.get(name.rpartition(".")[2], "")
    where = str(getattr(value, "__module__", None) or getattr(value, "__name__", ""))
    return where.split(".")[1] if where.startswith("workbench.") else ""


def _source_digest(source: Path) -> str:
    return hashlib.sha256(source.read_bytes()).hexdigest()


def _git(*arguments: str) -> str | None:
    """Return what git says about the checkout this package lies in, None outside one or without git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
