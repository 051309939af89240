"""Average recovery: what share of the base's average score a variant keeps, with its interval."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.checks import checked, one_of
from workbench.evaluation.items import group_of
from workbench.evaluation.scores import Prefer, accuracies, score_table, unit_of
from workbench.statistics import resample_counts

#: items that must have turned before an interval is given: fewer do not show how many others would
MIN_TURNED = 5


def average_recovery(
    scores: pd.DataFrame,
    base: str = "base",
    *,
    items: pd.DataFrame | None = None,
    prefer: Prefer = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Average score of each variant and its share of the base's average (SDD table 8, "Avg. Recovery").

    Only scores where higher is better enter (accuracies, exact match), one metric a task; perplexities do
    not. The recovery is the ratio of the two averages.

    Args:
        scores: variant, task, metric, value, and what else ``evaluate`` gives.
        base: the unpruned variant's name.
        items: the items behind the scores, with ``variant`` (``Evaluated.items``): adds the interval.
        prefer: as for ``headline``.
        confidence: coverage of the interval.
        seed: of the resampling.

    Returns:
        variant, average (in the unit of ``value``), recovery (fraction of the base's average; 1 = nothing
        lost), n_tasks, n (items, where the scores say it); with ``items`` ci_low and ci_high of the recovery:
        a paired bootstrap that draws the items of each task, for all variants the same, so both averages of
        the ratio move. NaN for the base, where fewer than 5 items turned against it, and where a resample
        leaves the base nothing.

    Raises:
        ValueError: ``base`` is not among the variants, the variants are not scored on the same tasks, the
            base's average is 0, or the items are not those of the scores.

    >>> scores = pd.DataFrame({"variant": ["base", "pruned"], "task": "a", "value": [0.8, 0.6]})
    >>> average_recovery(scores.assign(metric="acc"))["recovery"].round(2).tolist()
    [1.0, 0.75]
    """
    rows = accuracies(scores, prefer=prefer)
    table = score_table(rows)
    one_of(base, table.index, "base")
    average = table.mean(axis=1)
    if not average[base] > 0:
        raise ValueError(f"recovery is a share of the base's average, but {base!r} scores {average[base]:g}")
    found = pd.DataFrame({"average": average, "recovery": average / average[base], "n_tasks": table.shape[1]})
    if "n" in rows:
        found["n"] = rows.groupby("variant")["n"].sum()
    if items is not None:
        answers = _answers(rows, scores, items, list(table.index))
        found[["ci_low", "ci_high"]] = _interval(answers, table, base, confidence, seed)
    return found.reset_index()


def _answers(
    rows: pd.DataFrame, scores: pd.DataFrame, items: pd.DataFrame, variants: list[Any]
) -> list[pd.DataFrame]:
    """Return for each score the values behind it: task and item x variant."""
    items = checked(items, ["variant", "task", "n_shot", "item", "metric", "value"], "items")
    items = items.assign(value=items["value"] * unit_of(items["metric"]))
    groups = items["task"].map(group_of(scores))
    # the parts of a group may have numbers of their own
    shots = rows.groupby("task")["n_shot"].nunique() if "n_shot" in rows else pd.Series()
    several, found = set(shots.index[shots > 1]), []
    for row in rows.drop_duplicates([key for key in ("task", "n_shot") if key in rows]).itertuples():
        mine = (groups == row.task) & (items["metric"] == row.metric)
        if row.task in several:
            mine &= items["n_shot"] == row.n_shot
        values = items[mine].pivot(index=["task", "item"], columns="variant", values="value")
        counts = items[mine].groupby("variant").size().reindex(variants, fill_value=0)
        if values.empty or (counts != len(values)).any():
            same = f"items must hold the same items of {row.task!r} ({row.metric}) for each of {variants}"
            raise ValueError(f"{same}, got {counts.to_dict()}")
        found.append(values[variants])
    return found


def _interval(
    answers: list[pd.DataFrame], table: pd.DataFrame, base: str, confidence: float, seed: int
) -> NDArray[np.float64]:
    """Return the ends of each variant's recovery, ``[variant, 2]``."""
    scored = enumerate(zip(answers, table.to_numpy().T, strict=True))
    drawn: Any = sum(_drawn_scores(values, score, seed + number) for number, (values, score) in scored)
    of_base = drawn[:, [list(table.index).index(base)]]
    turned = sum(values.ne(values[base], axis=0).sum().to_numpy() for values in answers)
    # there is no share of nothing; a score that is none of single items cannot be drawn again
    known = (of_base > 0).all() and all(values.notna().all(axis=None) for values in answers)
    supported = (turned >= MIN_TURNED) & known
    tail = 50 * (1 - confidence)
    ends = np.percentile(drawn / np.where(of_base > 0, of_base, np.nan), [tail, 100 - tail], axis=0).T
    return np.where(supported[:, None], ends, np.nan)


def _drawn_scores(values: pd.DataFrame, score: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Return a task's score in each resample, ``[resample, variant]``; the parts of a group by themselves."""
    parts = [part.to_numpy(dtype=float) for _, part in values.groupby(level="task", sort=False)]
    means = np.array([part.mean(axis=0) for part in parts])
    sizes = np.array([len(part) for part in parts])
    alike, by_size = np.full(len(parts), 1 / len(parts)), sizes / sizes.sum()
    # the harness weighs the parts of some groups by their items, of others alike: the score says which
    shares = min((alike, by_size), key=lambda weights: np.abs(weights @ means - score).max())
    counts = (resample_counts(len(part), seed=seed + 1000 * number) for number, part in enumerate(parts))
    drawn = sum(share / len(p) * (n @ p) for share, n, p in zip(shares, counts, parts, strict=True))
    return np.asarray(score - shares @ means + drawn)
