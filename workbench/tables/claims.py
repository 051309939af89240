"""What the papers claim, and what the frames of one run say to it: confirmed, refuted or undecided."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from workbench.agreement import rank_agreement
from workbench.distances.blocks import best_blocks
from workbench.evaluation.recovery import average_recovery
from workbench.evaluation.scores import accuracies, score_intervals, task_names
from workbench.evaluation.suites import CHANCE
from workbench.forgetting.similarity import seen
from workbench.statistics import paired_difference

_KNOWN = tomllib.loads(Path(__file__).with_name("claims.toml").read_text(encoding="utf-8"))
#: claims of the papers, and what a run keeps that speaks to them
CLAIMS: dict[str, str] = {claim: known["says"] for claim, known in _KNOWN.items()}
#: frames that a claim needs, and the notebook that writes what is missing
NEEDS = {claim: (tuple(known["needs"]), known["notebook"]) for claim, known in _KNOWN.items()}
SFT, DISTILLED = "pruned-sft", "pruned-self-distilled"
#: what says whether self-distilled data is any other than the set's own, and the claims that compare the two
_DISTILLED, _OF_DATA = "distilled.jsonl", ("C4", "C5", "C8")
Row = tuple[str, str]


def claim_frames() -> list[str]:
    """Return the names of a run's frames that speak to any claim, or to what the two healed variants are."""
    return sorted({_DISTILLED, *(name for names, _ in NEEDS.values() for name in names)})


def missing_frames(frames: Mapping[str, pd.DataFrame], names: Sequence[str]) -> str:
    """Say which of some frames are not there, and the notebooks that write them; "" where all are.

    >>> missing_frames({}, ["similarity.csv"])
    'Not drawn: similarity.csv is not there as the run is now (notebook 06).'
    """
    writers = {name: notebook for needs, notebook in NEEDS.values() for name in needs}
    lacking = [
        f"{name} is not there as the run is now (notebook {writers[name]})"
        for name in names
        if name not in frames
    ]
    return f"Not drawn: {'; '.join(lacking)}." if lacking else ""


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
        undecided; "not asked" where a frame is missing, or where no rewrite was kept and so both healed
        variants are of the same data), number (what it rests on, or why it is not asked).
    """
    rows = []
    for claim, says in CLAIMS.items():
        needed, notebook = NEEDS[claim]
        told = ("not asked", f"notebook {notebook}")
        if claim in _ASKED and all(name in frames for name in needed):
            told = _ASKED[claim](*(frames[name] for name in needed))
            if claim in _OF_DATA and told[0] != "not asked" and _no_rewrites(frames.get(_DISTILLED)):
                told = ("not asked", "no rewrite was kept, so that both were healed on the same data")
        rows.append((claim, says, *told))
    return pd.DataFrame(rows, columns=["claim", "says", "verdict", "number"])


def _no_rewrites(distilled: pd.DataFrame | None) -> bool:
    """Return whether self-distilled data is known to be the set's own."""
    return distilled is not None and not distilled["kept"].any()


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
    better, worse, gaps = 0, 0, []
    for size, part in damage.dropna(subset="start").groupby("size"):
        rows = part.set_index("start").sort_index()
        nearest = int(best_blocks(distances, [int(size)])["start"].iloc[0])
        if nearest not in rows.index or len(rows) < 3:
            continue
        best, others = rows.loc[nearest], rows.loc[sorted({rows.index[-2], rows.index[0]} - {nearest})]
        gaps += list(others["damage"] - best["damage"])
        better += int((others["ci_low"] > best["ci_high"]).sum())
        worse += int((others["ci_high"] < best["ci_low"]).sum())
    if not gaps:
        other = "the nearest block is another than the deepest and the shallowest"
        return "undecided", f"no size at which {other}"
    number = f"{better} of {len(gaps)} blind blocks clearly cost more, {worse} clearly less; on average "
    number += f"{np.mean(gaps):+.3f} nats a token"
    whole = "confirmed" if better > len(gaps) / 2 and not worse else "undecided"
    return ("refuted" if worse > len(gaps) / 2 else whole), number


def order_claim(depth: pd.DataFrame) -> Row:
    """Compare up to how many layers reasoning and knowledge keep half of what they are above a guess.

    The interval is that of the gap over scores drawn again, each by its own error as if unpaired, and so
    rather too wide. A task with two numbers of shots counts twice.
    """
    rows = score_intervals(accuracies(depth).reset_index(drop=True))
    chance = rows["task"].map(CHANCE).fillna(0.0)
    rows = rows.assign(task=task_names(rows), above=rows["value"] - chance, low=rows["low"] - chance)
    rows["error"] = (rows["high"] - rows["low"] - chance) / (2 * 1.96)
    base = rows[rows["n_removed"] == 0]
    known = base.loc[base["low"].fillna(base["above"]) > 0, "task"]
    left: dict[str, int] = {}
    drawn: dict[str, Any] = {}
    random = np.random.default_rng(0)
    for kind in ("reasoning", "knowledge"):
        part = rows[(rows["category"] == kind) & rows["task"].isin(known)]
        if part.empty:
            return "undecided", f"the whole model is no better than a guess on every task of {kind}"
        place = {"index": "task", "columns": "n_removed", "dropna": False}
        above, error = (part.pivot_table(name, **place) for name in ("above", "error"))
        layers, measured = above.columns.to_numpy(), above.to_numpy()
        left[kind], drawn[kind] = int(_half_kept(measured, layers)), np.nan
        if error.notna().all(axis=None):
            noise = error.to_numpy() * random.normal(size=(2000, *error.shape))
            drawn[kind] = _half_kept(measured + noise, layers)
    gap = left["knowledge"] - left["reasoning"]
    low, high = np.quantile(drawn["knowledge"] - drawn["reasoning"], [0.025, 0.975])
    number = f"half is kept up to {left['reasoning']} layers (reasoning) and {left['knowledge']} (knowledge)"
    told = "" if np.isnan(low) else f" [{low:+.0f}, {high:+.0f}]"
    return verdict(gap, low, high), f"{number}, {gap:+d}{told}"


def _half_kept(above: NDArray[np.float64], layers: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return how many layers can go before less than half is kept, from scores ``[..., task, depth]``."""
    whole = above[..., :1]
    shares = np.nanmean(above / np.where(whole > 0, whole, np.inf), axis=-2)
    kept = np.logical_and.accumulate(shares >= 0.5, axis=-1)
    return np.asarray(np.where(kept, layers, 0).max(axis=-1))


def healing_claim(scores: pd.DataFrame, items: pd.DataFrame) -> Row:
    """Compare what healing brings with half of what pruning took, by the average over tasks."""
    found = average_recovery(scores, items=items).set_index("variant")
    healed = found[found.index.isin((SFT, DISTILLED))]
    if "pruned" not in found.index or healed.empty:
        return "not asked", "notebook 04"
    best, pruned = healed.sort_values("recovery").iloc[-1], found.loc["pruned", "recovery"]
    number = f"pruned keeps {pruned:.1%} of the base's average, {best.name} {best['recovery']:.1%}"
    ends = f" [{best['ci_low']:.1%}, {best['ci_high']:.1%}]"
    number += "" if np.isnan(best["ci_low"]) else ends
    if pruned >= 1:
        return "undecided", f"{number}: nothing was lost"
    return verdict(*(best[["recovery", "ci_low", "ci_high"]] - (1 + pruned) / 2)), number


def data_claim(comparisons: pd.DataFrame) -> Row:
    """Average the paired differences of the two healed variants over the tasks."""
    rows = comparisons[comparisons["metric"] != "loss"] if "metric" in comparisons else comparisons
    pairs = {(DISTILLED, SFT): 1.0, (SFT, DISTILLED): -1.0}
    sign = [pairs.get(pair, 0.0) for pair in zip(rows["variant"], rows["against"], strict=True)]
    rows = rows.assign(sign=sign).query("sign != 0")
    if rows.empty:
        return "not asked", "notebook 04"
    mean = float((rows["sign"] * rows["difference"]).mean())
    # no interval and no difference: no item differs; one without the other tells nothing of its error
    halves = ((rows["ci_high"] - rows["ci_low"]) / 2).mask(
        rows["difference"] == 0, lambda these: these.fillna(0)
    )
    half = float(np.linalg.norm(halves)) / len(rows)
    low, high = mean - half, mean + half
    told = "" if np.isnan(half) else f" [{low:+.3f}, {high:+.3f}]"
    number = f"self-distilled less SFT {mean:+.3f}{told}, {len(rows)} tasks"
    return verdict(mean, low, high), number


def closeness_claim(similarity: pd.DataFrame) -> Row:
    """Compare the similarities of the two healed variants on the same prompts."""
    wide = seen(similarity).pivot_table(index="id", columns="variant", values="similarity")
    return _healed_pair(wide, "self-distilled less SFT", "notebook 04")


def drafts_claim(rounds: pd.DataFrame) -> Row:
    """Compare how often the drafts of the two healed variants are accepted, prompt by prompt."""
    rows = rounds[rounds["draft_length"] == rounds["draft_length"].min()]
    taken, offered = (
        [sum(map(int, str(text).split())) for text in rows[name]] for name in ("accepted", "proposed")
    )
    rates = rows.assign(rate=np.divide(taken, np.maximum(offered, 1)))
    wide = rates.pivot_table(index=["kind", "prompt"], columns="draft", values="rate")
    return _healed_pair(wide, "accepted, self-distilled less SFT", "notebook 09")


def _healed_pair(wide: pd.DataFrame, what: str, notebook: str) -> Row:
    """Compare the columns of the two healed variants, row by row."""
    if not {SFT, DISTILLED} <= set(wide):
        return "not asked", notebook
    wide = wide.dropna(subset=[SFT, DISTILLED])
    gap = paired_difference(wide[SFT], wide[DISTILLED])
    number = f"{what} {gap['difference']:+.3f}{_interval(gap)}, {gap['n']} prompts"
    return verdict(gap["difference"], gap["ci_low"], gap["ci_high"]), number


def merging_claim(gain: pd.DataFrame) -> Row:
    """Say whether a merge beats both of its ends, by the p-values corrected for all comparisons."""
    merges = gain.groupby("variant", sort=False)
    if gain.empty:
        return "undecided", "no merge was compared"
    best = gain[gain["variant"] == merges["difference"].min().idxmax()]
    told = ", ".join(
        f"{row['difference']:+.3f}{_interval(row)} over {row['against']}" for _, row in best.iterrows()
    )
    if merges["better"].all().any():
        said = "confirmed"
    else:
        said = "refuted" if (merges["ci_high"].min() < 0).all() else "undecided"
    return said, f"{best['variant'].iloc[0]}: {told}"


def iterating_claim(scores: pd.DataFrame) -> Row:
    """Compare the perplexities of iterating and of removing at once after recovery, text set by text set.

    At once with as many updates as iterating has in all, where that was run. The interval is of the two as if
    unpaired, and so too wide: it confirms too seldom.
    """
    rows = scores[scores["metric"] == "word_perplexity"]
    depth = rows["variant"].str.extract(r"^iterate-(\d+)-P\+R$", expand=False).dropna().astype(int)
    longer = (rows["variant"] == "Direct-long+R").any()
    both = {"iterate": f"iterate-{depth.min()}-P+R" if len(depth) else ""}
    both["direct"] = "Direct-long+R" if longer else "Direct+R"
    sides = {side: rows[rows["variant"] == name].set_index("task") for side, name in both.items()}
    told, said = [], set()
    for task in sides["iterate"].index.intersection(sides["direct"].index):
        one, other = (sides[side].loc[task] for side in ("iterate", "direct"))
        gap = np.log(other["value"] / one["value"])
        half = 1.96 * np.hypot(one["stderr"] / one["value"], other["stderr"] / other["value"])
        said.add(verdict(gap, gap - half, gap + half))
        told.append(f"{one['value']:.4g} against {other['value']:.4g} on {task}")
    if not told:
        return "not asked", "notebook 07"
    trained = " with as many updates" if longer else ""
    number = f"perplexity, iterating against at once{trained}: {', '.join(told)}"
    return (said.pop() if len(said) == 1 else "undecided"), number


def metrics_claim(distances: pd.DataFrame, influence: pd.DataFrame) -> Row:
    """Correlate the ranks that distance and block influence give to single layers."""
    metrics = {"angular distance": distances, "block influence": influence}
    row = rank_agreement(metrics).query("size == 1").iloc[0]
    if np.isnan(row["spearman"]):
        return "undecided", "too few layers, or all alike, to rank"
    number = f"Spearman {row['spearman']:.2f}{_interval(row)} over {row['n']} layers"
    return verdict(row["spearman"], row["ci_low"], row["ci_high"]), number


def _interval(row: Any) -> str:
    return "" if np.isnan(row["ci_low"]) else f" [{row['ci_low']:+.2f}, {row['ci_high']:+.2f}]"


_ASKED: dict[str, Callable[..., Row]] = {
    "C1": blocks_claim,
    "C2": order_claim,
    "C3": healing_claim,
    "C4": data_claim,
    "C5": closeness_claim,
    "C7": merging_claim,
    "C8": drafts_claim,
    "C9": iterating_claim,
    "C10": metrics_claim,
}
