"""What scores say: one metric a task, categories, spreads. Frames only, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from workbench.checks import checked, one_of
from workbench.evaluation.suites import BLIMP_GROUPS, HEADLINE, PREFERRED

#: which metric goes before others: of each task that has it, or of the tasks that are named
Prefer: TypeAlias = str | Mapping[str, str] | None
#: the order in which ITR reports its categories
CATEGORY_ORDER = ("reasoning", "language", "knowledge", "multilingual")
_Z = 1.959964  # 95 % of a normal distribution

#: metrics that the harness gives in hundredths
_HUNDREDTHS = {"bleu", "chrf", "bleu_max", "rouge1_max", "rouge2_max", "rougeL_max"}
#: what ``prefer`` may be whatever the tasks are
_WORDS = ("strict", "flexible", "acc", "acc_norm")


def headline(scores: pd.DataFrame, *, prefer: Prefer = None) -> pd.DataFrame:
    """One row a task (and variant, and number of shots): the metric that papers report for it.

    Groups stand without their parts. ARC-Challenge and HellaSwag are shown by ``acc_norm`` and GSM8K by
    strict match, as on the OpenLLM Leaderboard v1 (SDD table 8); every other task by exact match, accuracy or
    perplexity, whichever it has first. BLEU, chrF and the like, which the harness gives in hundredths, are
    shares between 0 and 1 here, as the others.

    Args:
        scores: rows of ``evaluate``, with a column ``variant`` when there are several.
        prefer: what goes before these, for each task that has it: "strict" or "flexible" (which answers an
            exact match counts: those in the asked form, or also those in another), "acc" or "acc_norm", or
            the name of any metric; or a mapping from task to one of these.

    Raises:
        ValueError: for a ``prefer`` that no task has, or a task that is not there or has no such metric.

    >>> scores = pd.DataFrame({"task": "gsm8k", "value": [0.2, 0.3]})
    >>> scores["metric"] = ["exact_match,strict-match", "exact_match,flexible-extract"]
    >>> headline(scores)["value"].tolist(), headline(scores, prefer="flexible")["value"].tolist()
    ([0.2], [0.3])
    """
    scores = standing(scores)
    checked(scores, ["task", "metric"], "scores")
    check_prefer(scores, prefer)
    rows = one_metric(scores, prefer=prefer).reset_index(drop=True)
    numbers = [name for name in ("value", "stderr") if name in rows]
    return rows.assign(**rows[numbers].mul(unit_of(rows["metric"]), axis=0))


def unit_of(metrics: pd.Series) -> pd.Series:
    """Return what the values of metrics are multiplied by to be shares: 0.01 or 1."""
    return metrics.str.split(",").str[0].isin(_HUNDREDTHS).map({True: 0.01, False: 1.0})


def standing(scores: pd.DataFrame) -> pd.DataFrame:
    """Return what stands on its own: no part of a group, which is counted in the group's average."""
    return scores[scores["parent"].isna() | (scores["parent"] == "")] if "parent" in scores else scores


def check_prefer(scores: pd.DataFrame, prefer: Prefer) -> None:
    """Refuse a preference that would change nothing: a word that is wrong is not noticed otherwise."""
    if prefer is not None and not isinstance(prefer, str | Mapping):
        raise ValueError(f"prefer must be a word, a metric or a mapping of tasks to them, got {prefer!r}")
    for task, wanted in prefer.items() if isinstance(prefer, Mapping) else ():
        metrics = set(scores.loc[scores["task"] == task, "metric"])
        if not any(_is_metric(metric, wanted) for metric in metrics):
            raise ValueError(f"prefer must name a metric, {sorted(metrics)} of {task!r}, got {wanted!r}")
    if isinstance(prefer, str):
        one_of(prefer, sorted({*_WORDS, *scores.get("metric", ())}), "prefer")


def _is_metric(metric: str, wanted: str) -> bool:
    """Return whether a metric is the one wanted, by name or by the first word of its filter."""
    return metric == wanted or ("," in metric and metric.split(",")[1].split("-")[0] == wanted)


def blimp_groups(scores: pd.DataFrame) -> pd.DataFrame:
    """BLiMP in the 13 groups of ITR (appendix C): the mean accuracy over the paradigms of each.

    Every paradigm counts alike, as in the harness's own average. ``tough_vs_raising_1`` and ``_2`` are in
    none of ITR's tables, so the groups hold 65 of the 67 paradigms.

    Args:
        scores: rows of ``evaluate(..., "blimp")``, with a column ``variant`` when there are several.

    Returns:
        The columns of ``scores``; ``task`` is the group's name ("blimp_agreement"), ``parent`` is "blimp",
        ``stderr`` that of a mean of independent paradigms, ``n`` and ``truncated`` are sums over them.

    Raises:
        ValueError: a paradigm is not among the scores.
    """
    groups = {f"blimp_{name}": f"blimp_{group}" for group, names in BLIMP_GROUPS.items() for name in names}
    keys = [key for key in ("variant", "n_shot") if key in scores]
    rows = scores[(scores["metric"] == "acc") & scores["task"].isin(groups)]
    if rows.empty:
        raise ValueError("scores must hold the tasks of blimp, got none of them")
    parts = [
        _group_means(part, groups).assign(**part.iloc[0][keys]) for _, part in rows.groupby(keys, sort=False)
    ]
    return pd.concat(parts, ignore_index=True).reindex(columns=scores.columns)


def _group_means(rows: pd.DataFrame, groups: dict[str, str]) -> pd.DataFrame:
    """Return unweighted means over the tasks of each group."""
    if lacking := [name for name in groups if name not in set(rows["task"])]:
        raise ValueError(f"scores must hold all of {groups[lacking[0]]}, {lacking[0]!r} is not there")
    found: dict[str, Any] = {name: (name, "sum") for name in ("n", "truncated")}
    found |= {"value": ("value", "mean")}
    found |= {"stderr": ("stderr", lambda these: np.linalg.norm(these) / len(these))}
    means = rows.groupby(rows["task"].map(groups)).agg(**found)
    same = {"metric": "acc", "higher_is_better": True, "parent": "blimp", "category": "language"}
    return means.loc[list(dict.fromkeys(groups.values()))].assign(**same).reset_index()


def score_spread(scores: pd.DataFrame, over: str) -> pd.DataFrame:
    """Mean and spread of scores over repeated measurements: prompt orders, or training seeds (GRO C.1, C.2).

    Args:
        scores: rows of ``shot_ablation`` or ``seed_ablation``, or of ``evaluate`` with a column of that name.
        over: the column that numbers the repetitions: "order" or "seed".

    Returns:
        One row for each of what else tells rows apart (method, task, metric, n_shot): those, mean, std (of
        the repetitions, with n - 1; NaN for one), low, high, n (repetitions).

    Raises:
        ValueError: there is no such column, or a repetition counts twice.

    >>> scores = pd.DataFrame({"task": "a", "metric": "acc", "value": [0.25, 0.75], "order": [0, 1]})
    >>> score_spread(scores, "order")[["mean", "low", "high", "n"]].values.tolist()
    [[0.5, 0.25, 0.75, 2.0]]
    """
    one_of(over, scores.columns, "over, a column of scores,")
    left_out = (over, "variant") if over == "seed" else (over,)
    known = ("method", "variant", "task", "metric", "n_shot", "order", "seed")
    keys = [key for key in known if key in scores and key not in left_out]
    checked(scores, [], "scores", unique=(*keys, over))
    repeated = scores.groupby(keys, sort=False)["value"]
    return repeated.agg(mean="mean", std="std", low="min", high="max", n="count").reset_index()


def one_metric(frame: pd.DataFrame, metric: str | None = None, *, prefer: Prefer = None) -> pd.DataFrame:
    """The rows of one metric; by default the one preferred or else the one that stands for the row's task."""
    if "metric" not in frame:
        return frame
    if metric is not None:
        if metric not in (known := sorted(set(frame["metric"]))):
            raise ValueError(f"metric must be one of {known}, got {metric!r}")
        return frame[frame["metric"] == metric]
    metrics = frame.groupby("task")["metric"].agg(lambda these: [*dict.fromkeys(these)])
    chosen = {task: _main_metric(task, there, prefer) for task, there in metrics.items()}
    return frame[frame["metric"] == frame["task"].map(chosen)]


def _main_metric(task: Any, metrics: list[str], prefer: Prefer) -> str:
    wanted = prefer.get(task) if isinstance(prefer, Mapping) else prefer
    first = [metric for metric in metrics if wanted is not None and _is_metric(metric, wanted)]
    known = [metric for metric in (HEADLINE.get(task), *PREFERRED) if metric in metrics]
    return [*first, *known, *metrics][0]


def accuracies(scores: pd.DataFrame, *, prefer: Prefer = None) -> pd.DataFrame:
    """Return one metric a task, and of those the ones where higher is better, to be averaged.

    Raises:
        ValueError: for scores of which some are shares and others reach above 1, and would outweigh them.
    """
    scores = headline(scores, prefer=prefer)
    if "higher_is_better" in scores:
        scores = scores[scores["higher_is_better"].astype(bool)]
    if "value" in scores:
        large = scores.groupby(["task", "metric"])["value"].max().loc[lambda most: most > 1 + 1e-9]
        if 0 < len(large) < len(scores[["task", "metric"]].drop_duplicates()):
            (task, metric), value = large.index[0], large.iloc[0]
            raise ValueError(
                f"scores must share a unit to be averaged, {task!r} ({metric}) reaches {value:g}"
            )
    return scores


def both_matches(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the exact matches of tasks that have several, strict and flexible, one row each."""
    scores = standing(scores)
    matches = scores[scores["metric"].str.startswith("exact_match,")]
    return matches[matches.groupby("task")["metric"].transform("nunique") > 1]


def score_table(rows: pd.DataFrame, keys: Sequence[str] = ("task", "n_shot")) -> pd.DataFrame:
    """Return variants x tasks, both in the order of the rows.

    Raises:
        ValueError: two scores of one task, or a gap: an average over other tasks would be a plausible wrong
            number.
    """
    keys = [key for key in keys if key in rows]
    if len(twice := rows[rows.duplicated(["variant", *keys])]):
        variant, task = twice[["variant", "task"]].iloc[0]
        shots = sorted(set(rows.loc[rows["task"] == task, "n_shot"])) if "n_shot" in rows else []
        choose = f" ({' and '.join(map(str, shots))} shots: give the rows of one)" if len(shots) > 1 else ""
        twice_for = f"{variant!r}, {task!r}{choose}"
        raise ValueError(f"each variant must have one score a task, got two for {twice_for}")
    table = rows.set_index(["variant", *keys])["value"].unstack(keys, sort=False)
    for name, row in table.iterrows():
        if missing := sorted({str(np.atleast_1d(column)[0]) for column in table.columns[row.isna()]}):
            raise ValueError(f"variants must be scored on equal tasks; {name!r} lacks {', '.join(missing)}")
    return table


def category_scores(scores: pd.DataFrame, *, prefer: Prefer = "acc") -> pd.DataFrame:
    """Average each variant's scores over the tasks of a category, as ITR table 1 groups them.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``; one metric a task enters, and only where
            higher is better. A task with two numbers of shots counts twice.
        prefer: as for ``headline``. ITR reports plain accuracy, also of tasks that the leaderboard shows by
            ``acc_norm``: so does this and ``iterabre_table``. None takes the leaderboard's, as
            ``recovery_table`` does.

    Returns:
        variant, category, value (0 to 1), low, high (95 %, tasks erring independently; NaN where a task's
        error is not known), n_tasks. Categories in the order reasoning, language, knowledge, multilingual,
        any other.

    Raises:
        ValueError: for missing columns, no accuracy, or variants that were not scored on the same tasks of a
            category.

    >>> scores = pd.DataFrame({"variant": "base", "task": ["a", "b"], "metric": "acc", "value": [0.4, 0.6]})
    >>> scores = scores.assign(stderr=0.1, category="knowledge")
    >>> category_scores(scores)[["category", "value", "n_tasks"]].values.tolist()
    [['knowledge', 0.5, 2]]
    """
    needed = ["variant", "task", "metric", "value", "stderr", "category"]
    rows = accuracies(checked(scores, needed, "scores"), prefer=prefer)
    if rows.empty:
        raise ValueError("scores must hold at least one score where higher is better, got none")
    score_table(rows)
    rows = score_intervals(rows.assign(category=named_categories(rows)))
    order = {name: rank for rank, name in enumerate(dict.fromkeys([*CATEGORY_ORDER, *rows["category"]]))}
    rows = rows.sort_values("category", key=lambda names: names.map(order), kind="stable")
    parts = rows.groupby(["category", "variant"], sort=False)
    found = [{"variant": name, "category": kind, **mean_over_tasks(part)} for (kind, name), part in parts]
    return pd.DataFrame(found)


def task_categories(scores: pd.DataFrame) -> dict[str, list[str]]:
    """Return the tasks of each category, where higher is better: the ``groups`` of ``summary_table``.

    >>> row = {"task": "gsm8k", "metric": "exact_match", "category": "reasoning", "higher_is_better": True}
    >>> task_categories(pd.DataFrame([row]))
    {'reasoning': ['gsm8k']}
    """
    rows = headline(scores).query("higher_is_better")
    tasks = rows["task"].groupby(named_categories(rows), sort=False)
    return {str(category): list(dict.fromkeys(these)) for category, these in tasks}


def task_names(frame: pd.DataFrame) -> pd.Series:
    """Return the task of each row, with its number of shots where there are several."""
    shots = frame.get("n_shot", pd.Series(0, frame.index))
    several = shots.groupby(frame["task"]).transform("nunique") > 1
    return frame["task"].astype(str) + (", " + shots.astype(str) + "-shot").where(several, "")


def named_categories(scores: pd.DataFrame) -> pd.Series:
    """Return the category of each row, "other" where a task has none."""
    return scores["category"].astype(object).fillna("").replace("", "other")


def score_intervals(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the 95 % interval of each score, as ``low`` and ``high`` beside the frame's columns.

    Right-or-wrong scores get Wilson's interval from ``n``, which keeps its width at 0 and at 1 where value ±
    1.96 stderr has none; other scores get that. NaN where neither is known.

    >>> certain = pd.DataFrame({"value": [1.0], "stderr": [0.0], "n": [100]})
    >>> score_intervals(certain)[["low", "high"]].round(3).values.tolist()
    [[0.963, 1.0]]
    """
    value, stderr = scores["value"].astype(float), scores["stderr"].astype(float)
    low, high = value - _Z * stderr, value + _Z * stderr
    if "n" in scores:
        n = scores["n"].astype(float)
        spread = np.clip(value * (1 - value), 0, None)
        counted = np.isclose(stderr, np.sqrt(spread / (n - 1)), rtol=0.02, atol=1e-9)
        centre = (value + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
        half = _Z * np.sqrt(spread / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
        low = low.mask(counted, (centre - half).clip(lower=0))
        high = high.mask(counted, (centre + half).clip(upper=1))
    return scores.assign(low=low, high=high)


def mean_over_tasks(part: pd.DataFrame) -> dict[str, Any]:
    """Return the mean over tasks; each side of its interval adds up the tasks' own sides in squares."""
    value = part["value"].mean()
    below = np.linalg.norm(part["value"] - part["low"]) / len(part)
    above = np.linalg.norm(part["high"] - part["value"]) / len(part)
    shares = part["value"].between(0, 1).all()  # other measures reach beyond
    least, most = (0, 1) if shares else (-np.inf, np.inf)
    interval = {"low": np.maximum(value - below, least), "high": np.minimum(value + above, most)}
    return {"value": value, **interval, "n_tasks": len(part)}
