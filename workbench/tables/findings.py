"""What scores, items and responses say, in a few sentences of Markdown, with the numbers and their spread.

Frames in, text out; a notebook shows it with ``say``. A reading tells differences and ties, never causes.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.evaluation.recovery import average_recovery
from workbench.evaluation.scores import category_scores, headline
from workbench.forgetting.shift import shift_agreement
from workbench.statistics import paired_difference
from workbench.tables.sentences import each_row, escaped, interval, named, percent


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
    lines = []
    for name in table.index.drop(base):
        each = [
            f"{group} {table.loc[name, group]:.2f} (base {table.loc[base, group]:.2f})" for group in table
        ]
        lines.append(f"- **{escaped(name)}**: {', '.join(each)}.")
    return "\n".join([*lines, "", _chance(n)])


def recovery_reading(scores: pd.DataFrame, *, base: str = "base") -> str:
    """Say what share of the base's average each variant keeps, and where it lost most (``recovery``).

    Args:
        scores: rows of ``evaluate`` with a column ``variant``.
        base: the unpruned variant.
    """
    by_category = category_scores(scores).pivot(index="variant", columns="category", values="value")
    lost = (by_category.loc[base] - by_category.drop(base)).round(12)
    lines = []
    for row in each_row(average_recovery(scores, base).query("variant != @base")):
        of_variant = lost.loc[row.variant]
        most = named(of_variant.index[of_variant == of_variant.max()], mark="*")
        where = f"most in {most} ({-of_variant.max():+.3f})" if of_variant.max() > 0 else "in no category"
        lines.append(
            f"- **{escaped(row.variant)}** keeps {percent(row.recovery, 1)} of the unpruned model's "
            f"average over {row.n_tasks} tasks; it lost {where}."
        )
    return "\n".join(lines)


def comparison_reading(comparisons: pd.DataFrame, *, level: float = 0.05) -> str:
    """Say how many paired differences are unlikely to be chance (``compare_items`` of several variants).

    >>> print(comparison_reading(pd.DataFrame({"p_value": [0.01, 0.5], "difference": [-0.2, 0.1]})))
    ... # doctest: +NORMALIZE_WHITESPACE
    **1 of 2** differences have p < 0.05, where chance alone would give about 0.1: 1 for the worse, 0 for the
    better.
    """
    clear = comparisons[comparisons["p_value"] < level]
    return (
        f"**{len(clear)} of {len(comparisons)}** differences have p < {level:g}, where chance alone would "
        f"give about {level * len(comparisons):.1f}: {(clear['difference'] < 0).sum()} for the worse, "
        f"{(clear['difference'] > 0).sum()} for the better."
    )


def flips_reading(flips: pd.DataFrame) -> str:
    """Say how many items each variant turned (``flip_counts``).

    >>> row = {"variant": "cut", "task": "math", "n": 50, "right_to_wrong": 20, "wrong_to_right": 1}
    >>> flips_reading(pd.DataFrame([row]))
    '- **cut**: of 50 items 20 turned from right to wrong, 1 from wrong to right.'
    """
    turned = flips.groupby("variant", sort=False)[["n", "right_to_wrong", "wrong_to_right"]].sum()
    return "\n".join(
        f"- **{escaped(row.variant)}**: of {row.n} items {row.right_to_wrong} turned from right to wrong, "
        f"{row.wrong_to_right} from wrong to right."
        for row in each_row(turned.reset_index())
    )


def depth_reading(depth: pd.DataFrame, *, share: float = 0.9) -> str:
    """Say up to how many layers each task keeps a share of its score (``scores_by_depth``).

    Args:
        depth: rows without and with layers left out.
        share: of the whole model's score.
    """
    rows = headline(depth).query("higher_is_better")
    scores = rows.pivot(index="n_removed", columns="task", values="value")
    keeps = scores.ge(share * scores.loc[0]).cummin()
    lines = []
    for task in scores:
        most = keeps.index[keeps[task]].max()
        lines.append(
            f"- *{escaped(task)}* keeps {percent(share)} of its score with up to {most} "
            f"{'layer' if most == 1 else 'layers'} left out; without {scores.index[-1]} it scores "
            f"{scores[task].iloc[-1]:.2f}."
        )
    return "\n".join([*lines, "", _chance(int(rows["n"].min()))])


def similarity_reading(similarity: pd.DataFrame) -> str:
    """Say which variants stay closest and which move farthest, compared on the same prompts.

    Args:
        similarity: of ``response_similarity`` for several variants; with a column ``prompts``, by its sets.

    >>> values = {"variant": ["a", "a", "b", "b"], "id": [0, 1, 0, 1], "similarity": [0.9, 0.8, 0.5, 0.4]}
    >>> print(similarity_reading(pd.DataFrame(values)))  # doctest: +NORMALIZE_WHITESPACE
    - closest to the unpruned model **a** (mean 0.850), farthest **b** (mean 0.450); on the same 2 prompts
    they differ by 0.400 (95 % interval 0.400 to 0.400).
    """
    sets = similarity.groupby("prompts", sort=False) if "prompts" in similarity else [("", similarity)]
    lines = []
    for name, part in sets:
        rows = part.pivot(index="id", columns="variant", values="similarity")
        means = rows.mean().round(12).sort_values(ascending=False, kind="stable")
        ends = {value: means.index[means == value] for value in (means.iloc[0], means.iloc[-1])}
        closest, farthest = (f"{named(ends[mean])} (mean {mean:.3f})" for mean in means.iloc[[0, -1]])
        gap = paired_difference(rows[means.index[-1]], rows[means.index[0]])
        lines.append(
            (f"- *{escaped(name)}*: " if name else "- ")
            + f"closest to the unpruned model {closest}, farthest {farthest}; on the same {gap['n']} prompts "
            f"they differ by {gap['difference']:.3f}{interval(gap)}"
            + ("." if gap["ci_low"] > 0 else ", so the order may be chance.")
        )
    return "\n".join(lines)


def closest_reading(similarity: pd.DataFrame) -> str:
    """Say on what share of the prompts each variant is the closest to the base, alone or with another.

    >>> values = {"variant": ["a", "a", "b", "b"], "id": [0, 1, 0, 1], "similarity": [1, 1, 1, 0.4]}
    >>> print(closest_reading(pd.DataFrame(values)))  # doctest: +NORMALIZE_WHITESPACE
    Closest to the base, alone or with another: **a** on 100 %, **b** on 50 % of 2 prompts; on 1 of them
    several are equally close.
    """
    rows = similarity.pivot(index="id", columns="variant", values="similarity")
    closest = rows.eq(rows.max(axis=1), axis=0)
    shares = closest.mean().sort_values(ascending=False, kind="stable")
    each = ", ".join(f"**{escaped(name)}** on {percent(value)}" for name, value in shares.items())
    return (
        f"Closest to the base, alone or with another: {each} of {len(rows)} prompts; on "
        f"{(closest.sum(axis=1) > 1).sum()} of them several are equally close."
    )


def divergence_reading(by_response: pd.DataFrame) -> str:
    """Say how many responses of the base each variant would leave (``divergence_by_response``).

    >>> print(divergence_reading(pd.DataFrame({"variant": "cut", "agrees_for": [4, 9], "n_tokens": [9, 9]})))
    - **cut** would choose another next token in 1 of 2 responses, in the median after 4 tokens.
    """
    lines = []
    for name, part in by_response.groupby("variant", sort=False):
        left = part.loc[part["agrees_for"] < part["n_tokens"], "agrees_for"]
        after = f", in the median after {left.median():.0f} tokens" if len(left) else ""
        many = f"in {len(left)} of {len(part)} responses"
        lines.append(f"- **{escaped(name)}** would choose another next token {many}{after}.")
    return "\n".join(lines)


def shift_reading(losses: pd.DataFrame) -> str:
    """Say whether answers that moved farther go with more accuracy lost (``loss_against_similarity``)."""
    found = shift_agreement(losses)
    ordered = losses.sort_values("similarity", kind="stable")
    shown = {
        "The largest shift that lost less than 0.1": ordered[ordered["lost"] < 0.1].head(1),
        "The smallest shift that lost 0.1 or more": ordered[ordered["lost"] >= 0.1].tail(1),
    }
    lines = [
        f"- {what}: **{escaped(row.variant)}** on *{escaped(row.task)}*, similarity {row.similarity:.2f}, "
        f"lost {row.lost:+.2f}."
        for what, rows in shown.items()
        for row in each_row(rows)
    ]
    rank = f"{found['spearman']:.2f} (95 % interval {found['ci_low']:.2f} to {found['ci_high']:.2f})"
    what = f"shift (1 - similarity) and accuracy lost, over {found['n']} points"
    return "\n".join([f"- Spearman's rank correlation of {what}: {rank}.", *lines])


def _chance(n: int) -> str:
    """Say how far two shares of ``n`` items can lie apart by chance: 95 % of a normal, at one half each."""
    largest = f"{1.96 * np.sqrt(0.5 / n):.2f}"
    return f"With {n} items a task, a difference of less than {largest} between two scores can be chance."
