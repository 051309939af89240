"""What a shift of the answers foretells: the accuracy lost, beside how far the answers moved."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.agreement import spearman, spearman_interval
from workbench.checks import checked
from workbench.evaluation.items import paired_items, right_or_wrong
from workbench.forgetting.similarity import encoder_read, mean_interval, response_similarity, seen
from workbench.runs.keys import reads
from workbench.statistics import paired_difference

_FORETOLD = ("spearman", "rho_low", "rho_high")
#: answers that must have turned, and that must not, before it is said which do; independent points of a
#: correlation
MIN_TURNED, MIN_POINTS = 5, 10


@reads(encoder_read, instead_of=("encoder",))
def loss_against_similarity(
    base: pd.DataFrame,
    others: Mapping[str, pd.DataFrame],
    *,
    encoder: Any = "all-MiniLM-L6-v2",
    device: str | None = None,
) -> pd.DataFrame:
    """Set the accuracy that each variant lost on each task beside how far its answers to that task moved.

    An answer that is the same cannot turn wrong, so the share of changed answers is given beside the
    similarity: what it already tells is no finding of the embeddings. On tasks with choices, and wherever
    one answer only is right, a changed answer is a wrong one where the base is right: arithmetic.

    Args:
        base: the unpruned model's items, from ``read_items``.
        others: variant -> its items of the same tasks. Tasks enter whose items are right or wrong and have
            answers as text: what was generated, or the choice that was taken.
        encoder: as for ``response_similarity``.
        device: where to encode.

    Returns:
        One row a variant, task and number of shots: variant, task, n_shot, n, lost (base's accuracy less the
        variant's) with lost_low and lost_high (paired over items), similarity (mean over the items that the
        encoder can read) with similarity_low and similarity_high, changed (share of answers that are not the
        base's), n_right (items that the base gets right), n_wrong (of those, the ones that turned wrong),
        changed_is_wrong (of those, the very ones turned wrong whose answer changed), spearman with rho_low
        and rho_high: over those items, do less similar answers turn wrong? (1 = always; NaN where that is
        arithmetic, and where fewer than 5 turned or fewer than 5 did not.)

    Raises:
        ValueError: different items under the same number, or no task of that kind.
    """
    pairs = {name: _answered(base, items) for name, items in others.items()}
    sides = {name: _as_responses(frame, "other") for name, frame in pairs.items()}
    first = _as_responses(next(iter(pairs.values())), "base")
    found = response_similarity(first, sides, encoder=encoder, device=device)
    frame = pd.concat(pairs, names=["variant"]).reset_index("variant")
    frame = frame.assign(similarity=found["similarity"].to_numpy(), unseen=found["unseen"].to_numpy())
    keys = ["variant", "task", "n_shot"]
    groups = frame.groupby(keys, sort=False)
    return pd.DataFrame([dict(zip(keys, values, strict=True)) | _task_row(part) for values, part in groups])


def shift_agreement(
    losses: pd.DataFrame, *, confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> dict[str, Any]:
    """Say whether similarity foretells loss: Spearman's correlation over the rows of a frame.

    Variants of one model answer the same items, so the rows of a task are not independent: points are the
    tasks, and these are resampled, each with all its variants. Below 10 tasks no correlation is given.

    Args:
        losses: of ``loss_against_similarity``: ``lost``, ``similarity``; ``task``, ``n_shot``, ``changed``
            where there. Without ``task`` every row is a point of its own.
        confidence: coverage of the interval.
        n_resamples: number of resamples.
        seed: of the resampling.

    Returns:
        n (rows), n_points (independent ones), spearman (1 = the less similar, the more is lost), ci_low,
        ci_high, changed_spearman (of the share of changed answers with the loss: what no embedding is needed
        for), note ("" or why there is no correlation). NaN for fewer than 10 points or where one side is
        constant.

    Raises:
        ValueError: for missing columns or no rows.

    >>> losses = pd.DataFrame({"similarity": np.linspace(0, 1, 10), "lost": np.linspace(1, 0, 10)})
    >>> round(shift_agreement(losses)["spearman"], 6), shift_agreement(losses.head(4))["note"]
    (1.0, 'no correlation from 4 independent points, fewer than 10')
    """
    checked(losses, ["lost", "similarity"], "losses")
    keys = [key for key in ("task", "n_shot") if key in losses]
    points = losses.groupby(keys, sort=False).ngroup() if keys else pd.Series(range(len(losses)))
    found: dict[str, Any] = {"n": len(losses), "n_points": points.nunique()}
    found |= dict.fromkeys(("spearman", "ci_low", "ci_high", "changed_spearman"), np.nan) | {"note": ""}
    if found["n_points"] < MIN_POINTS:
        kind = "tasks" if keys else "independent points"
        why = f"no correlation from {found['n_points']} {kind}, fewer than {MIN_POINTS}"
        return found | {"note": why.replace(" 1 tasks", " 1 task")}
    pair = np.stack([-losses["similarity"].to_numpy(float), losses["lost"].to_numpy(float)])
    found["spearman"] = float(spearman(*pair))
    if np.isnan(found["spearman"]):
        return found | {"note": "no correlation: all similarities, or all losses, are equal"}
    if "changed" in losses:
        found["changed_spearman"] = float(spearman(losses["changed"], losses["lost"]))
    ends = _resampled(pair, points.to_numpy(), confidence, n_resamples, seed)
    return found | dict(zip(("ci_low", "ci_high"), ends, strict=True))


def _resampled(
    pair: np.ndarray, points: np.ndarray, confidence: float, n_resamples: int, seed: int
) -> tuple[float, float]:
    """Return the ends of the interval of Spearman's correlation; points are drawn with all their rows."""
    rows = [np.flatnonzero(points == point) for point in np.unique(points)]
    drawn = np.random.default_rng(seed).integers(len(rows), size=(n_resamples, len(rows)))
    samples = (np.concatenate([rows[point] for point in one]) for one in drawn)
    # a resample without spread shows no agreement
    rho = np.nan_to_num([spearman(*pair[:, sample]) for sample in samples])
    low, high = np.percentile(rho, [50 * (1 - confidence), 50 * (1 + confidence)])
    return float(low), float(high)


def _answered(base: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Return the paired items of tasks that are right or wrong and whose answers are texts."""
    pairs = right_or_wrong(paired_items(base, other))
    told = (pairs["base_response"].str.strip() != "") | (pairs["other_response"].str.strip() != "")
    pairs = pairs[told.groupby([pairs["task"], pairs["n_shot"]]).transform("any")]
    if pairs.empty:
        raise ValueError("base must hold a task whose items are right or wrong and have an answer, got none")
    return pairs.reset_index(drop=True)


def _as_responses(pairs: pd.DataFrame, side: str) -> pd.DataFrame:
    keys = pairs["task"].astype(str) + "/" + pairs["n_shot"].astype(str) + "/" + pairs["item"].astype(str)
    return pd.DataFrame({"id": keys, "prompt": pairs["prompt"], "response": pairs[f"{side}_response"]})


def _task_row(part: pd.DataFrame) -> dict[str, Any]:
    change = paired_difference(part["other"], part["base"])
    read = seen(part)["similarity"].astype(float)
    low, high = mean_interval(read)
    changed = part["base_response"].str.strip() != part["other_response"].str.strip()
    right = part["base"] == 1
    wrong = part["other"] == 0
    arithmetic = bool((changed == wrong)[right].all())
    lost = {"lost": change["difference"], "lost_low": change["ci_low"], "lost_high": change["ci_high"]}
    near = {"similarity": read.mean(), "similarity_low": low, "similarity_high": high}
    counts = {"changed": changed.mean(), "n_right": int(right.sum()), "n_wrong": int((right & wrong).sum())}
    foretold = _foretold(seen(part[right])) if not arithmetic else dict.fromkeys(_FORETOLD, np.nan)
    return {"n": len(part), **lost, **near, **counts, "changed_is_wrong": arithmetic, **foretold}


def _foretold(right: pd.DataFrame) -> dict[str, float]:
    """Return whether the less similar of the right answers turn wrong, where enough did and did not."""
    wrong = right["other"] == 0
    if min(wrong.sum(), (~wrong).sum()) < MIN_TURNED:
        return dict.fromkeys(_FORETOLD, np.nan)
    pair = np.stack([-right["similarity"].to_numpy(float), wrong.to_numpy(float)])
    return dict(zip(_FORETOLD, (float(spearman(*pair)), *spearman_interval(pair)), strict=True))
