"""Tables as LaTeX, Markdown and HTML, with every text escaped."""

from __future__ import annotations

import html
import re
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "≥": r"$\geq$",
    "ρ": r"$\rho$",
    "↓": r"$\downarrow$",
    "↑": r"$\uparrow$",
    **{sign: "\\" + sign for sign in "&%$#_{}"},
}


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
        caption: plain text above the table, escaped.
        label: for ``\\ref``.
        digits: decimals of fractional numbers.
        group: the first ``group`` columns print a value only where it changes, with a rule between groups.
    """
    cells = _as_text(table, digits)
    lines, above = [], None
    for row in cells.itertuples(index=False):
        changed = above is None or any(row[i] != above[i] for i in range(group))
        if group and above is not None and row[0] != above[0]:
            lines.append(r"\midrule")
        shown = [text if changed or i >= group else "" for i, text in enumerate(row)]
        lines.append(" & ".join(latex_text(text) for text in shown) + r" \\")
        above = row
    align = "".join("r" if right else "l" for right in _numeric(table))
    body = [
        rf"\begin{{tabular}}{{{align}}}",
        r"\toprule",
        *_latex_heads(table),
        r"\midrule",
        *lines,
        r"\bottomrule",
        r"\end{tabular}",
    ]
    if caption is None and label is None:
        return "\n".join(body) + "\n"
    above_table = [r"\begin{table}[t]", r"\centering"]
    if caption is not None:
        above_table.append(rf"\caption{{{latex_text(caption)}}}")
    if label is not None:
        above_table.append(rf"\label{{{re.sub(r'[^A-Za-z0-9:._-]', '-', label)}}}")
    return "\n".join([*above_table, *body, r"\end{table}"]) + "\n"


def to_markdown(table: pd.DataFrame, *, digits: int = 3) -> str:
    """Return a frame as a Markdown table; pipes, line ends and HTML in the cells are escaped."""
    cells = _as_text(table, digits)
    marks = ["---:" if right else "---" for right in _numeric(table)]
    rows = [[_flat(column) for column in table.columns], *cells.itertuples(index=False)]
    lines = ["| " + " | ".join(_markdown(text) for text in row) + " |" for row in rows]
    return "\n".join([lines[0], "| " + " | ".join(marks) + " |", *lines[1:]]) + "\n"


def to_html(table: pd.DataFrame, *, caption: str | None = None, digits: int = 3) -> str:
    """Return a frame as an HTML table; everything in it is escaped."""
    cells = _as_text(table, digits)
    style = [' style="text-align:right"' if numeric else "" for numeric in _numeric(table)]
    head = "".join(
        f'<th scope="col"{at}>{html.escape(_flat(name))}</th>' for name, at in zip(table, style, strict=True)
    )
    rows = [
        "<tr>"
        + "".join(f"<td{at}>{html.escape(text)}</td>" for text, at in zip(row, style, strict=True))
        + "</tr>"
        for row in cells.itertuples(index=False)
    ]
    title = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return f"<table>{title}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>\n"


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


def _latex_heads(table: pd.DataFrame) -> list[str]:
    """Return the line of column names; columns in two levels get one of groups, ruled, above it."""
    if table.columns.nlevels == 1:
        return [" & ".join(latex_text(str(column)) for column in table.columns) + r" \\"]
    runs = [(name, len(list(part))) for name, part in groupby(column[0] for column in table.columns)]
    ends = np.cumsum([length for _, length in runs])
    groups = [rf"\multicolumn{{{length}}}{{c}}{{{latex_text(str(name))}}}" for name, length in runs]
    rules = [
        rf"\cmidrule(lr){{{end - length + 1}-{end}}}"
        for (name, length), end in zip(runs, ends, strict=True)
        if name
    ]
    names = [latex_text(_flat(column[1:])) for column in table.columns]
    return [" & ".join(groups) + r" \\", "".join(rules), " & ".join(names) + r" \\"]


def _as_text(table: pd.DataFrame, digits: int) -> pd.DataFrame:
    return pd.DataFrame({i: [_cell(v, digits) for v in table.iloc[:, i]] for i in range(table.shape[1])})


def _cell(value: Any, digits: int) -> str:
    if value is None or value is pd.NA or (isinstance(value, float | np.floating) and np.isnan(value)):
        return "–"
    if isinstance(value, float | np.floating):
        return f"{value:.{digits}f}"
    return str(value)


def latex_text(text: str) -> str:
    """Return a text so that LaTeX prints it as it stands, on one line."""
    return "".join(_LATEX.get(sign, sign) for sign in text).replace("\n", " ")


def _markdown(text: str) -> str:
    escaped = re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(text, quote=False))
    return re.sub(r"\s*\n\s*", "<br>", escaped)
