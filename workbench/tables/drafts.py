"""Sentences on merges and drafts: is a merge better than its ends, which draft is accepted, what it saves."""

from __future__ import annotations

import pandas as pd

from workbench.checks import checked
from workbench.tables.sentences import counted, each_row, escaped, interval, named, percent


def merging_reading(gain: pd.DataFrame, angles: pd.DataFrame | None = None) -> str:
    """Say whether a merge is better than either of its ends, by more than chance (SDD D).

    Args:
        gain: frame of ``merge_gain``.
        angles: frame of a merge (``run.read("merged/....csv")``): adds how far apart the two ends lie.

    >>> row = {"variant": "m", "against": "a", "n": 100, "difference": 0.02, "ci_low": -0.01, "ci_high": 0.05}
    >>> print(merging_reading(pd.DataFrame([row | {"p_adjusted": 0.4, "better": False}])))
    No merge is better than either of its ends by more than chance. The nearest is **m**: 0.020 above **a** (95 % interval -0.010 to 0.050, corrected p 0.4; 100 items).
    """  # noqa: E501 - one printed line
    checked(gain, ["variant", "against", "n", "difference", "p_adjusted", "better"], "gain")
    worst = {
        name: part.loc[part["difference"].idxmin()] for name, part in gain.groupby("variant", sort=False)
    }
    better = [name for name, part in gain.groupby("variant", sort=False) if part["better"].all()]
    best = max(better or worst, key=lambda name: float(worst[name]["difference"]))
    row = worst[best]
    head = "No merge is better than either of its ends by more than chance. The nearest is"
    if better:
        head = f"Better than either end by more than chance: {named(better)}. The best is"
    above = "above" if row["difference"] >= 0 else "below"
    told = f"{interval(row)[:-1]}, corrected p {row['p_adjusted']:.2g}; {counted(int(row['n']), 'item')})"
    against = f"{abs(row['difference']):.3f} {above} **{escaped(row['against'])}**"
    text = f"{head} **{escaped(best)}**: {against}{told}."
    return text if angles is None else f"{text} {_apart(angles)}"


def _apart(angles: pd.DataFrame) -> str:
    linear = int(angles["linear"].sum())
    return (
        f"The two ends lie {angles['angle'].median():.1f} degrees apart at the median and "
        f"{angles['angle'].max():.1f} at most; {linear} of {counted(len(angles), 'tensor')} are so nearly "
        "parallel that SLERP is linear interpolation there."
    )


_COMPARED = ("variant", "against", "n", "difference", "ci_low", "ci_high", "p_adjusted")


def drafts_reading(comparison: pd.DataFrame) -> str:
    """Say of each pair of drafts which one is accepted more often on the same prompts.

    Args:
        comparison: frame of ``compare_drafts``.

    >>> row = {"variant": "b", "against": "a", "n": 40, "difference": 0.1, "ci_low": 0.05, "ci_high": 0.15}
    >>> print(drafts_reading(pd.DataFrame([row | {"p_adjusted": 0.001}])))
    - **b** is accepted more often than **a**: 10 points of acceptance more (95 % interval 5 to 15, corrected p 0.001; 40 prompts).
    """  # noqa: E501 - one printed line
    checked(comparison, _COMPARED, "comparison")
    return "\n".join(map(_pair_line, each_row(comparison)))


def _pair_line(row: object) -> str:
    told = row._asdict()  # type: ignore[attr-defined]
    kind = f" on {escaped(told['kind'])}" if told.get("kind") else ""
    first, second = f"**{escaped(told['variant'])}**", f"**{escaped(told['against'])}**"
    points = 100 * told["difference"]
    if told["p_adjusted"] < 0.05:
        word = "more" if points > 0 else "less"
        head = (
            f"{first} is accepted {word} often than {second}{kind}: {abs(points):.2g} points of acceptance "
        )
        head += word
    else:
        head = f"{first} and {second} are not told apart{kind}: {points:+.2g} points of acceptance"
    ends = f"{100 * told['ci_low']:.2g} to {100 * told['ci_high']:.2g}"
    sure = f"corrected p {told['p_adjusted']:.2g}; {counted(told['n'], 'prompt')}"
    return f"- {head} (95 % interval {ends}, {sure})."


def speed_reading(speeds: pd.DataFrame) -> str:
    """Say which draft and draft length were fastest, and how near theory comes.

    Args:
        speeds: frame of ``speed_ups``.
    """
    checked(speeds, ["draft", "draft_length", "speed_up", "theory", "cost", "acceptance"], "speeds")
    best = speeds.loc[speeds["speed_up"].idxmax()]
    apart = (speeds["speed_up"] / speeds["theory"] - 1).abs().max()
    verdict = "as fast as plain decoding" + ("" if best["speed_up"] > 1 else ", so that it does not pay here")
    return (
        f"Best is **{escaped(best['draft'])}** with {counted(int(best['draft_length']), 'token')} a round: "
        f"{best['speed_up']:.2f} times {verdict} (95 % interval {best['speed_up_low']:.2f} to "
        f"{best['speed_up_high']:.2f}); theory gives {best['theory']:.2f} for its "
        f"{percent(best['acceptance'])} accepted tokens at {best['cost']:.2f} target steps a draft step. "
        f"Over all rows measurement and theory differ by {percent(apart)} at most."
    )
