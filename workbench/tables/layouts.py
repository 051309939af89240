"""The run in one table: mean scores by group with similarities, and how the trainings went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked
from workbench.evaluation.scores import headline, mean_over_tasks, score_intervals
from workbench.forgetting.similarity import mean_interval, seen


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
            share a unit, so no accuracies together with perplexities. A task with two numbers of shots counts
            twice, as in ``category_scores``.
        similarities: frame ``variant, similarity``, one row a response (to the base's); adds ``similarity``,
            over the responses that the encoder can read (not ``unseen``).
        intervals: give ``value [low, high]`` with the 95 % interval as text instead of numbers.

    Returns:
        ``variant``, the groups, and ``similarity`` (NaN for a variant without responses, such as the base).

    Raises:
        ValueError: for missing columns, a variant that lacks a task of a group, or a group of mixed units.

    >>> rows = [("base", "mmlu", "acc", 0.6), ("base", "race", "acc", 0.4)]
    >>> scores = pd.DataFrame(rows, columns=["variant", "task", "metric", "value"])
    >>> summary_table(scores, {"knowledge": ["mmlu"], "language": ["race"]}).to_dict("records")
    [{'variant': 'base', 'knowledge': 0.6, 'language': 0.4}]
    """
    rows = headline(checked(scores, ["variant", "task", "metric", "value"], "scores"))
    names = [*dict.fromkeys(rows["variant"])]
    values, ends = pd.DataFrame(index=names), {}
    for group, tasks in groups.items():
        picked = rows[rows["task"].isin(tasks)]
        _check_group(group, list(tasks), picked, names)
        values[group] = picked.groupby("variant")["value"].mean()
        ends[group] = _intervals(picked)
    if similarities is not None:
        known = checked(similarities, ["variant", "similarity"], "similarities").dropna(subset="similarity")
        of_variant = seen(known).groupby("variant")["similarity"]
        values["similarity"] = of_variant.mean()
        found = {name: mean_interval(these) for name, these in of_variant}
        ends["similarity"] = pd.DataFrame.from_dict(found, orient="index", columns=["low", "high"])
    for group in values if intervals else ():
        values[group] = with_ends(values[group], ends[group]["low"], ends[group]["high"])
    return values.rename_axis("variant").reset_index()


def training_table(log: pd.DataFrame) -> pd.DataFrame:
    """Return how each training went: steps, tokens, seconds, tokens a second, and where its loss ended.

    Args:
        log: rows of ``heal``'s log with a column ``variant``.

    Returns:
        Frame variant, steps, tokens, seconds, tokens/s, final loss (mean over the last tenth of the steps),
        and held-out loss (of the last update) where it was measured.

    >>> rows = {"variant": "sft", "step": [1, 2], "tokens": [5, 9], "seconds": [1.0, 2.0], "loss": [2.0, 1.0]}
    >>> training_table(pd.DataFrame(rows)).to_dict("records")[0]["final loss"]
    1.0
    """
    runs = log.groupby("variant", sort=False)
    table = runs.agg(steps=("step", "max"), tokens=("tokens", "max"), seconds=("seconds", "max"))
    table["tokens/s"] = table["tokens"] / table["seconds"]
    table["final loss"] = runs["loss"].agg(lambda loss: loss.tail(max(1, len(loss) // 10)).mean())
    if "held_out_loss" in log:
        table["held-out loss"] = runs["held_out_loss"].last()
    return table.reset_index()


def _check_group(group: str, tasks: list[str], picked: pd.DataFrame, names: list[Any]) -> None:
    keys = picked[[key for key in ("task", "n_shot") if key in picked]].apply(tuple, axis=1)
    expected = sorted(set(keys))
    for name in names:
        there = sorted(keys[picked["variant"] == name])
        if there != expected or {key[0] for key in there} != set(tasks):
            got = f"variant {name!r} has {[key[0] for key in there]}"
            raise ValueError(f"group {group!r} needs one score of each of {tasks}; {got}")
    if "higher_is_better" in picked and picked["higher_is_better"].nunique() > 1:
        raise ValueError(f"group {group!r} must hold tasks of one unit, got {sorted(set(picked['metric']))}")


def _intervals(picked: pd.DataFrame) -> pd.DataFrame:
    """Return the 95 % interval of each variant's mean over tasks, which err independently."""
    if "stderr" not in picked:
        return pd.DataFrame(np.nan, index=picked["variant"].unique(), columns=["low", "high"])
    found = {name: mean_over_tasks(part) for name, part in score_intervals(picked).groupby("variant")}
    return pd.DataFrame.from_dict(found, orient="index")


def with_ends(values: pd.Series, lows: pd.Series, highs: pd.Series, digits: int = 3) -> pd.Series:
    """Return values as text, each with the ends of its interval where it has one.

    >>> half, none = pd.Series([0.5, 0.25]), pd.Series([0.4, float("nan")])
    >>> with_ends(half, none, none + 0.3, 2).tolist()
    ['0.50 [0.40, 0.70]', '0.25']
    """
    rows = zip(values, lows.reindex(values.index), highs.reindex(values.index), strict=True)
    texts = [
        "–" if np.isnan(value) else f"{value:z.{digits}f}{_ends(low, high, digits)}"
        for value, low, high in rows
    ]
    return pd.Series(texts, index=values.index, dtype=object)


def _ends(low: float, high: float, digits: int) -> str:
    return "" if np.isnan(low) or np.isnan(high) else f" [{low:z.{digits}f}, {high:z.{digits}f}]"
