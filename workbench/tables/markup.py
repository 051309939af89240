"""Tables as LaTeX, Markdown and HTML, with every text escaped."""

from __future__ import annotations

import html
import re
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

#: the content of ``words.toml``
WORDS = tomllib.loads(Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
_LATEX = str.maketrans(WORDS["latex"])


def to_latex(
    table: pd.DataFrame,
    *,
    caption: str | None = None,
    label: str | None = None,
    digits: int = 3,
    group: int = 0,
) -> str:
    """Return a frame as a LaTeX table with the rules of ``\\usepackage{booktabs}``; the index is not printed.

    Args:
        table: the frame; numbers are rounded, everything else is printed as escaped text. Columns in two
            levels get a head of two lines.
        caption: text above the table, escaped.
        label: for ``\\ref``.
        digits: decimals of fractional numbers.
        group: the first ``group`` columns print a value only where it changes, with a rule between groups.

    >>> print(to_latex(pd.DataFrame({"task": ["a_b"], "score": [0.25]})), end="")
    \\begin{tabular}{lr}
    \\toprule
    task & score \\\\
    \\midrule
    a\\_b & 0.250 \\\\
    \\bottomrule
    \\end{tabular}
    """
    texts = _as_text(table, digits)
    cells = texts.map(latex_text)
    if group:
        changed = texts.iloc[:, :group].ne(texts.iloc[:, :group].shift())
        cells.iloc[:, :group] = cells.iloc[:, :group].where(changed.any(axis=1), "", axis=0)
        rules = ["\\midrule\n" if i and new else "" for i, new in enumerate(changed.iloc[:, 0])]
        cells.iloc[:, 0] = [rule + text for rule, text in zip(rules, cells.iloc[:, 0], strict=True)]
    cells.columns = _latex_heads(table.columns)
    above = {} if caption is None and label is None else {"position": "t", "position_float": "centering"}
    text: str = cells.style.hide(axis="index").to_latex(
        column_format="".join("r" if right else "l" for right in _numeric(table)),
        hrules=True,
        multicol_align="c",
        caption=caption and latex_text(caption),
        label=label and re.sub(r"[^A-Za-z0-9:._-]", "-", label),
        **above,
    )
    spans = "" if table.columns.nlevels == 1 else _rules(table.columns)
    return text.replace("\\\\\n", "\\\\\n" + spans, 1)


def to_markdown(table: pd.DataFrame, *, digits: int = 3) -> str:
    """Return a frame as a Markdown table; pipes, line ends and HTML in the cells are escaped.

    >>> print(to_markdown(pd.DataFrame({"text": ["a|b"], "score": [0.25]}), digits=2), end="")
    | text | score |
    | --- | ---: |
    | a\\|b | 0.25 |
    """
    marks = ["---:" if right else "---" for right in _numeric(table)]
    head, *rows = [[_markdown(text) for text in row] for row in _rows(table, digits)]
    return "".join("| " + " | ".join(row) + " |\n" for row in (head, marks, *rows))


def to_html(table: pd.DataFrame, *, caption: str | None = None, digits: int = 3) -> str:
    """Return a frame as an HTML table; everything in it is escaped.

    >>> "<td>&lt;b&gt;</td>" in to_html(pd.DataFrame({"text": ["<b>"]}))
    True
    """
    align = [' style="text-align:right"' if numeric else "" for numeric in _numeric(table)]
    head, *rows = [list(zip(align, map(html.escape, row), strict=True)) for row in _rows(table, digits)]
    heads = "".join(f'<th scope="col"{at}>{text}</th>' for at, text in head)
    lines = ("".join(f"<td{at}>{text}</td>" for at, text in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>\n"


def text_table(frame: pd.DataFrame, *, digits: int = 3) -> Styler:
    """Return a frame of texts as a notebook shows it best: left-aligned, lines kept, everything escaped.

    Args:
        frame: texts, such as prompts and responses side by side; numbers are allowed.
        digits: of the numbers.
    """
    style = (
        frame.rename(columns=lambda name: html.escape(str(name)))
        .style.hide(axis="index")
        .format(precision=digits, escape="html")
    )
    cells = {"text-align": "left", "vertical-align": "top", "white-space": "pre-wrap"}
    return style.set_properties(**cells).set_table_styles([{"selector": "th", "props": "text-align: left"}])


def _numeric(table: pd.DataFrame) -> list[bool]:
    return [pd.api.types.is_numeric_dtype(table.iloc[:, i]) for i in range(table.shape[1])]


def _flat(column: Any) -> str:
    """Return the name of a column, its levels joined."""
    levels = column if isinstance(column, tuple) else (column,)
    return ": ".join(str(level) for level in levels if str(level))


def _latex_heads(columns: pd.Index) -> pd.Index:
    if columns.nlevels == 1:
        return columns.map(lambda name: latex_text(str(name)))
    return pd.MultiIndex.from_tuples([[latex_text(str(level)) for level in column] for column in columns])


def _rules(columns: pd.Index) -> str:
    """Return a rule under each named group of columns."""
    groups = [column[0] for column in columns]
    starts = [i for i, name in enumerate(groups) if i == 0 or name != groups[i - 1]]
    ends = [*starts[1:], len(groups)]
    spans = [(start + 1, end) for start, end in zip(starts, ends, strict=True) if groups[start]]
    return "".join(rf"\cmidrule(lr){{{first}-{last}}}" for first, last in spans) + "\n"


def _rows(table: pd.DataFrame, digits: int) -> list[list[str]]:
    """Return the head and the rows as text."""
    return [[_flat(column) for column in table], *_as_text(table, digits).to_numpy().tolist()]


def _as_text(table: pd.DataFrame, digits: int) -> pd.DataFrame:
    return pd.DataFrame({i: [_cell(v, digits) for v in table.iloc[:, i]] for i in range(table.shape[1])})


def _cell(value: Any, digits: int) -> str:
    if isinstance(value, float | np.floating):
        return "–" if np.isnan(value) else f"{value:.{digits}f}"
    return "–" if value is None or value is pd.NA else str(value)


def latex_text(text: str) -> str:
    r"""Return a text so that LaTeX prints it as it stands, on one line.

    >>> print(latex_text("50 % of a_b"))
    50 \% of a\_b
    """
    return text.translate(_LATEX)


def _markdown(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))
    return re.sub(r"\s*\n\s*", "<br>", escaped)
