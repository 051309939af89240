"""Scores before and after recovery, iteration by iteration (ITR figures 2 to 5 and 8). No torch."""

from __future__ import annotations

import pandas as pd

from workbench.checks import checked, one_of


def phase_scores(
    scores: pd.DataFrame, iterations: pd.DataFrame, *, base: str | None = None, prefix: str = ""
) -> pd.DataFrame:
    """Return scores with the iteration and phase of each variant of ``iteration_variants``.

    Args:
        scores: rows of ``evaluate`` (or of ``blimp_groups``) with a column ``variant``.
        iterations: of ``iterate``.
        prefix: of the names, as for ``iteration_variants``.
        base: the variant that is the whole model: iteration 0 of both phases; None for none.

    Returns:
        ``iteration, phase, layers_left, removed`` and the columns of ``scores``; rows of other variants are
        left out.

    Raises:
        ValueError: for missing columns, no variant of these iterations, or a base that is not there.
    """
    frame = checked(scores, ["variant"], "scores")
    needed = ["iteration", "phase", "layers_left", "removed"]
    rows = checked(iterations, needed, "iterations").groupby(["iteration", "phase"], sort=False).tail(1)
    if base is not None:
        one_of(base, dict.fromkeys(frame["variant"]), "base")
    names = prefix + rows["layers_left"].astype(str) + "-" + rows["phase"]
    places = rows[needed].assign(variant=names)
    if base is not None:
        depth = int(rows["layers_left"].iloc[0]) + len(str(iterations["order"].iloc[0]).split())
        whole = pd.DataFrame({"iteration": 0, "phase": ["P", "P+R"], "layers_left": depth, "removed": ""})
        places = pd.concat([whole.assign(variant=base), places])
    found = places.merge(frame, on="variant")
    if found.empty:
        raise ValueError(f"scores must hold variants of the iterations such as {names.iloc[0]!r}, got none")
    return found


def phase_change(scores: pd.DataFrame) -> pd.DataFrame:
    """Return what each phase of each iteration changed in each score (ITR figure 8).

    Args:
        scores: of ``phase_scores`` with ``base``: a phase ``P`` follows the ``P+R`` before it, or the ``P``
            where nothing was recovered.

    Returns:
        ``iteration, phase, task, n_shot`` (where scores have it), ``metric, before, value, change``; positive
        is more, which for a perplexity is worse.

    Raises:
        ValueError: for missing columns.
    """
    frame = checked(scores, ["iteration", "phase", "task", "metric", "value"], "scores")
    of = [name for name in ("task", "n_shot", "metric") if name in frame]
    parts = []
    for _, part in frame.groupby(of, sort=False):
        part = part.sort_values(["iteration", "phase"], kind="stable")
        part = part[~((part["iteration"] == 0) & (part["phase"] == "P"))]
        part = part.assign(before=part["value"].shift())
        parts.append(part[part["iteration"] > 0])
    found = pd.concat(parts, ignore_index=True).assign(change=lambda rows: rows["value"] - rows["before"])
    return found[["iteration", "phase", *of, "before", "value", "change"]]
