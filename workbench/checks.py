"""Checks that every room shares: frames with the right columns, whole numbers, ids that occur once."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pandas as pd


def checked(frame: Any, columns: Iterable[str], what: str) -> pd.DataFrame:
    """Return the frame when it has the columns and at least one row.

    Raises:
        ValueError: naming the missing columns and those that came.
    """
    if not isinstance(frame, pd.DataFrame):
        raise ValueError(f"{what} must be a pandas DataFrame, got {type(frame).__name__}")
    columns = list(columns)
    missing = [column for column in columns if column not in frame.columns]
    if missing:
        raise ValueError(f"{what} needs the columns {columns}; missing {missing}, got {list(frame.columns)}")
    if frame.empty:
        raise ValueError(f"{what} must have at least one row, got an empty frame")
    return frame
