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
from contextlib import suppress
from dataclasses import is_dataclass
from enum import Enum
from importlib import import_module
from importlib.util import find_spec, resolve_name
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import workbench
from workbench.digests import code_parts, digest
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


def code_of(
    function: Callable[..., Any], folder: Path | None = None, given: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return digests of the sources that a function's result depends on, and versions of the libraries.

    Args:
        function: of the package, or a user's own.
        folder: of the run, where the adapters of variants lie.
        given: arguments, of which the user's own classes count with their code.

    Raises:
        ValueError: when a user's function reads something whose content cannot be followed.
    """
    reached = _Reached(folder)
    reached.follow("stage", function)
    for name, value in (given or {}).items():
        reached.follow_classes(name, value)
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
        self._lenient = False  # of what a module or class holds, not all has content

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

    def follow_classes(self, name: str, value: Any) -> None:
        """Note the code of the user's own classes among what an argument holds."""
        of_torch = hasattr(value, "named_parameters") and not isinstance(value, type)
        for kind in {type(part) for part in (value.modules() if of_torch else [value])}:
            if _home(kind) == ("", ""):
                self.follow(f"{name}.{kind.__name__}", kind)
        inside: Any = vars(value).values() if is_dataclass(value) and not isinstance(value, type) else ()
        if isinstance(value, list | tuple | set | frozenset | dict):
            inside = value.values() if isinstance(value, dict) else value
        for one in {type(one): one for one in inside}.values():
            self.follow_classes(name, one)

    def _all(self, name: str, parts: dict[Any, Any]) -> None:
        for inner, value in parts.items():
            self.follow(f"{name}.{inner}" if inner != "" else name, value)

    def _function(self, name: str, function: FunctionType) -> None:
        self.code[name] = digest(code_parts(function.__code__))
        names, attributes = _names(function.__code__)
        around = {**function.__globals__, **_imported(function), **_files_named(function.__code__)}
        names |= around.keys() - function.__globals__.keys()
        public = attributes & workbench._MODULE_OF.keys()
        self.rooms |= {workbench._MODULE_OF[inner].partition(".")[0] for inner in public}
        self._all(name, {inner: around[inner] for inner in names & around.keys()})
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        self._all(name, {inner: _held(cell) for inner, cell in cells})
        self._all(name, dict(enumerate(getattr(function, "registry", {}).values())))  # of singledispatch
        self._all(name, dict(enumerate(function.__defaults__ or ())) | (function.__kwdefaults__ or {}))

    def _namespace(self, name: str, holder: ModuleType | type) -> None:
        """Follow a user's module or class, and what a class inherits: functions, and what has content."""
        before, self._lenient = self._lenient, True
        for inner, value in sorted(vars(holder).items()):
            value = _function_of(value)
            content = not inner.startswith("__") and type(value).__name__ != "Run"
            if isinstance(value, FunctionType) or content:
                self.follow(f"{name}.{inner}", value)
        for base in getattr(holder, "__bases__", ()):
            self.follow(f"{name}.{base.__name__}", base)
        self._lenient = before

    def _value(self, name: str, value: Any) -> None:
        if type(value).__name__ == "Run":
            raise ValueError(f"a stage must not read from the run ({name}); read it first and pass that")
        if not self._not_the_users(type(value)):  # an object of a class of the user's
            self.follow(f"{name}.{type(value).__name__}", type(value))
            as_it_is = isinstance(value, Enum | tuple) or hasattr(value, "named_parameters")
            value = value if as_it_is or is_dataclass(value) else vars(value)
        with suppress(*[ValueError] * self._lenient):
            self.values[name] = identity(value, name, self.folder)

    def _not_the_users(self, value: Any) -> bool:
        """Note a room of the package or an installed library; return whether it was one of them."""
        room, library = _home(value)
        self.rooms.add(room)
        self.libraries |= {library} - {"", *sys.stdlib_module_names}
        return bool(room or library)

    def _callable_of_a_library(self, value: Any) -> bool:
        computes = hasattr(value, "named_parameters") or hasattr(value, "convert_tokens_to_ids")
        return callable(value) and not computes and self._not_the_users(type(value))


def _home(value: Any) -> tuple[str, str]:
    """Return the room of the package or the library that a function, class or module is of: "" for none."""
    where = _module_of(value)
    top, _, inside = where.partition(".")
    if top == "workbench":
        return inside.partition(".")[0] or "__init__", ""
    if top in sys.stdlib_module_names:
        return "", "" if where == "__main__" else top
    file = getattr(sys.modules.get(where), "__file__", None)
    return "", top if file and os.path.realpath(file).startswith(_INSTALLED) else ""


def _function_of(value: Any) -> Any:
    """Return the function behind a static method, class method or property, any other value as it is."""
    if isinstance(value, staticmethod | classmethod):
        return value.__func__
    if isinstance(value, property):
        return value.fget
    return value.func if isinstance(value, functools.cached_property) else value


def _imported(function: FunctionType) -> dict[str, Any]:
    """Return the user's own modules, and names of the package, that a function imports when it runs."""
    found: dict[str, Any] = {}
    for code in _with_inner(function.__code__):
        steps = [*dis.get_instructions(code)]
        for place, step in enumerate(steps):
            if step.opname != "IMPORT_NAME":
                continue
            name = "." * steps[place - 2].argval + step.argval
            with suppress(Exception):  # what it is will be said where the function runs
                name = resolve_name(name, function.__globals__.get("__package__") or "")
                top = name.partition(".")[0]
                spec = None if top in sys.stdlib_module_names else find_spec(top)
                if spec and not os.path.realpath(spec.origin or "").startswith(_INSTALLED):
                    found[f"import {name}"] = import_module(name)
    return found


def _files_named(code: CodeType) -> dict[str, Path]:
    """Return the files that code names in its text."""
    words = {word for inner in _with_inner(code) for word in inner.co_consts if isinstance(word, str)}
    return {word: Path(word) for word in words if os.path.isfile(word)}


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
    return names, {
        step.argval for step in steps if step.opname in ("LOAD_ATTR", "LOAD_METHOD", "IMPORT_FROM")
    }


def _with_inner(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_inner(constant)


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
