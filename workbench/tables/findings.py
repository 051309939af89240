"""What scores and items say, in a few sentences of Markdown, with the numbers and their spread.

Frames in, text out; a notebook shows it with ``say``. A reading tells differences and ties, never causes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.evaluation.recovery import average_recovery
from workbench.evaluation.scores import Prefer, category_scores, headline, task_names
from workbench.statistics import holm
from workbench.tables.markup import task_label
from workbench.tables.sentences import counted, each_row, escaped, named, percent, span


def summary_reading(summary: pd.DataFrame, n: int, *, base: str = "base") -> str:
    """Say what each variant scores beside the base (``summary_table``), and what chance alone can do.

    Args:
        summary: a row a variant, a column a group of tasks.
        n: items of each task.
        base: the unpruned variant.

    >>> print(summary_reading(pd.DataFrame({"variant": ["base", "cut"], "reasoning": [1.0, 0.5]}), 50))
    - **cut**: reasoning 0.50 (base 1.00).
    <BLANKLINE>
    With 50 items a task, a difference of less than 0.20 between two scores can be chance.
    """
    table = summary.set_index("variant").drop(columns="similarity", errors="ignore")
    if words := [group for group in table if not pd.api.types.is_numeric_dtype(table[group])]:
        raise ValueError(f"summary: column {words[0]!r} must hold numbers")
    whole, lines = table.loc[base], []
    for name, row in table.drop(base).iterrows():
        each = ", ".join(f"{group} {row[group]:.2f} (base {whole[group]:.2f})" for group in table)
        lines.append(f"- {named([name])}: {each}.")
    return "\n".join([*lines, "", _chance(n)])


def recovery_reading(
    scores: pd.DataFrame,
    *,
    base: str = "base",
    items: pd.DataFrame | None = None,
    limit: int | float | None = None,
    prefer: Prefer = None,
) -> str:
    """Say what share of the base's average each variant keeps, and where it lost most (``recovery``).

    Args:
        scores: rows of ``evaluate`` with a column ``variant``.
        base: the unpruned variant.
        items: as for ``average_recovery``: adds the interval.
        limit: as for ``recovery_table``.
        prefer: as for ``headline``; scores and categories take the same metrics.
    """
    categories = category_scores(scores, prefer=prefer)
    by_category = categories.pivot(index="variant", columns="category", values="value")
    lost = (by_category.loc[base] - by_category.drop(base)).round(12)
    lines = []
    recovery = average_recovery(scores, base, items=items, prefer=prefer)
    for row in recovery[recovery["variant"] != base].to_dict("records"):
        of_variant = lost.loc[row["variant"]]
        most = named(of_variant.index[of_variant == of_variant.max()], mark="*")
        where = f"most in {most} ({-of_variant.max():+.3f})" if of_variant.max() > 0 else "in no category"
        over = counted(row["n_tasks"], "task") + (f", {row['n']:,.0f} items" if "n" in row else "")
        lines.append(
            f"- **{escaped(row['variant'])}** keeps {percent(row['recovery'], 1)}{_percent_interval(row)} of "
            f"the unpruned model's average over {over}; it lost {where}."
        )
    limit = scores.attrs.get("limit") if limit is None else limit
    if limit is not None:
        few = f"{limit:,.0f} items" if limit >= 1 else f"{percent(limit)} of the items"
        lines.append(f"\nNot the whole tasks: the first {few} of each.")
    return "\n".join(lines)


def _percent_interval(row: Mapping[str, Any]) -> str:
    """Return the interval of a share; in words where it was asked for and the items do not support one."""
    if "ci_low" not in row:
        return ""
    if np.isnan(row["ci_low"]):
        return " (too few items turned for an interval)"
    return f" (95 % interval {percent(row['ci_low'], 1)} to {percent(row['ci_high'], 1)})"


def comparison_reading(comparisons: pd.DataFrame, *, level: float = 0.05, base: str = "base") -> str:
    """Say which paired differences are unlikely to be chance (``compare_items`` of several variants).

    Pairs without the base come first: whether one method heals better than another is what most runs ask.
    All p-values of the frame are one family, corrected by Holm's method.

    Args:
        comparisons: of ``compare_items``; with ``variant`` and ``against`` each pair has its own line.
        level: below which a corrected p-value counts.
        base: the unpruned variant.

    >>> print(comparison_reading(pd.DataFrame({"p_value": [0.01, 0.5], "difference": [-0.2, 0.1]})))
    ... # doctest: +NORMALIZE_WHITESPACE
    **1 of 2** differences are clear (p < 0.05 after Holm's correction for 2 comparisons): 1 for the worse, 0
    for the better. Without the correction 1 would be, where chance alone gives up to 0.1.
    """
    table = comparisons.assign(p_adjusted=holm(comparisons["p_value"]))
    table = table.assign(task=task_names(table)) if "task" in table else table
    table["clear"] = table["p_adjusted"] < level
    table["gain"] = table["difference"] * np.where(table.get("metric", "") == "loss", -1, 1)
    lines = []
    if {"variant", "against", "task"} <= set(table):
        pairs: list[Any] = list(table.groupby(["variant", "against"], sort=False))
        lines = [_pair_line(names, part) for names, part in sorted(pairs, key=lambda pair: base in pair[0])]
    lines += [""] if lines else []
    gains, single = table.loc[table["clear"], "gain"], (table["p_value"] < level).sum()
    lines.append(
        f"**{len(gains)} of {len(table)}** differences are clear (p < {level:g} after Holm's correction for "
        f"{counted(len(table), 'comparison')}): {(gains < 0).sum()} for the worse, {(gains > 0).sum()} for "
        f"the better. Without the correction {single} would be, where chance alone gives up to "
        f"{level * len(table):.1f}."
    )
    return "\n".join(lines)


def _pair_line(pair: tuple[str, str], part: pd.DataFrame) -> str:
    """Return where the first of a pair is clearly better and worse than the second."""
    told, clear = [], part[part["clear"]]
    for word, rows in (("better", clear[clear["gain"] > 0]), ("worse", clear[clear["gain"] < 0])):
        tasks = [f"*{escaped(task_label(row['task']))}* ({_gap(row)})" for row in rows.to_dict("records")]
        told += [f"clearly {word} on {', '.join(tasks)}"] if tasks else []
    if rest := len(part) - len(clear):
        told.append(f"no clear difference on {rest} of {counted(len(part), 'task')}")
    return f"- {named(pair[:1])} against {named(pair[1:])}: {'; '.join(told)}."


def _gap(row: Mapping[str, Any]) -> str:
    return ", ".join(filter(None, [f"{row['difference']:+.3f}", span(row, "+.3f")]))


def flips_reading(flips: pd.DataFrame) -> str:
    """Say how many items each variant turned (``flip_counts``).

    >>> row = {"variant": "cut", "task": "math", "n": 50, "right_to_wrong": 20, "wrong_to_right": 1}
    >>> flips_reading(pd.DataFrame([row]))
    '- **cut**: of 50 items 20 turned from right to wrong, 1 from wrong to right.'
    """
    turned = flips.groupby("variant", sort=False)[["n", "right_to_wrong", "wrong_to_right"]].sum()
    return "\n".join(
        f"- {named([row.variant])}: of {counted(row.n, 'item')} {row.right_to_wrong} turned from right to "
        f"wrong, {row.wrong_to_right} from wrong to right."
        for row in each_row(turned.reset_index())
    )


def depth_reading(depth: pd.DataFrame, *, share: float = 0.9) -> str:
    """Say up to how many layers each task keeps a share of its score (``scores_by_depth``).

    Args:
        depth: rows without and with layers left out; of several blocks of a size the best counts.
        share: of the whole model's score.

    Raises:
        ValueError: the whole model is not among the rows.
    """
    rows = headline(depth).query("higher_is_better")
    keys = [key for key in ("task", "n_shot") if key in rows]
    several = len(keys) > 1 and rows.groupby("task")["n_shot"].nunique().max() > 1
    scores = rows.pivot_table(
        index="n_removed", columns=keys if several else "task", values="value", aggfunc="max", sort=False
    ).sort_index()
    if 0 not in scores.index:
        raise ValueError(f"depth must hold the whole model (n_removed 0), got {list(scores.index)}")
    lines = [_depth_line(name, scores[name].dropna(), share) for name in scores]
    return "\n".join([*lines, "", _chance(int(rows["n"].min()))])


def _depth_line(name: Any, scores: pd.Series, share: float) -> str:
    """Return how far one task holds; ``scores`` by the number of layers that are out."""
    label, shots = (name, "") if not isinstance(name, tuple) else (name[0], f" ({name[1]}-shot)")
    task = f"*{escaped(task_label(label))}*{shots}"
    end = f"without {scores.index[-1]} it scores {scores.iloc[-1]:.2f}"
    if scores.loc[0] <= 0:
        return f"- {task} scores nothing with the whole model, so there is nothing to keep; {end}."
    most = scores.index[scores.ge(share * scores.loc[0]).cummin()].max()
    kept = f"keeps {percent(share)} of its score with up to {counted(most, 'layer')} left out"
    if not most and len(scores) > 1:
        first = counted(scores.index[1], "layer")
        kept = f"falls below {percent(share)} of its {scores.loc[0]:.2f} already with {first} left out"
    return f"- {task} {kept}; {end}."


def _chance(n: int) -> str:
    """Say how far two shares of ``n`` items can lie apart by chance: 95 % of a normal, at one half each."""
    largest = 1.96 * np.sqrt(0.5 / n)
    less = f"a difference of less than {largest:.2f}" if largest < 1 else "any difference"
    return f"With {counted(n, 'item')} a task, {less} between two scores can be chance."
