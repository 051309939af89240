"""Whose code a stage runs: the rooms of the package that it reaches, and a user's own functions.

Of the package a stage depends on the room of its function and the rooms below, never on those that only show.
Of a user's own function, also in another file, it depends on the code as it is loaded, on what that reads
from around it, and on whatever it calls, up to the package and to installed libraries (by their versions).
"""

from __future__ import annotations

import dis
import functools
import inspect
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import workbench
from workbench.digests import digest
from workbench.places import PACKAGE, toml_beside
from workbench.runs.content import identity
from workbench.runs.files import sha256_of
from workbench.runs.provenance import installed_version

_TABLE = toml_beside(__file__)
#: the package from the ground up; a stage of one storey depends on its own room and all storeys below
STOREYS: list[list[str]] = _TABLE["storeys"]
#: libraries that compute in a room, by the names of their distributions
LIBRARIES: dict[str, list[str]] = _TABLE["libraries"]
#: endings of what computes in a room: its code, and the tables and texts beside it
_SOURCES = (".py", ".toml", ".md")
_OWN = FunctionType | ModuleType | type
_PLACES = ("stdlib", "platstdlib", "purelib", "platlib")
_INSTALLED = tuple({os.path.realpath(sysconfig.get_path(place)) + os.sep for place in _PLACES})


def code_of(function: Callable[..., Any], folder: Path | None = None) -> dict[str, Any]:
    """Return digests of the sources that a function's result depends on, and versions of the libraries.

    Args:
        function: of the package, or a user's own.
        folder: of the run, where the adapters of variants lie.

    Raises:
        ValueError: when a user's function reads something whose content cannot be followed.
    """
    reached = _Reached(folder)
    reached.follow("stage", function)
    rooms = _with_lower(reached.rooms)
    if reached.code:  # a user's own function may call any of the libraries
        reached.libraries.update(*LIBRARIES.values())
    libraries = reached.libraries.union(*(LIBRARIES.get(room, ()) for room in rooms))
    return {
        **{f"room {room}": _room_digest(room) for room in sorted(rooms)},
        **{f"code of {name}": found for name, found in sorted(reached.code.items())},
        **{f"value of {name}": found for name, found in sorted(reached.values.items())},
        **{f"version of {name}": _version(name) for name in sorted(libraries)},
    }


def label(function: Any) -> str:
    """Return the name of a function with its module, without ``__main__``."""
    function = _own(function)
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{_module_of(function)}.{name}".removeprefix("__main__.")


class _Reached:
    """What a function reaches: rooms of the package, a user's code and values, installed libraries."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.rooms: set[str] = set()
        self.code: dict[str, str] = {}
        self.values: dict[str, Any] = {}
        self.libraries: set[str] = set()
        self._seen: set[int] = set()

    def follow(self, name: str, value: Any) -> None:
        """Note what a name in the code is bound to; go on from there when it is the user's own code."""
        value = _own(value)
        if isinstance(value, _OWN) and (id(value) in self._seen or self._not_the_users(value)):
            return
        self._seen.add(id(value))
        if isinstance(value, functools.partial):
            self._all(name, {"": value.func, **dict(enumerate(value.args)), **value.keywords})
        elif isinstance(value, MethodType):
            self._all(name, {"": value.__func__, "self": value.__self__})
        elif isinstance(value, FunctionType):
            self._function(name, value)
        elif isinstance(value, ModuleType | type):
            self._namespace(name, value)
        elif hasattr(value, "__wrapped__"):  # of functools.lru_cache
            self.follow(name, value.__wrapped__)
        elif not self._callable_of_a_library(value):
            self._value(name, value)

    def _all(self, name: str, parts: dict[Any, Any]) -> None:
        for inner, value in parts.items():
            self.follow(f"{name}.{inner}" if inner != "" else name, value)

    def _function(self, name: str, function: FunctionType) -> None:
        self.code[name] = digest(_code_parts(function.__code__))
        names, attributes = _names(function.__code__)
        around = function.__globals__
        public = attributes & workbench._MODULE_OF.keys()
        self.rooms |= {workbench._MODULE_OF[inner].partition(".")[0] for inner in public}
        self._all(name, {inner: around[inner] for inner in names & around.keys()})
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self._all(name, {inner: _held(cell) for inner, cell in cells})
        self._all(name, dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {}))

    def _namespace(self, name: str, holder: ModuleType | type) -> None:
        """Follow a user's module or class: every function in it, and every plain value."""
        kinds = (*_OWN.__args__, functools.partial, bool, int, float, str, tuple, list, dict, set)
        for inner, value in sorted(vars(holder).items()):
            value = value.__func__ if isinstance(value, staticmethod | classmethod) else value
            if isinstance(value, kinds) and (inner in ("__init__", "__call__") or not inner.startswith("__")):
                self.follow(f"{name}.{inner}", value)

    def _value(self, name: str, value: Any) -> None:
        if type(value).__name__ == "Run":
            raise ValueError(f"a stage must not read from the run ({name}); read it first and pass that")
        if not self._not_the_users(type(value)):  # an object of a class of the user's
            self._namespace(name, type(value))
            if not is_dataclass(value) and not hasattr(value, "named_parameters"):
                value = vars(value)
        self.values[name] = identity(value, name, self.folder)

    def _not_the_users(self, value: Any) -> bool:
        """Note a room of the package or an installed library; return whether it was one of them."""
        where = _module_of(value)
        top, _, inside = where.partition(".")
        if top == "workbench":
            self.rooms.add(inside.partition(".")[0])
            return True
        if top in sys.stdlib_module_names:
            return where != "__main__"
        file = getattr(sys.modules.get(where), "__file__", None)
        if file is None or not os.path.realpath(file).startswith(_INSTALLED):
            return False
        self.libraries.add(top)
        return True

    def _callable_of_a_library(self, value: Any) -> bool:
        computes = hasattr(value, "named_parameters") or hasattr(value, "convert_tokens_to_ids")
        return callable(value) and not computes and self._not_the_users(type(value))


def _own(function: Any) -> Any:
    """Return what a public name of the package stands for, without the check of its arguments."""
    return inspect.unwrap(function) if getattr(function, "__module__", "") == "workbench" else function


def _module_of(value: Any) -> str:
    return str(value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None) or "")


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # a variable of the enclosing function that is not assigned yet


def _names(code: CodeType) -> tuple[set[str], set[str]]:
    """Return the global names that code loads, its inner functions included, and the attributes."""
    steps = [step for inner in _with_inner(code) for step in dis.get_instructions(inner)]
    names = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names, {step.argval for step in steps if step.opname in ("LOAD_ATTR", "LOAD_METHOD")}


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


def _code_parts(code: CodeType) -> list[Any]:
    constants = [_code_parts(c) if isinstance(c, CodeType) else repr(c) for c in code.co_consts]
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _with_lower(rooms: set[str]) -> set[str]:
    """Return those of the rooms that compute, and the rooms on the storeys below each."""
    wanted: set[str] = set()
    for place, storey in enumerate(STOREYS):
        if here := rooms & set(storey):
            wanted |= here.union(*STOREYS[:place])
    return wanted


def _version(library: str) -> str | None:
    version = installed_version(library)
    return version and version.partition("+")[0]  # not which build, such as +cpu or +cu130


@functools.lru_cache
def _room_digest(room: str) -> str:
    """Return the digest of a room's sources as they were when first asked for, which is what runs."""
    place = PACKAGE / room
    found = sorted(place.iterdir()) if place.is_dir() else [place.with_suffix(".py")]
    return digest([[path.name, sha256_of(path)] for path in found if path.suffix in _SOURCES])
