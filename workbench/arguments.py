"""What comes in by a public name is looked at before anything runs: kinds by annotation, ranges by name."""

from __future__ import annotations

import functools
import inspect
import os
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from numbers import Number
from pathlib import Path
from typing import Any, TypeVar, cast

import pandas as pd

from workbench.checks import NoRoom, check_writable, first_line, is_full, is_panic, is_whole
from workbench.places import toml_beside

_Function = TypeVar("_Function", bound=Callable[..., Any])
_KNOWN = toml_beside(__file__)
_NUMBERS = frozenset(_KNOWN["numbers"])
#: names that pandas' errors quote beside the column
_CLASSES = frozenset(("DataFrame", "Pandas"))


def looked_at(function: _Function) -> _Function:
    """Return the function with its arguments checked first, each error one line that names the argument.

    Checked are the kinds that the annotations name (whole numbers, numbers, texts, paths, frames and mappings
    of them), that models and tokenizers are such, that frames have a row and numbers where numbers belong,
    and ranges that follow from an argument's name. What a function alone can know it checks itself.

    Raises:
        ValueError: for an argument of another kind or out of range; also when the function looks for a column
            that a frame of the call does not have.
    """
    signature = inspect.signature(function)
    kinds = {p.name: str(p.annotation).strip("'\"") for p in signature.parameters.values()}
    further = [p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD]
    handed_on = _KNOWN["further"] | _KNOWN["further_of"].get(function.__name__, {})
    own = {rule for rule in ("tables", "may_be_empty", "empty_texts") if function.__name__ in _KNOWN[rule]}
    numbers = _NUMBERS.union(_KNOWN["numbers_of"].get(function.__name__, ()))
    writes = set() if function.__name__ in _KNOWN["readers"] else set(_KNOWN["outputs"])

    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Any:
        given = dict(signature.bind(*arguments, **settings).arguments)
        for name in further:
            given |= given.pop(name, {})
        for name, value in given.items():
            _check(name, value, kinds.get(name, handed_on.get(name, "Any")))
            if name in _KNOWN["texts"]:
                _check_texts(name, [value] if isinstance(value, str) else value, "empty_texts" in own)
            for label, frame in () if "tables" in own else _frames(name, value):
                check_frame(label, frame, "may_be_empty" in own, numbers)
            if name in writes and isinstance(value, str | Path):
                _check_output(name, value)
        try:
            return function(*arguments, **settings)
        except BaseException as error:
            if found := _in_one_line(error, given, writes):
                raise found from error
            raise

    if "." not in function.__qualname__:  # no method
        call.__module__, call.__qualname__ = "workbench", function.__name__
    return cast(_Function, call)


def _check(name: str, value: Any, kind: str) -> None:
    """Raise ValueError when a value is none of the kinds that its annotation names, or out of its range."""
    kinds = re.split(r"\s*\|\s*(?![^\[]*\])", kind)
    if value is None and "None" in kinds:
        return
    if "Path" in kinds:
        kinds.remove("str")
    least = _KNOWN["least"].get(name)
    whole = is_whole(value) or (value is not None and {*kinds} <= {"int", "None", "Any"})
    if least is not None and whole and not (is_whole(value) and value >= least):
        raise ValueError(f"{name} must be a whole number >= {least}, got {_shown(value)}")
    if least is not None and "float" in kinds and isinstance(value, float) and not _is_part(value, least):
        raise ValueError(
            f"{name} must be a whole number >= {least} or a share between 0 and 1, got {value!r}"
        )
    if name in _KNOWN["shares"] and not (_is_number(value) and 0 < value < 1):
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}")
    named, known = _KNOWN["named"].get(name), _KNOWN["kinds"]
    asked = [named] if named and kind != "str" else [known[one] for one in kinds if {*kinds} <= known.keys()]
    if asked and not any(_passes(test, value) for test, _ in asked):
        allowed = " or ".join(dict.fromkeys(said for _, said in asked))
        raise ValueError(f"{name} must be {allowed}, got {_shown(value)}")
    if name in _KNOWN["positive"] and not value > 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")


def _passes(test: str, value: Any) -> bool:
    return _TESTS[test](value) if test in _TESTS else hasattr(value, test)


def _check_texts(name: str, texts: Any, may_be_empty: bool) -> None:
    """Refuse texts that no tokenizer can read: half a surrogate pair, as cut JSON escapes leave them."""
    if not isinstance(texts, list | tuple):
        return
    if not texts and not may_be_empty:
        raise ValueError(f"{name} must hold at least one text, got none")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            continue
        if not text.isascii() and re.search("[\ud800-\udfff]", text):
            raise ValueError(f"{name} {index} holds half a surrogate pair, no character: {text[:40]!r}")
        if not may_be_empty and not text.strip():
            raise ValueError(f"{name} {index} is empty; leave empty texts out")


def _check_output(name: str, place: str | Path) -> None:
    """Refuse a path that cannot be written; what is there may be the result, which is read then."""
    path = Path(place)
    if str(place) == ".":
        raise ValueError(f"{name} must be a file or folder of its own, got '.'")
    if name not in _KNOWN["resumed"] or not path.exists():
        check_writable(name, path)


def check_frame(
    name: str, frame: pd.DataFrame, may_be_empty: bool = False, numbers: frozenset[str] = _NUMBERS
) -> None:
    """Refuse a frame without rows, or with words in a column that holds numbers wherever it occurs."""
    if frame.empty and not may_be_empty:
        raise ValueError(f"{name} must have at least one row, got an empty frame")
    for column in numbers.intersection(frame.columns):
        if pd.api.types.is_numeric_dtype(frame[column]):
            continue
        wrong = [value for value in frame[column].dropna() if not isinstance(value, Number)]
        if wrong:
            raise ValueError(f"{name}: column {column!r} must hold numbers, got {wrong[0]!r}")


def _frames(name: str, value: Any) -> list[tuple[str, pd.DataFrame]]:
    """Return the frames that an argument holds, with what to call them."""
    if isinstance(value, pd.DataFrame):
        return [(name, value)]
    if not isinstance(value, Mapping):
        return []
    return [(f"{name}[{key!r}]", one) for key, one in value.items() if isinstance(one, pd.DataFrame)]


def _in_one_line(error: BaseException, given: Mapping[str, Any], writes: set[str]) -> ValueError | None:
    """Return what to raise for a library's error that an argument explains, else None."""
    said = ""
    if isinstance(error, ValueError):
        if len(error.args) == 1 and "\n" in str(error):  # such as of a file's name
            error.args = (str(error).replace("\n", "\\n"),)
        return None
    if is_full(error):
        places = [given[name] for name in given if name in writes and given[name] is not None]
        places += [run.folder for run in given.values() if hasattr(run, "folder")]
        where = places[0] if places else "it"
        return NoRoom(f"no room on the disk for {where}; make some, then the same call goes on")
    if is_panic(error):
        said = f"the tokenizer cannot read a text: {first_line(error)}"
    elif isinstance(error, KeyError | AttributeError | pd.errors.UndefinedVariableError):
        said = _missing_column(error, given)
    elif isinstance(error, OSError) and error.filename:
        found = _path_of(str(error.filename), given)
        said = f"{found} cannot be used: {error.strerror}: {error.filename}" if found else ""
    return ValueError(said) if said else None


def _missing_column(error: Exception, given: Mapping[str, Any]) -> str:
    """Return the line to say when an error is about a column that a frame of the call lacks, else ""."""
    steps = traceback.extract_tb(error.__traceback__)
    row = "'Pandas' object has no attribute" in str(error)  # of itertuples
    if not row and not any(f"{os.sep}pandas{os.sep}" in step.filename for step in steps):
        return ""  # not a frame's error
    looked_for = re.findall(r"'([^']+)'", str(error)) or [str(error)]
    for name, value in given.items():
        for label, frame in _frames(name, value):
            missing = [column for column in looked_for if column not in {*map(str, frame.columns), *_CLASSES}]
            if len(missing) == len(set(looked_for) - _CLASSES):
                return f"{label} needs the column {missing[-1]!r}, got {list(frame.columns)}"
    return ""


def _path_of(file: str, given: Mapping[str, Any]) -> str:
    """Return the argument that names the file of an error, or the folder that it lies in, else ""."""
    runs = [("run", value.folder) for value in given.values() if hasattr(value, "folder")]
    paths = {name: str(path) for name, path in [*given.items(), *runs] if isinstance(path, str | Path)}
    near = (name for name, path in paths.items() if path and (file.startswith(path) or path.startswith(file)))
    return next(near, "")


def _shown(value: Any) -> str:
    """Return a value for an error: short ones as they are, else the type."""
    text = repr(value) if isinstance(value, str | int | float | list | tuple | dict | type(None)) else ""
    return text if 0 < len(text) <= 80 else type(value).__name__


def _is_number(value: Any) -> bool:
    number = is_whole(value) or (isinstance(value, float) or type(value).__module__ == "numpy")
    return number and not isinstance(value, bool) and value == value


def _is_part(value: float, least: int) -> bool:
    return 0 < value < 1 or (value >= least and value % 1 == 0)


def _each(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a test of every value of a collection; what can be gone through only once is let by."""

    def passes(value: Any) -> bool:
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
            return False
        return not isinstance(value, Sequence | set | frozenset) or all(map(test, value))

    return passes


def _is_a(*kinds: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, kinds)


def _mapping(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a test of every value of a mapping, which must have one."""
    return lambda value: isinstance(value, Mapping) and bool(value) and all(map(test, value.values()))


def _is_configured(value: Any) -> bool:
    return hasattr(getattr(value, "config", None), "model_type")


def _is_path(value: Any) -> bool:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        return False
    return all(len(os.fsencode(part)) < 256 for part in Path(value).parts)


def _some(test: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a test of every value of a collection, which must have one."""
    return lambda value: _each(test)(value) and (not hasattr(value, "__len__") or len(value) > 0)


_variants = _some(lambda one: hasattr(one, "removed"))


def _pairs(kind: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a test of pairs, both of a kind."""

    def pair(one: Any) -> bool:
        return isinstance(one, tuple | list) and len(one) == 2 and all(map(kind, one))

    return _each(pair)


#: what ``arguments.toml`` calls a test; any other word there is an attribute that the value must have
_TESTS: dict[str, Callable[[Any], bool]] = {
    "none": lambda value: value is None,
    "all": lambda value: isinstance(value, str) and value == "all",
    "whole": is_whole,
    "number": _is_number,
    "flag": _is_a(bool),
    "text": _is_a(str),
    "path": _is_path,
    "frame": _is_a(pd.DataFrame),
    "mapping": _is_a(Mapping),
    "frames": _mapping(_is_a(pd.DataFrame)),
    "wholes": _each(is_whole),
    "numbers": _each(_is_number),
    "texts": _each(_is_a(str)),
    "two wholes": lambda value: _each(is_whole)(value) and len(value) == 2,
    "pairs of wholes": _pairs(is_whole),
    "pairs of texts": _pairs(_is_a(str)),
    "variants": _variants,
    "variants by seed": _mapping(lambda one: isinstance(one, Mapping) and _variants(list(one.values()))),
    "texts by name": _mapping(_some(_is_a(str))),
    "lists": _mapping(lambda one: hasattr(one, "__iter__") and not isinstance(one, str)),
    "array": lambda value: hasattr(value, "__len__") or hasattr(value, "__array__"),
    "model": lambda value: _is_configured(value) and hasattr(value, "named_parameters"),
    "model or configuration": lambda value: _is_configured(value) or hasattr(value, "model_type"),
    "tokenizer": lambda value: value is None or (callable(value) and hasattr(value, "convert_tokens_to_ids")),
    "encoder": lambda value: _is_path(value) or hasattr(value, "encode"),
    "blocks": lambda value: value is None or hasattr(value, "__iter__"),
}
