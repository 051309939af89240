"""The parts of a reading: numbers with their spread, names as Markdown shows them, and how it is shown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import pandas as pd


def say(text: str) -> None:
    """Show Markdown below the cell of a notebook."""
    from IPython import display

    page: Any = display  # its functions have no types
    page.display(page.Markdown(text))


def each_row(frame: pd.DataFrame) -> Iterable[Any]:
    """Return the rows as named tuples."""
    rows: Iterable[Any] = frame.itertuples(index=False)
    return rows


def interval(row: Any, form: str = ".3f", of: str = "ci") -> str:
    """Return the interval in brackets, with the number of texts where known; "" where there is none.

    >>> interval({"ci_low": 0.1, "ci_high": 0.3}, ".1f"), interval({"lost_low": None}, of="lost")
    (' (95 % interval 0.1 to 0.3)', '')
    """
    ends = span(row, form, of)
    texts = f", {row['n_texts']:.0f} texts" if "n_texts" in row else ""
    return ends and f" ({ends}{texts})"


def span(row: Any, form: str = ".3f", of: str = "ci") -> str:
    """Return the interval as words; "" where there is none."""
    if f"{of}_low" not in row or pd.isna(row[f"{of}_low"]):
        return ""
    return f"95 % interval {row[f'{of}_low']:{form}} to {row[f'{of}_high']:{form}}"


def percent(share: float, digits: int = 0) -> str:
    """Return a share as the readings print it, 0.5 as "50 %"."""
    return f"{100 * share:.{digits}f} %"


def counted(n: int, what: str) -> str:
    """Return a number of things, "1 item" or "2 items"."""
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def named(names: Iterable[Any], mark: str = "**") -> str:
    """Return names from data, marked and joined by "and"."""
    return " and ".join(f"{mark}{escaped(name)}{mark}" for name in names)


def escaped(text: Any) -> str:
    """Return a text from data so that Markdown shows it as it stands, on one line."""
    return re.sub(r"([\\`*_\[\]|#<>$~&])", r"\\\1", " ".join(str(text).split()))
