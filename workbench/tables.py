"""Tables: frames into the shape a paper prints, and into LaTeX, Markdown or HTML. Text is escaped in each."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler

from workbench.figures import checked
from workbench.outcomes import score_intervals
from workbench.scores import headline, recovery
from workbench.statistics import bootstrap_interval

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


def recovery_table(
    scores: pd.DataFrame, variants: pd.DataFrame | None = None, *, base: str = "base"
) -> pd.DataFrame:
    """Return one row a variant: its scores, their average, its share of the base's (SDD table 8).

    Args:
        scores: rows of ``evaluate`` with a column ``variant``. Only tasks where higher is better enter, one
            metric a task; shares are printed as percentages.
        variants: what else to print of a variant: ``variant`` and any columns, such as ``block size``,
            ``model savings``, ``method``, ``dataset``, in the order wanted.
        base: the unpruned variant, to which recovery is relative.

    Returns:
        Columns: ``variant`` (or those of ``variants``), a column a task (``task (n-shot)``), ``Avg. score``,
        ``Avg. recovery (%)``; numbers in percent, variants in the order of the scores.

    Raises:
        ValueError: when columns are missing, the base is, variants were not scored on the same tasks (an
            average over other tasks would be a plausible wrong number), or ``variants`` does not name each
            variant once.
    """
    checked(scores, ["variant", "task", "metric", "value"], "scores")
    averages = recovery(scores, base).set_index("variant")
    rows = headline(scores)
    if "higher_is_better" in rows:
        rows = rows[rows["higher_is_better"].astype(bool)]
    rows = rows.assign(column=_task_labels(rows))
    table = 100 * rows.pivot(index="variant", columns="column", values="value")
    table = table.loc[averages.index, [*dict.fromkeys(rows["column"])]]
    table["Avg. score"] = 100 * averages["average"]
    table["Avg. recovery (%)"] = 100 * averages["recovery"]
    table.columns.name = None
    return _described(table, variants)


def summary_table(
    scores: pd.DataFrame,
    groups: Mapping[str, Sequence[str]],
    *,
    similarities: pd.DataFrame | None = None,
    intervals: bool = False,
) -> pd.DataFrame:
    """Return one row a variant and one column a group of tasks: the mean score, as measured.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``.
        groups: column name -> its tasks, such as ``{"reasoning": ["demo_math"]}``. The tasks of a group must
            share a unit, so no accuracies together with perplexities.
        similarities: frame ``variant, similarity``, one row a response (to the base's); adds ``similarity``.
        intervals: give ``value ± half of the 95 % interval`` as text instead of numbers.

    Returns:
        ``variant``, the groups, and ``similarity`` (NaN for a variant without responses, such as the base).

    Raises:
        ValueError: for missing columns, a variant that lacks a task of a group, or a group of mixed units.
    """
    rows = headline(checked(scores, ["variant", "task", "metric", "value"], "scores"))
    names = [*dict.fromkeys(rows["variant"])]
    values, halves = pd.DataFrame(index=names), pd.DataFrame(index=names)
    for group, tasks in groups.items():
        picked = rows[rows["task"].isin(tasks)]
        _check_group(group, list(tasks), picked, names)
        values[group] = picked.groupby("variant")["value"].mean()
        halves[group] = _half_intervals(picked)
    if similarities is not None:
        known = checked(similarities, ["variant", "similarity"], "similarities").dropna(subset="similarity")
        of_variant = known.groupby("variant")["similarity"]
        values["similarity"] = of_variant.mean()
        halves["similarity"] = of_variant.agg(lambda these: -np.subtract(*bootstrap_interval(these)) / 2)
    table = values.combine(halves, _with_half)[list(values)] if intervals else values
    return table.rename_axis("variant").reset_index()


def calibration_table(ablation: pd.DataFrame) -> pd.DataFrame:
    """Return the frame of ``calibration_ablation`` as SDD table 7 prints it, ready for ``to_latex``.

    Raises:
        ValueError: for missing columns.
    """
    frame = checked(ablation, ["size", "removed", "calibration", "distance"], "ablation")
    names = {
        "size": "Block size",
        "removed": "Removed layers",
        "calibration": "Dataset",
        "distance": "Score (avg. dist.)",
    }
    return frame[[*names]].rename(columns=names)


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


def _task_labels(rows: pd.DataFrame) -> list[str]:
    if "n_shot" not in rows:
        return [str(task) for task in rows["task"]]
    return [f"{task} ({shots}-shot)" for task, shots in zip(rows["task"], rows["n_shot"], strict=True)]


def _described(table: pd.DataFrame, variants: pd.DataFrame | None) -> pd.DataFrame:
    if variants is None:
        return table.reset_index()
    notes = checked(variants, ["variant"], "variants")
    if sorted(notes["variant"]) != sorted(table.index):
        raise ValueError(
            f"variants must name each scored variant once: {list(table.index)}, got {list(notes['variant'])}"
        )
    return notes.merge(table, on="variant", validate="one_to_one").drop(columns="variant")


def _check_group(group: str, tasks: list[str], picked: pd.DataFrame, names: list[Any]) -> None:
    for name in names:
        there = list(picked.loc[picked["variant"] == name, "task"])
        if sorted(there) != sorted(tasks):
            raise ValueError(
                f"group {group!r} needs one score of each of {tasks}; variant {name!r} has {there}"
            )
    if "higher_is_better" in picked and picked["higher_is_better"].nunique() > 1:
        raise ValueError(f"group {group!r} must hold tasks of one unit, got {sorted(set(picked['metric']))}")


def _half_intervals(picked: pd.DataFrame) -> pd.Series:
    """Return half the 95 % interval of each variant's mean over tasks; tasks err independently."""
    if "stderr" not in picked:
        return pd.Series(np.nan, index=picked["variant"].unique())
    found = score_intervals(picked)
    halves = ((found["high"] - found["low"]) / 2).groupby(found["variant"])
    return halves.agg(lambda these: np.sqrt((these.to_numpy() ** 2).sum()) / len(these))


def _with_half(values: pd.Series, halves: pd.Series) -> pd.Series:
    texts = [
        "–" if np.isnan(value) else f"{value:.3f}" if np.isnan(half) else f"{value:.3f} ± {half:.3f}"
        for value, half in zip(values, halves, strict=True)
    ]
    return pd.Series(texts, index=values.index)


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
