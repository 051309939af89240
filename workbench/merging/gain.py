"""Is a merge better than either of its ends, by more than chance?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.checks import checked, one_of
from workbench.evaluation.items import group_of, paired_items, right_or_wrong
from workbench.evaluation.scores import Prefer, check_prefer
from workbench.statistics import holm, paired_difference

_KEPT = ("difference", "ci_low", "ci_high", "higher", "lower", "p_value")


def merge_gain(
    items: pd.DataFrame,
    ends: Sequence[str],
    merges: Sequence[str],
    *,
    scores: pd.DataFrame | None = None,
    prefer: Prefer = None,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare each merge with each of its ends, on all right-or-wrong items of all tasks together.

    SDD's question. The best of several merges looks better than it is, so the p-values are corrected for all
    comparisons of the frame (Holm).

    Args:
        items: of all of them, with ``variant`` (``Evaluated.items``).
        ends: names of the variants that were merged.
        merges: names of the merges.
        scores: as for ``compare_items``: a group of tasks counts as one task; without them every subject of
            MMLU counts as much as ARC.
        prefer: as for ``headline``.
        confidence: coverage of the intervals.
        seed: of the resampling.

    Returns:
        variant, against, n (items), n_tasks (a task at another number of shots is another), difference (of
        the averages over tasks), ci_low, ci_high (over items), higher and lower (items that the merge alone,
        the end alone gets right), p_value (of this difference: ``paired_difference``), p_adjusted; better:
        the difference is above 0 and p_adjusted below 1 - confidence.

    Raises:
        ValueError: for a name that is none of the items', or no task whose items are right or wrong.
    """
    checked(items, ["variant", "task", "item", "value"], "items")
    for what, names in {"ends": ends, "merges": merges}.items():
        if not len(names):
            raise ValueError(f"{what} must name at least one variant, got none")
    check_prefer(items, prefer)
    of = {str(name): part.drop(columns="variant") for name, part in items.groupby("variant", sort=False)}
    for name in (*ends, *merges):
        one_of(name, of, "variant")
    rows = []
    for merge in merges:
        for end in ends:
            pairs = right_or_wrong(paired_items(of[end], of[merge], prefer=prefer))
            if pairs.empty:
                raise ValueError("items must hold a task whose items are right or wrong, got none")
            rows.append({"variant": merge, "against": end, **_gain(pairs, scores, confidence, seed)})
    found = pd.DataFrame(rows)
    found["p_adjusted"] = holm(found["p_value"])
    found["better"] = (found["difference"] > 0) & (found["p_adjusted"] < 1 - confidence)
    return found


def _gain(pairs: pd.DataFrame, scores: pd.DataFrame | None, confidence: float, seed: int) -> dict[str, Any]:
    """Compare two variants on the mean over tasks, as ``average_recovery`` counts them."""
    task = pairs["task"].map(group_of(scores))
    sizes = pairs.groupby([task, pairs["n_shot"]])["item"].transform("size")
    n_tasks = int((1 / sizes).sum().round())
    weights = None if n_tasks == 1 else 1 / sizes  # each task alike, whatever its items
    settings: Any = {"weights": weights, "confidence": confidence, "seed": seed}
    found = paired_difference(pairs["base"], pairs["other"], **settings)
    return {"n": found["n"], "n_tasks": n_tasks} | {name: found[name] for name in _KEPT}
