"""What the papers claim, and what the frames of one run say to it: confirmed, refuted or undecided."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.agreement import rank_agreement
from workbench.distances.blocks import best_blocks
from workbench.evaluation.recovery import average_recovery
from workbench.evaluation.scores import accuracies
from workbench.evaluation.suites import CHANCE
from workbench.forgetting.similarity import seen
from workbench.statistics import paired_difference

#: claims of the papers, and what a run keeps that speaks to them
CLAIMS = {
    "C1": "blocks chosen by similarity lose less than the deepest, the shallowest or random ones",
    "C2": "reasoning collapses before knowledge does",
    "C3": "healing restores most of what was lost",
    "C4": "self-distilled data heals better than the set's own, on average",
    "C5": "its responses stay closer to the unpruned model's",
    "C6": "more distilled data recovers more",
    "C7": "a SLERP of two distilled models beats either",
    "C8": "drafts healed by it are accepted more often",
    "C9": "iterative recovery beats removing all at once",
    "C10": "angular distance and block influence agree on single layers",
}
#: frames that a claim needs, and the notebook that writes what is missing
NEEDS = {
    "C1": (("distances.csv", "damage.csv"), "01"),
    "C2": (("depth.csv",), "05"),
    "C3": (("scores.csv", "items.jsonl"), "05"),
    "C4": (("comparisons.csv",), "05"),
    "C5": (("similarity.csv",), "06"),
    "C6": ((), "03 (then 04 to 06), in a run with more n_examples"),
    "C7": ((), "08"),
    "C8": (("acceptance.csv",), "09"),
    "C9": ((), "07"),
    "C10": (("distances.csv", "influence.csv"), "01"),
}
SFT, DISTILLED = "pruned-sft", "pruned-self-distilled"
Row = tuple[str, str]


def claim_frames() -> list[str]:
    """Return the names of a run's frames that speak to any claim."""
    return sorted({name for names, _ in NEEDS.values() for name in names})


def verdict(value: float, low: float, high: float) -> str:
    """Return what an interval says of a claim that its value is above 0.

    >>> verdict(0.2, 0.1, 0.3), verdict(-0.2, -0.3, -0.1), verdict(0.1, -0.1, 0.3)
    ('confirmed', 'refuted', 'undecided')
    """
    low, high = sorted((low, high))
    if low > 0 and value > 0:
        return "confirmed"
    return "refuted" if high < 0 and value < 0 else "undecided"


def claims_table(frames: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """Say of each claim of the papers what the frames of a run say to it.

    Args:
        frames: those that the run holds, by file name, such as ``"damage.csv"``.

    Returns:
        claim, says, verdict (confirmed or refuted where the 95 % interval lies on one side of nothing, else
        undecided; "not asked" where a frame is missing), number (what it rests on, or the notebook that
        fills the gap).
    """
    asked: dict[str, Callable[..., Row]] = {
        "C1": blocks_claim, "C2": order_claim, "C3": healing_claim, "C4": data_claim, "C5": closeness_claim,
        "C8": drafts_claim, "C10": metrics_claim,
    }  # fmt: skip
    rows = []
    for claim, says in CLAIMS.items():
        needed, notebook = NEEDS[claim]
        if claim not in asked or any(name not in frames for name in needed):
            told: Row = ("not asked", f"notebook {notebook}")
        else:
            told = asked[claim](*(frames[name] for name in needed))
        rows.append({"claim": claim, "says": says, "verdict": told[0], "number": told[1]})
    return pd.DataFrame(rows)


def claims_reading(claims: pd.DataFrame) -> str:
    """Say how many claims a run confirms, refutes and leaves open, and which (``claims_table``).

    >>> claims_reading(pd.DataFrame({"claim": ["C1", "C2"], "verdict": ["confirmed", "undecided"]}))
    '**1 of 2** claims confirmed (C1); undecided: C2.'
    """
    by_verdict = {kind: list(part["claim"]) for kind, part in claims.groupby("verdict", sort=False)}
    confirmed = by_verdict.pop("confirmed", [])
    first = f"**{len(confirmed)} of {len(claims)}** claims confirmed"
    first += f" ({', '.join(confirmed)})" if confirmed else ""
    return "; ".join([first, *(f"{kind}: {', '.join(names)}" for kind, names in by_verdict.items())]) + "."


def blocks_claim(distances: pd.DataFrame, damage: pd.DataFrame) -> Row:
    """Compare the damage of the nearest block of each size with that of the deepest and the shallowest."""
    clear, gaps = [], []
    for size, part in damage.dropna(subset="start").groupby("size"):
        rows = part.set_index("start").sort_index()
        nearest = int(best_blocks(distances, [int(size)])["start"].iloc[0])
        if nearest not in rows.index or len(rows) < 3:
            continue
        best = rows.loc[nearest]
        for blind in {int(rows.index[-2]), int(rows.index[0])} - {nearest}:
            other = rows.loc[blind]
            gaps.append(float(other["damage"] - best["damage"]))
            clear.append((other["ci_low"] > best["ci_high"]) * 1 - (other["ci_high"] < best["ci_low"]) * 1)
    if not gaps:
        return (
            "undecided",
            "no size at which the nearest block is another than the deepest and the shallowest",
        )
    better, worse = clear.count(1), clear.count(-1)
    number = f"{better} of {len(gaps)} blind blocks clearly cost more, {worse} clearly less; on average "
    number += f"{np.mean(gaps):+.3f} nats a token"
    whole = "confirmed" if better > len(gaps) / 2 and not worse else "undecided"
    return ("refuted" if worse > len(gaps) / 2 else whole), number


def order_claim(depth: pd.DataFrame) -> Row:
    """Compare up to how many layers reasoning and knowledge keep half of what they are above a guess."""
    rows = accuracies(depth)
    rows = rows.assign(above=rows["value"] - rows["task"].map(CHANCE).fillna(0.0))
    base = rows[rows["n_removed"] == 0].set_index("task")
    known = base.index[base["above"] > 1.96 * base["stderr"].fillna(0)]
    half = {}
    for kind in ("reasoning", "knowledge"):
        part = rows[(rows["category"] == kind) & rows["task"].isin(known)]
        if part.empty:
            return "undecided", f"the whole model is no better than a guess on every task of {kind}"
        shares = part["above"] / part["task"].map(base["above"])
        by_depth = shares.groupby(part["n_removed"]).mean().sort_index()
        kept = by_depth.index[(by_depth >= 0.5).cummin()]
        half[kind] = int(kept.max())
    number = f"half is kept up to {half['reasoning']} layers (reasoning) and {half['knowledge']} (knowledge)"
    gap = half["knowledge"] - half["reasoning"]
    return ("confirmed" if gap > 0 else "refuted" if gap < 0 else "undecided"), number


def healing_claim(scores: pd.DataFrame, items: pd.DataFrame) -> Row:
    """Compare what healing brings with half of what pruning took, by the average over tasks."""
    found = average_recovery(scores, items=items).set_index("variant")
    if "pruned" not in found.index or not {SFT, DISTILLED} & set(found.index):
        return "not asked", "notebook 04"
    best = (
        found.loc[[name for name in (SFT, DISTILLED) if name in found.index]].sort_values("recovery").iloc[-1]
    )
    pruned = found.loc["pruned", "recovery"]
    half = (1 + pruned) / 2
    number = f"pruned keeps {pruned:.1%} of the base's average, {best.name} {best['recovery']:.1%}"
    number += f" [{best['ci_low']:.1%}, {best['ci_high']:.1%}]"
    if pruned >= 1:
        return "undecided", f"{number}: nothing was lost"
    return verdict(best["recovery"] - half, best["ci_low"] - half, best["ci_high"] - half), number


def data_claim(comparisons: pd.DataFrame) -> Row:
    """Average the paired differences of the two healed variants over the tasks."""
    rows = comparisons[comparisons["metric"] != "loss"] if "metric" in comparisons else comparisons
    pairs = {(DISTILLED, SFT): 1.0, (SFT, DISTILLED): -1.0}
    sign = [pairs.get(pair, 0.0) for pair in zip(rows["variant"], rows["against"], strict=True)]
    rows = rows.assign(sign=sign).query("sign != 0")
    if rows.empty:
        return "not asked", "notebook 04"
    mean = float((rows["sign"] * rows["difference"]).mean())
    errors = ((rows["ci_high"] - rows["ci_low"]) / (2 * 1.96)).fillna(0.0)
    half = 1.96 * float(np.sqrt((errors**2).sum())) / len(rows)
    number = (
        f"self-distilled less SFT {mean:+.3f} [{mean - half:+.3f}, {mean + half:+.3f}], {len(rows)} tasks"
    )
    return verdict(mean, mean - half, mean + half), number


def closeness_claim(similarity: pd.DataFrame) -> Row:
    """Compare the similarities of the two healed variants on the same prompts."""
    wide = seen(similarity).pivot_table(index="id", columns="variant", values="similarity")
    if not {SFT, DISTILLED} <= set(wide):
        return "not asked", "notebook 04"
    wide = wide.dropna(subset=[SFT, DISTILLED])
    gap = paired_difference(wide[SFT], wide[DISTILLED])
    number = f"self-distilled less SFT {gap['difference']:+.3f}{_interval(gap)}, {gap['n']} prompts"
    return verdict(gap["difference"], gap["ci_low"], gap["ci_high"]), number


def drafts_claim(acceptance: pd.DataFrame) -> Row:
    """Compare how often drafts of the two healed variants are accepted."""
    rates = acceptance.groupby("draft")["acceptance"].mean()
    if not {SFT, DISTILLED} <= set(rates.index):
        return "not asked", "notebook 09"
    gap = rates[DISTILLED] - rates[SFT]
    number = f"accepted: self-distilled {rates[DISTILLED]:.3f}, SFT {rates[SFT]:.3f} (no interval)"
    return ("undecided" if abs(gap) < 0.01 else "confirmed" if gap > 0 else "refuted"), number


def metrics_claim(distances: pd.DataFrame, influence: pd.DataFrame) -> Row:
    """Correlate the ranks that distance and block influence give to single layers."""
    metrics = {"angular distance": distances, "block influence": influence}
    row = rank_agreement(metrics).query("size == 1").iloc[0]
    number = f"Spearman {row['spearman']:.2f}{_interval(row)} over {row['n']} layers"
    return verdict(row["spearman"], row["ci_low"], row["ci_high"]), number


def _interval(row: Any) -> str:
    return "" if np.isnan(row["ci_low"]) else f" [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"
