"""Sentences on merges and drafts: is a merge better than its ends, which draft is accepted, what it saves."""

from __future__ import annotations

from typing import Any

import pandas as pd

from workbench.checks import checked
from workbench.tables.sentences import counted, escaped, interval, named, percent, span


def merging_reading(gain: pd.DataFrame, angles: pd.DataFrame | None = None) -> str:
    """Say whether a merge is better than either of its ends, by more than chance (SDD D).

    Args:
        gain: frame of ``merge_gain``.
        angles: frame of a merge (``run.read("merged/....csv")``): adds how far apart the two ends lie.

    Raises:
        ValueError: for missing columns or no rows.

    >>> row = {"variant": "m", "against": "a", "n": 100, "difference": 0.02, "ci_low": -0.01, "ci_high": 0.05}
    >>> print(merging_reading(pd.DataFrame([row | {"p_adjusted": 0.4, "better": False}])))
    No merge is better than either of its ends by more than chance. The nearest is **m**: 0.020 above **a** (95 % interval -0.010 to 0.050, corrected p 0.4; 100 items).
    """  # noqa: E501 - one printed line
    checked(gain, ["variant", "against", "n", "difference", "p_adjusted", "better"], "gain")
    by_variant = gain.groupby("variant", sort=False)
    worst = gain.loc[by_variant["difference"].idxmin()].set_index("variant")
    better = worst[by_variant["better"].all()]
    row = (better if len(better) else worst).sort_values("difference", kind="stable", ascending=False).iloc[0]
    head = "No merge is better than either of its ends by more than chance. The nearest is"
    if len(better):
        head = f"Better than either end by more than chance: {named(better.index)}. The best is"
    above = "above" if row["difference"] >= 0 else "below"
    ends = span(row) or "all alike"
    told = f"{ends}, corrected p {row['p_adjusted']:.2g}; {counted(int(row['n']), 'item')}"
    against = f"{abs(row['difference']):.3f} {above} {named([row['against']])}"
    text = f"{head} {named([row.name])}: {against} ({told})."
    return text if angles is None else f"{text} {_apart(angles)}"


def _apart(angles: pd.DataFrame) -> str:
    linear, degrees = int(angles["linear"].sum()), angles["angle"]
    return (
        f"The two ends lie {degrees.median():.1f} degrees apart at the median and {degrees.max():.1f} at "
        f"most; {linear} of {counted(len(angles), 'tensor')} are so nearly parallel that SLERP is linear "
        "interpolation there."
    )


_COMPARED = ("variant", "against", "n", "difference", "ci_low", "ci_high", "p_adjusted")


def drafts_reading(comparison: pd.DataFrame) -> str:
    """Say of each pair of drafts which one is accepted more often on the same prompts.

    Args:
        comparison: frame of ``compare_drafts``.

    Raises:
        ValueError: for missing columns or no rows.

    >>> row = {"variant": "b", "against": "a", "n": 40, "difference": 0.1, "ci_low": 0.05, "ci_high": 0.15}
    >>> print(drafts_reading(pd.DataFrame([row | {"p_adjusted": 0.001}])))
    - **b** is accepted more often than **a**: 10 points of acceptance more (95 % interval 5 to 15, corrected p 0.001; 40 prompts).
    """  # noqa: E501 - one printed line
    checked(comparison, _COMPARED, "comparison")
    return "\n".join(map(_pair_line, comparison.to_dict("records")))


def _pair_line(row: dict[str, Any]) -> str:
    kind = f" on {escaped(row['kind'])}" if row.get("kind") else ""
    first, second, points = named([row["variant"]]), named([row["against"]]), 100 * row["difference"]
    head = f"{first} and {second} are not told apart{kind}: {points:+.2g} points of acceptance"
    if row["p_adjusted"] < 0.05:
        word = "more" if points > 0 else "less"
        head = f"{first} is accepted {word} often than {second}{kind}: "
        head += f"{abs(points):.2g} points of acceptance {word}"
    ends = span({end: 100 * row[end] for end in ("ci_low", "ci_high")}, ".2g") or "all alike"
    return f"- {head} ({ends}, corrected p {row['p_adjusted']:.2g}; {counted(row['n'], 'prompt')})."


def speed_reading(speeds: pd.DataFrame) -> str:
    """Say which draft and draft length were fastest, and how near theory comes.

    Args:
        speeds: frame of ``speed_ups``.

    Raises:
        ValueError: for missing columns or no rows.
    """
    checked(speeds, ["draft", "draft_length", "speed_up", "theory", "cost", "acceptance"], "speeds")
    best = speeds.loc[speeds["speed_up"].idxmax()]
    apart = (speeds["speed_up"] / speeds["theory"] - 1).abs().max()
    unsure = ", not told apart from it" if best.get("speed_up_low", 1.0) < 1 else ""
    verdict = "as fast as plain decoding"
    verdict += unsure if best["speed_up"] > 1 else ", so that it does not pay here"
    accepted, tokens = percent(best["acceptance"]), counted(int(best["draft_length"]), "token")
    return (
        f"Best is {named([best['draft']])} with {tokens} a round: {best['speed_up']:.2f} times {verdict}"
        f"{interval(best, '.2f', 'speed_up')}; theory gives {best['theory']:.2f} for its {accepted} accepted "
        f"tokens at {best['cost']:.2f} target steps a draft step. Over all rows measurement and theory "
        f"differ by {percent(apart)} at most."
    )
