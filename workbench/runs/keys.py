"""What a stage depends on: its arguments by content, the code that runs, the versions of libraries.

A stage is a call ``function(*arguments, **settings)`` whose frame a run keeps. Settings that cannot change a
result do not count: how many go in a batch, progress, where it is written.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from workbench.digests import digest
from workbench.runs.code import code_of, label
from workbench.runs.content import identity, named

#: settings that cannot change what a function returns: how it is computed, where, and who is told
NEUTRAL = {"progress", "run", "overwrite", "report_to"}
#: further ones of the package's functions: a user's own may train with them
HOW = {"batch_size", "micro_batch_size", "engine", "compiled"}
#: settings that say where a function writes, by a path: files and folders that belong to the stage
OUTPUTS = {"out", "items"}
_Function = TypeVar("_Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Key:
    """What a stage depends on, as plain JSON values.

    Attributes:
        inputs: each argument of the function by name, and the function's own name.
        code: digests of the sources, and versions, by name.
        outputs: the files and folders that the call names as its own, by the setting that names them.
    """

    inputs: dict[str, Any]
    code: dict[str, Any]
    outputs: dict[str, Path] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The SHA-256 of inputs and code."""
        return digest({"inputs": self.inputs, "code": self.code})

    def changed(self, provenance: dict[str, Any]) -> list[str]:
        """Return the names of what is another in the provenance of an earlier result."""
        mine = _named_apart(self.inputs) | self.code
        theirs = _named_apart(provenance.get("inputs") or {}) | (provenance.get("code") or {})
        both = mine.keys() & theirs.keys()
        # by digest: what was read back has lists for tuples
        other = {name for name in both if digest([mine[name]]) != digest([theirs[name]])}
        return sorted((mine.keys() ^ theirs.keys()) | other)


def _named_apart(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return inputs by name, what is read besides among them."""
    given = {name: value for name, value in inputs.items() if name != "reads"}
    return given | (inputs.get("reads") or {})


def reads(what: Callable[..., Any], *, instead_of: Iterable[str] = ()) -> Callable[[_Function], _Function]:
    """Say what a function reads besides its arguments, such as the files of a task that it names.

    Args:
        what: takes arguments of the function by their names, and returns plain values that hold the content.
        instead_of: arguments that need not count on their own then.
    """

    def mark(function: _Function) -> _Function:
        function._reads = (what, frozenset(instead_of))  # type: ignore[attr-defined]
        return function

    return mark


def stage_key(
    function: Callable[..., Any],
    arguments: Iterable[Any],
    settings: dict[str, Any],
    folder: Path | None = None,
) -> Key:
    """Return what the call ``function(*arguments, **settings)`` depends on.

    Args:
        function: of the package, or a user's own.
        arguments: by place.
        settings: by name.
        folder: of the run, where the adapters of variants lie.

    Raises:
        ValueError: for an argument whose content cannot be followed (an open file, a generator).
        TypeError: for arguments that the function does not take.
    """
    while isinstance(function, functools.partial):
        arguments, settings = (*function.args, *arguments), {**function.keywords, **settings}
        function = function.func
    given = _by_name(function, arguments, settings)
    inputs: dict[str, Any] = {"function": label(function)}
    ours = label(function).startswith("workbench.")
    kinds = {one.name: str(one.annotation) for one in inspect.signature(function).parameters.values()}
    what, instead_of = getattr(function, "_reads", (None, frozenset()))
    if what is not None:
        asked = [name for name in inspect.signature(what).parameters if name in given]
        inputs["reads"] = named(what(**{name: given[name] for name in asked}), "reads", folder)
    written = {name: Path(given[name]) for name in sorted(OUTPUTS) if isinstance(given.get(name), str | Path)}
    neutral = NEUTRAL | (HOW if ours else set())
    for name, value in given.items():
        if name not in neutral | instead_of | written.keys():
            value = _as_meant(name, value, kinds.get(name, ""), ours)
            own_code = callable(value) and hasattr(value, "__code__")
            inputs[name] = code_of(value, folder) if own_code else identity(value, name, folder)
    return Key(inputs, code_of(function, folder, given) | _torch_settings(), written)


def _as_meant(name: str, value: Any, kind: str, ours: bool) -> Any:
    """Return a value as its annotation takes it: a word as the folder of that name, texts as a list.

    Not so an argument called ``name``: that is looked up among known names, and is never a folder.
    """
    if isinstance(value, str) and re.search(r"\bPath\b", kind) and name != "name":
        return Path(value) if value and os.path.isdir(os.path.expanduser(value)) else value
    listed = re.search(r"(Sequence|Iterable)\[str\]", kind) or (ours and kind == "Any")
    if listed and isinstance(value, np.ndarray | pd.Series) and all(isinstance(one, str) for one in value):
        return value.tolist()
    return value


def _torch_settings() -> dict[str, str]:
    """Return what was set for all of torch and changes results, where it is not as torch begins."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    told = {"default dtype": str(torch.get_default_dtype())}
    told["precision of products"] = torch.get_float32_matmul_precision()
    usual = {"torch.float32", "highest"}
    return {f"torch's {name}": value for name, value in told.items() if value not in usual}


def _by_name(
    function: Callable[..., Any], arguments: Iterable[Any], settings: dict[str, Any]
) -> dict[str, Any]:
    """Return the arguments of a call by name, defaults filled in, further keywords beside the named ones."""
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*arguments, **settings)
    except TypeError as error:
        raise TypeError(f"{label(function)}: {error}") from None
    bound.apply_defaults()
    given = dict(bound.arguments)
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            given |= given.pop(parameter.name)
    return given
