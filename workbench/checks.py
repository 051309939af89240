"""Checks that every room shares: whole numbers, one of several, frames with the right columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import pandas as pd

#: most characters quoted of another library's message
_LONGEST = 300


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


def first_line(error: BaseException) -> str:
    """Return an error's message in one line, its kind where it has none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


@contextmanager
def told(what: str, *kinds: type[Exception], hint: str = "") -> Iterator[None]:
    """Turn a library's errors of these kinds into a ValueError of one line that begins with `what`.

    Who is ready for a ValueError is so for values nested too deep to be read, which Python tells otherwise.
    """
    caught: tuple[type[Exception], ...] = (*kinds, RecursionError) if ValueError in kinds else kinds
    try:
        yield
    except caught as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        said = " ".join(lines[:2]) if lines and lines[0].endswith(":") else first_line(error)
        kind = "" if isinstance(error, ValueError | OSError | ImportError) else f"{type(error).__name__}: "
        raise ValueError(f"{what}: {kind}{said[:_LONGEST]}{hint}") from error


def checked_interval(confidence: Any, seed: Any) -> None:
    """Raise a ValueError unless these are a coverage and a seed: to call before anything runs for hours.

    >>> checked_interval(95, 0)
    Traceback (most recent call last):
    ValueError: confidence must be between 0 and 1, got 95
    """
    if not isinstance(confidence, Real) or not 0 < float(confidence) < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence!r}")
    whole_number(seed, "seed", least=0)
