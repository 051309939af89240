"""Checks that every room shares: whole numbers, one of several, frames with the right columns."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

#: most characters quoted of another library's message
_LONGEST = 300
#: how libraries say that a disk is full: Python and safetensors, SQLite, torch
_FULL = "No space left|File too large|quota exceeded|disk is full|inline_container|iostream error"


class NoRoom(ValueError):
    """A disk is full: no fault of the call, which goes on where it was when there is room."""


def is_full(error: BaseException | None) -> bool:
    """Return whether an error, or one that led to it, says that a disk is full."""
    while error is not None:
        if isinstance(error, NoRoom) or re.search(_FULL, str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def is_panic(error: BaseException) -> bool:
    """Return whether an error is one of a Rust library that gave up, which Python knows under no class."""
    return type(error).__name__ == "PanicException"


def read_whole(path: Path) -> str:
    """Return the text of a regular file: a pipe or a device in its place might never end.

    Raises:
        OSError: for anything else, and as reading a file does.
    """
    if path.exists() and not path.is_file():
        raise OSError("it is no regular file, but a folder, a pipe or a device")
    return path.read_text(encoding="utf-8")


def check_writable(name: str, path: Path) -> None:
    """Refuse a path that cannot be written, before the work and not after it.

    Raises:
        ValueError: naming the argument, the path and the file or folder that stands in the way.
    """
    nearest = next(folder for folder in path.absolute().parents if folder.exists())
    if not nearest.is_dir():
        raise ValueError(f"{name} cannot be written at {path}: {nearest} is no folder")
    if shut := [one for one in (nearest, path) if one.exists() and not os.access(one, os.W_OK)]:
        raise ValueError(f"{name} cannot be written at {path}: {shut[0]} may not be written to")


def is_whole(value: Any) -> bool:
    """Return whether a value is a whole number, of Python or numpy; ``True`` is none."""
    import numpy as np

    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def whole_number(value: Any, name: str, least: int = 1, most: int | None = None) -> int:
    """Return a whole number within its bounds.

    Raises:
        ValueError: naming the argument, what is allowed and what came.

    >>> whole_number(0, "n")
    Traceback (most recent call last):
    ValueError: n must be a whole number >= 1, got 0
    """
    if is_whole(value) and value >= least and (most is None or value <= most):
        return int(value)
    allowed = f">= {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{name} must be a whole number {allowed}, got {value!r}")


def one_of(value: Any, allowed: Iterable[Any], name: str) -> Any:
    """Return a value that is one of those allowed.

    Raises:
        ValueError: naming the argument, what is allowed and what came.

    >>> one_of("warm", ("cosine", "linear"), "schedule")
    Traceback (most recent call last):
    ValueError: schedule must be one of cosine, linear, got 'warm'
    """
    allowed = list(allowed)
    if value in allowed:
        return value
    raise ValueError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def near(value: Any, allowed: Iterable[Any]) -> str:
    """Return a question whether one of those allowed was meant, "" where none is like what came.

    >>> near("n_text", ["n_texts", "seed"])
    ' (did you mean n_texts?)'
    """
    found = difflib.get_close_matches(str(value), [str(one) for one in allowed], n=1, cutoff=0.75)
    return f" (did you mean {found[0]}?)" if found else ""


def listed(values: Any, name: str, what: str = "text") -> list[Any]:
    """Return values as a list; refuse one text, a mapping, a frame, what has no length, and nothing.

    >>> listed(("a", "b"), "texts")
    ['a', 'b']
    """
    several = hasattr(values, "__len__") and not isinstance(values, str | bytes | Mapping | Set)
    if not several or hasattr(values, "columns") or not getattr(values, "ndim", 1) or not len(values):
        got = f"{type(values).__name__} {values!r:.60}".replace("\n", " ")
        raise ValueError(f"{name} must be a list of at least one {what} (of a frame one column), got {got}")
    return list(values)


def some_of(values: Any, allowed: Iterable[Any], name: str) -> list[Any]:
    """Return one value or several as a list, refusing none and those that are not allowed.

    >>> some_of("pdf", ["pdf", "png"], "formats")
    ['pdf']
    """
    chosen, known = [values] if isinstance(values, int | str) else list(values), list(allowed)
    if not chosen or any(value not in known for value in chosen):
        raise ValueError(f"{name} must be some of {', '.join(map(str, known))}, got {chosen}")
    return chosen


def checked(frame: Any, columns: Iterable[str], what: str, *, unique: Iterable[str] = ()) -> pd.DataFrame:
    """Return the frame when it has the columns, at least one row, and each value of ``unique`` once.

    ``unique`` is a column, or several whose values together occur once.

    Raises:
        ValueError: naming the missing columns and those that came, or the value that occurs again.
    """
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{what} must be a pandas DataFrame, got {type(frame).__name__}")
    columns = list(columns)
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{what} needs the columns {columns}; missing {missing}, got {list(frame.columns)}")
    if frame.empty:
        raise ValueError(f"{what} must have at least one row, got an empty frame")
    keys = [unique] if isinstance(unique, str) else list(unique)
    if keys and (twice := frame.duplicated(keys)).any():
        again = tuple(frame.loc[twice, keys].astype(object).iloc[0])
        each, got = (f"({', '.join(keys)})", again) if len(keys) > 1 else (keys[0], again[0])
        raise ValueError(f"{what} must hold each {each} once, got {got!r} again")
    return frame


def printable(text: Any) -> str:
    """Return a text with each character that a terminal would act on, such as an escape, as Python spells it.

    >>> print(printable("red: \x1b[31m"))
    red: \\x1b[31m
    """
    plain = (c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in str(text))
    return "".join(plain)


def first_line(error: BaseException) -> str:
    """Return an error's message in one line, its kind where it has none."""
    lines = (line.strip() for line in str(error).splitlines() if line.strip())
    return printable(next(lines, type(error).__name__))


@contextmanager
def told(what: str, *kinds: type[Exception], hint: str = "") -> Iterator[None]:
    """Turn a library's errors of these kinds into a ValueError of one line that begins with `what`.

    Who is ready for a ValueError is so for values nested too deep to be read, which Python tells otherwise,
    and who is ready for any, for a library in Rust that gave up.
    """
    caught = (*kinds, RecursionError) if ValueError in kinds else kinds
    try:
        yield
    except BaseException as error:
        if not isinstance(error, caught) and not (Exception in kinds and is_panic(error)):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = printable(" ".join(lines[:2])) if lines and lines[0].endswith(":") else first_line(error)
        kind = "" if isinstance(error, ValueError | OSError | ImportError) else f"{type(error).__name__}: "
        raise ValueError(f"{what}: {kind}{said[:_LONGEST]}{hint}") from error
