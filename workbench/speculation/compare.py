"""Drafts compared on the same prompts: is one accepted more often than another, by more than chance?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked, one_of
from workbench.speculation.acceptance import summed_up
from workbench.statistics import bootstrap_interval, holm, paired_difference


def compare_drafts(
    rounds: pd.DataFrame,
    between: Iterable[tuple[str, str]],
    *,
    draft_length: int | None = None,
    by_kind: bool = False,
    confidence: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare the acceptance of pairs of drafts, prompt by prompt (SDD 4).

    Args:
        rounds: frame of ``draft_rounds``.
        between: pairs (first, second) of drafts.
        draft_length: at which length; None for the shortest: at 1 each token stands on its own.
        by_kind: each kind of prompt on its own.
        confidence: coverage of the intervals.
        seed: of the resampling.

    Returns:
        variant and against (the second and the first of the pair), kind where asked, draft_length, n
        (prompts), difference (mean over prompts of the second's acceptance less the first's), ci_low,
        ci_high, higher and lower (prompts), p_value (of ``paired_difference``), p_adjusted (Holm, over this
        frame).

    Raises:
        ValueError: a pair that names no draft of the frame, no rounds of that length, or drafts that were
            asked other prompts.
    """
    checked(rounds, ["draft", "kind", "prompt", "draft_length", "accepted", "proposed"], "rounds")
    lengths = sorted(map(int, rounds["draft_length"].unique()))
    k = lengths[0] if draft_length is None else draft_length
    one_of(k, lengths, "draft_length")
    frame = checked(rounds[rounds["draft_length"] == k], [], "rounds", unique=["draft", "kind", "prompt"])
    frame = summed_up(frame)
    frame["rate"] = frame["accepted"] / frame["proposed"]
    kinds: list[Any] = list(dict.fromkeys(frame["kind"])) if by_kind else [None]
    rows = []
    for first, second in between:
        for kind in kinds:
            part = frame if kind is None else frame[frame["kind"] == kind]
            told = {"variant": second, "against": first} | ({} if kind is None else {"kind": kind})
            rows.append(told | {"draft_length": k} | _compared(part, first, second, confidence, seed))
    if not rows:
        raise ValueError("between must hold at least one pair of drafts, got none")
    found = pd.DataFrame(rows)
    found["p_adjusted"] = holm(found["p_value"])
    return found


def _compared(part: pd.DataFrame, first: str, second: str, confidence: float, seed: int) -> dict[str, float]:
    table = part.pivot(index=["kind", "prompt"], columns="draft", values="rate")
    for name in (first, second):
        one_of(name, table.columns, "between")
    pair = table[[first, second]]
    if pair.isna().any(axis=None):
        raise ValueError(f"drafts {first!r} and {second!r} must have been asked the same prompts")
    found = paired_difference(pair[first], pair[second], confidence=confidence, seed=seed)
    change = pair[second] - pair[first]
    settings: Any = {"bounds": (-1.0, 1.0), "confidence": confidence, "seed": seed}
    ends = bootstrap_interval(change, **settings) if np.ptp(change) else (np.nan, np.nan)
    return found | dict(zip(("ci_low", "ci_high"), ends, strict=True))
