"""What responses say, in a few sentences of Markdown: similarity, divergence, what a shift foretells.

As in ``findings``: differences and ties, never causes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked
from workbench.evaluation.scores import task_names
from workbench.forgetting.shift import shift_agreement
from workbench.forgetting.similarity import TIE, told_apart, unseen
from workbench.statistics import paired_difference
from workbench.tables.markup import task_label
from workbench.tables.sentences import counted, escaped, interval, named, percent


def similarity_reading(similarity: pd.DataFrame) -> str:
    """Say which variants stay closest and which move farthest, compared on the same prompts.

    Variants that their prompts do not tell apart (the paired interval reaches 0) are named together.

    Args:
        similarity: of ``response_similarity`` for several variants; with a column ``prompts``, by its sets.

    >>> values = {"variant": ["a"] * 3 + ["b"] * 3, "id": [0, 1, 2] * 2}
    >>> values["similarity"] = [0.9, 0.8, 0.9, 0.5, 0.4, 0.6]
    >>> print(similarity_reading(pd.DataFrame(values)))  # doctest: +NORMALIZE_WHITESPACE
    - closest to the unpruned model **a** (mean 0.867), farthest **b** (mean 0.500); on the same 3 prompts
    they differ by 0.367 (95 % interval 0.223 to 0.510).
    """
    sets = similarity.groupby("prompts", sort=False) if "prompts" in similarity else [("", similarity)]
    return "\n".join(
        (f"- *{escaped(name)}*: " if name else "- ") + _similarity_line(*_same_prompts(part))
        for name, part in sets
    )


def _same_prompts(similarity: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Return prompt x variant of the prompts whose every response the encoder reads; the number of others."""
    rows = similarity.pivot(index="id", columns="variant", values="similarity")
    rows = rows[[*dict.fromkeys(similarity["variant"])]]
    blind = similarity.loc[unseen(similarity), "id"].unique()
    return rows.drop(index=blind), len(blind)


def _unread(blind: int) -> str:
    return f" ({counted(blind, 'prompt')} left out: the encoder cannot read a response)" if blind else ""


def _similarity_line(rows: pd.DataFrame, blind: int) -> str:
    if rows.empty:
        return f"nothing to compare{_unread(blind)}."
    means = rows.mean().sort_values(ascending=False, kind="stable")
    closest = [name for name in means.index if not told_apart(rows[name], rows[means.index[0]])]
    farthest = [name for name in means.index if not told_apart(rows[means.index[-1]], rows[name])]
    gap = paired_difference(rows[means.index[-1]], rows[means.index[0]])
    same = f"on the same {counted(len(rows), 'prompt')} they differ by"
    spread = f"{same} {gap['difference']:.3f}{interval(gap)}{_unread(blind)}"
    if len(means) == 1:
        return f"**{escaped(means.index[0])}** has mean {means.iloc[0]:.3f}{_unread(blind)}."
    if set(closest) & set(farthest):
        each = ", ".join(f"**{escaped(name)}** (mean {mean:.3f})" for name, mean in means.items())
        return f"no variant is clearly the closest: {each}; the first and the last: {spread}."
    near, far = (_together(names, means) for names in (closest, farthest))
    return f"closest to the unpruned model {near}, farthest {far}; {spread}."


def _together(names: list[Any], means: pd.Series) -> str:
    if len(names) == 1:
        return f"{named(names)} (mean {means[names[0]]:.3f})"
    return f"{named(names)} (means {', '.join(f'{means[name]:.3f}' for name in names)}: not told apart)"


def closest_reading(similarity: pd.DataFrame) -> str:
    """Say on what share of the prompts each variant is the closest to the base, alone or with another.

    >>> values = {"variant": ["a", "a", "b", "b"], "id": [0, 1, 0, 1], "similarity": [1, 1, 1, 0.4]}
    >>> print(closest_reading(pd.DataFrame(values)))  # doctest: +NORMALIZE_WHITESPACE
    Closest to the base, alone or with another: **a** on 100 %, **b** on 50 % of 2 prompts; on 1 of them
    several are equally close.
    """
    rows, blind = _same_prompts(similarity)
    if rows.empty:
        return f"Nothing to compare{_unread(blind)}."
    closest = rows.ge(rows.max(axis=1) - TIE, axis=0)
    shares = closest.mean().sort_values(ascending=False, kind="stable")
    each = ", ".join(f"**{escaped(name)}** on {percent(value)}" for name, value in shares.items())
    return (
        f"Closest to the base, alone or with another: {each} of {counted(len(rows), 'prompt')}; on "
        f"{(closest.sum(axis=1) > 1).sum()} of them several are equally close{_unread(blind)}."
    )


def divergence_reading(by_response: pd.DataFrame) -> str:
    """Say how many responses of the base each variant would leave (``divergence_by_response``).

    >>> print(divergence_reading(pd.DataFrame({"variant": "cut", "agrees_for": [4, 9], "n_tokens": [9, 9]})))
    - **cut** would choose another next token in 1 of 2 responses, in the median after 4 tokens.
    """
    lines = []
    for name, part in by_response.groupby("variant", sort=False):
        left = part.loc[part["agrees_for"] < part["n_tokens"], "agrees_for"]
        after = f", in the median after {left.median():g} tokens" if len(left) else ""
        many = f"in {len(left)} of {counted(len(part), 'response')}"
        lines.append(f"- **{escaped(name)}** would choose another next token {many}{after}.")
    again = by_response.attrs.get("tokenised_again") or {}
    if again.get("other_lengths"):
        lines.append(
            f"\nThe texts were tokenised again, {again['other_lengths']} of {again['responses']} into "
            "another number of tokens than were generated."
        )
    return "\n".join(lines)


def shift_reading(losses: pd.DataFrame) -> str:
    """Say whether answers that moved farther go with more accuracy lost (``loss_against_similarity``).

    The share of changed answers stands beside the similarity: what it tells, no embedding is needed for.

    Raises:
        ValueError: for missing columns or no rows.
    """
    checked(losses, ["variant", "task", "lost", "similarity"], "losses")
    found, losses = shift_agreement(losses), losses.assign(task=task_names(losses))
    lines = [f"- {found['note'][:1].upper()}{found['note'][1:]}."] if found["note"] else _rank_lines(found)
    told = "changed_is_wrong" in losses
    arithmetic = losses.query("changed_is_wrong and changed > 0")["task"].unique() if told else ()
    if len(arithmetic):
        what = "- Arithmetic, no finding: where the base is right, a changed answer is a wrong one on"
        lines.append(f"{what} {named(arithmetic, mark='*')} (for at least one variant).")
    ordered = losses.dropna(subset=["similarity"]).sort_values("similarity", kind="stable")
    shown = {
        "The largest shift that lost less than 0.1": ordered[ordered["lost"] < 0.1].head(1),
        "The smallest shift that lost 0.1 or more": ordered[ordered["lost"] >= 0.1].tail(1),
    }
    lines += [
        f"- {what}: **{escaped(row['variant'])}** on *{escaped(task_label(row['task']))}*, similarity "
        f"{row['similarity']:.2f}{_changed(row)}, lost {row['lost']:+.2f}."
        for what, rows in shown.items()
        for row in rows.to_dict("records")
    ]
    return "\n".join(lines)


def _rank_lines(found: Mapping[str, Any]) -> list[str]:
    over = f"over {found['n']} points of {found['n_points']} tasks"
    rank = f"{found['spearman']:.2f}{interval(found, '.2f')}"
    lines = [f"- Spearman's rank correlation of shift (1 - similarity) and accuracy lost, {over}: {rank}."]
    changed, what = found["changed_spearman"], "That of the share of changed answers, without any embedding"
    return lines if np.isnan(changed) else [*lines, f"- {what}: {changed:.2f}."]


def _changed(row: Mapping[str, Any]) -> str:
    return f", {percent(row['changed'])} of the answers changed" if "changed" in row else ""
