"""Tables as LaTeX, Markdown and HTML, with every text escaped."""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from pandas.api.types import is_float
from pandas.io.formats.style import Styler

from workbench.checks import one_of
from workbench.places import toml_beside

#: the content of ``words.toml``
WORDS = toml_beside(__file__, "words")
_P = {"p_value", "p_adjusted"}
#: rows; a table of more has a height of its own
_LONG = 25
#: signs that are printed as another one where two follow each other
_JOINED = "-',"


def to_latex(
    table: pd.DataFrame,
    *,
    caption: str | None = None,
    label: str | None = None,
    digits: int | None = None,
    group: int = 0,
    best: Iterable[str] = (),
) -> str:
    """Return a frame as a LaTeX table with the rules of ``\\usepackage{booktabs}``; the index is not printed.

    Args:
        table: the frame; numbers are rounded, everything else is printed as escaped text. Columns in two
            levels get a head of two lines.
        caption: text above the table, escaped; what the table says of itself (``attrs["note"]``) follows it.
        label: for ``\\ref``.
        digits: decimals of fractional numbers; None takes those of the table (``attrs["digits"]``), or 3.
        group: the first ``group`` columns print a value only where it changes, with a rule between groups.
        best: columns whose best value is bold, within each group of several rows; the largest, or the
            smallest where the name ends in "↓".

    Raises:
        ValueError: for a column in ``best`` that the table does not have.

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
    for column in best:
        place = list(table.columns).index(one_of(column, list(table.columns), "best"))
        marked = _best(texts[place], texts[0] if group else texts[0] * 0, str(column).endswith("↓"))
        cells[place] = cells[place].where(~marked, r"\textbf{" + cells[place] + "}")
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
        caption=caption and latex_text(" ".join([caption, *_note(table)])),
        label=label and re.sub(r"[^A-Za-z0-9:._-]", "-", label),
        **above,
    )
    spans = "" if table.columns.nlevels == 1 else _rules(table.columns)
    return text.replace("\\\\\n", "\\\\\n" + spans, 1)


def to_markdown(table: pd.DataFrame, *, digits: int | None = None) -> str:
    """Return a frame as a Markdown table; pipes, line ends, formulas and HTML in the cells are escaped.

    What the table says of itself (``attrs["note"]``) stands below it; ``digits`` as for ``to_latex``.

    >>> print(to_markdown(pd.DataFrame({"text": ["a|b"], "score": [0.25]}), digits=2), end="")
    | text | score |
    | --- | ---: |
    | a\\|b | 0.25 |
    """
    marks = ["---:" if right else "---" for right in _numeric(table)]
    head, *rows = [[_markdown(text) for text in row] for row in _rows(table, digits)]
    lines = ["| " + " | ".join(row) + " |\n" for row in (head, marks, *rows)]
    return "".join([*lines, *(f"\n{_markdown(note)}\n" for note in _note(table))])


def to_html(table: pd.DataFrame, *, caption: str | None = None, digits: int | None = None) -> str:
    """Return a frame as an HTML table; everything in it is escaped.

    What the table says of itself (``attrs["note"]``) follows the caption; ``digits`` as for ``to_latex``.

    >>> "<td>&lt;b&gt;</td>" in to_html(pd.DataFrame({"text": ["<b>"]}))
    True
    """
    align = [' style="text-align:right"' if numeric else "" for numeric in _numeric(table)]
    head, *rows = [list(zip(align, map(html.escape, row), strict=True)) for row in _rows(table, digits)]
    left = ' style="text-align:left"'
    heads = "".join(f'<th scope="col"{at or left}>{text}</th>' for at, text in head)
    lines = ("".join(f"<td{at}>{text}</td>" for at, text in row) for row in rows)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    above = " ".join([*([caption] if caption else []), *_note(table)])
    title = f"<caption>{html.escape(above)}</caption>" if above else ""
    return f"<table>{title}<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>\n"


def text_table(frame: pd.DataFrame, *, digits: int = 3) -> Styler:
    """Return a frame as a notebook shows it best: texts to the left, their lines kept, numbers to the right.

    Columns and tasks are named in words, an interval stands in one column, and everything is escaped.

    Args:
        frame: texts, such as prompts and responses side by side, and numbers, lists and what else a cell can
            hold. The index is not shown.
        digits: of the numbers.
    """
    told = _in_words(frame, digits)
    cells = _as_text(told, digits).map(html.escape)
    style = cells.style.hide(axis="index").relabel_index([html.escape(_flat(name)) for name in told], axis=1)
    # a long table scrolls in itself, so that its head stays in sight; dollars in a text are no formula
    long = ' style="display: block; max-height: 40em; overflow: auto"' if len(cells) > _LONG else ""
    style = style.set_table_attributes(f'class="tex2jax_ignore mathjax_ignore"{long}')
    texts = {*_intervals(frame), *(WORDS["columns"][name] for name in _P)}  # of numbers
    right = [i for i, numbers in enumerate(_numeric(told)) if numbers or told.columns[i] in texts]
    looks = WORDS["looks"] | {f"th.col{i}, td.col{i}": "text-align: right" for i in right}
    return style.set_table_styles([{"selector": one, "props": look} for one, look in looks.items()])


def _intervals(frame: pd.DataFrame) -> dict[str, str]:
    """Return what the intervals of a frame are called, and the beginning of the names of their two ends."""
    names = [name for name in frame if isinstance(name, str)]
    ends = [name[:-4] for name in names if name.endswith("_low") and f"{name[:-4]}_high" in names]
    return {"95 % interval" if len(ends) == 1 else f"95 % interval, {of}": of for of in ends}


def _in_words(frame: pd.DataFrame, digits: int) -> pd.DataFrame:
    """Return a frame with columns and tasks named in words, intervals in one column, "yes" and "no"."""
    if frame.columns.nlevels > 1 or not frame.columns.is_unique:
        return frame
    told = frame.copy()
    for name, of in _intervals(frame).items():
        ends = [[_cell(end, digits) for end in frame[f"{of}_{side}"]] for side in ("low", "high")]
        told[f"{of}_low"] = ["–" if "–" in pair else " to ".join(pair) for pair in zip(*ends, strict=True)]
        told = told.drop(columns=f"{of}_high").rename(columns={f"{of}_low": name})
    if "task" in told:
        told["task"] = told["task"].map(task_label, na_action="ignore")
    for name in told.select_dtypes(bool):
        told[name] = told[name].map({True: "yes", False: "no"})
    for name in _P & {*told}:
        told[name] = [f"< {10**-digits:.{digits}f}" if p < 10**-digits else p for p in told[name]]
    words = WORDS["columns"]
    return told.rename(
        columns=lambda name: words.get(name, name.replace("_", " ")) if isinstance(name, str) else name
    )


def task_label(name: str) -> str:
    """Return what the papers call a task, else its name in words, with its shots where they are given.

    >>> task_label("arc_easy, 5-shot"), task_label("demo_yes_no")
    ('ARC-E, 5-shot', 'demo yes no')
    """
    task, comma, shots = name.partition(", ")
    return str(WORDS["tasks"].get(task, task.replace("_", " "))) + comma + shots


def _numeric(table: pd.DataFrame) -> list[bool]:
    return [pd.api.types.is_numeric_dtype(table.iloc[:, i]) for i in range(table.shape[1])]


def _flat(column: Any) -> str:
    """Return the name of a column, its levels joined."""
    levels = column if isinstance(column, tuple) else (column,)
    return ": ".join(str(level) for level in levels if str(level))


def _latex_heads(columns: pd.Index) -> pd.Index:
    if columns.nlevels == 1:
        return pd.Index([latex_text(str(name)) for name in columns])
    return pd.MultiIndex.from_tuples([[latex_text(str(level)) for level in column] for column in columns])


def _rules(columns: pd.Index) -> str:
    """Return a rule under each named group of columns."""
    groups = [column[0] for column in columns]
    starts = [i for i, name in enumerate(groups) if i == 0 or name != groups[i - 1]]
    ends = [*starts[1:], len(groups)]
    spans = [(start + 1, end) for start, end in zip(starts, ends, strict=True) if groups[start]]
    return "".join(rf"\cmidrule(lr){{{first}-{last}}}" for first, last in spans) + "\n"


def _note(table: pd.DataFrame) -> list[str]:
    """Return what a table says of itself, at most one text."""
    return [str(table.attrs["note"])] if table.attrs.get("note") else []


def _best(texts: pd.Series, groups: pd.Series, smallest: bool) -> pd.Series:
    """Return which texts begin with the best number of their group, of those with several numbers."""
    numbers = texts.str.extract(r"^([-+]?\d+(?:\.\d+)?)", expand=False).astype(float)
    of_group = numbers.groupby(groups)
    return (numbers == of_group.transform("min" if smallest else "max")) & (of_group.transform("count") > 1)


def _rows(table: pd.DataFrame, digits: int | None) -> list[list[str]]:
    """Return the head and the rows as text."""
    return [[_flat(column) for column in table], *_as_text(table, digits).to_numpy().tolist()]


def _as_text(table: pd.DataFrame, digits: int | None) -> pd.DataFrame:
    """Return the cells as texts, with rows and columns numbered: names may occur twice."""
    digits = table.attrs.get("digits", 3) if digits is None else digits
    columns = {i: [_cell(value, digits) for value in table.iloc[:, i]] for i in range(table.shape[1])}
    return pd.DataFrame(columns, index=range(len(table)), dtype=object)


def _cell(value: Any, digits: int) -> str:
    if value is None or value is pd.NA or value is pd.NaT or (is_float(value) and np.isnan(value)):
        return "–"
    text = f"{value:z.{digits}f}" if is_float(value) else str(value)
    return text.encode(errors="backslashreplace").decode()  # half a pair of surrogates is no text


def latex_text(text: str) -> str:
    r"""Return a text so that pdfLaTeX prints it as it stands, on one line, anywhere in a table or a sentence.

    The result is ASCII. What LaTeX has no sign for (other scripts, emoji, control characters) is printed by
    its number in Unicode.

    >>> print(latex_text("50 % of a_b ≤ é 日"))
    50 \% of a\_b $\leq$ \'{e} \texttt{U+65E5}
    """
    signs = unicodedata.normalize("NFC", text)
    pairs = zip(signs, " " + signs, strict=False)
    apart = ("{}" if sign in _JOINED and sign == before else "" for sign, before in pairs)
    return "".join(gap + _latex_sign(sign) for gap, sign in zip(apart, signs, strict=True))


def _latex_sign(sign: str) -> str:
    if sign in WORDS["latex"]:
        return str(WORDS["latex"][sign])
    if " " <= sign <= "~":
        return sign
    parts = unicodedata.normalize("NFD", sign)
    letter, marks = parts[0], parts[1:]
    if letter.isascii() and letter.isalpha() and marks and set(marks) <= set(WORDS["accents"]):
        for mark in marks:
            letter = f"{WORDS['accents'][mark]}{{{letter}}}"
        return letter
    return rf"\texttt{{U+{ord(sign):04X}}}"


def _markdown(text: str) -> str:
    # a backslash by its number: before a bracket two of them begin a formula in Jupyter
    escaped = html.escape(text, quote=False).replace("\\", "&#92;")
    escaped = re.sub(r"([`*_\[\]|$~])", r"\\\1", escaped)
    return re.sub(r"\s*[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]\s*", "<br>", escaped)
