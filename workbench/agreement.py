"""Do metrics of layers rank the same blocks alike? Spearman's correlation with its interval. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm, rankdata

from workbench.checks import one_of

#: column of a metric frame -> its sign as a *cost* of removal (similarity is high where removal costs
#: little).
COST_SIGNS = {"distance": 1, "influence": 1, "damage": 1, "similarity": -1}


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Return Spearman's rank correlation of two sides ``[n]``, ties by average rank.

    In ``[-1, 1]``; NaN, without a warning, where one side is constant.

    >>> round(spearman([1, 2, 3, 4], [1, 3, 2, 4]), 3)
    0.8
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        return float(np.corrcoef(rankdata(first), rankdata(second))[0, 1])


def rank_agreement(
    metrics: Mapping[str, pd.DataFrame], *, by: str | None = "size", confidence: float = 0.95
) -> pd.DataFrame:
    """Say how far metrics rank the same blocks alike: Spearman's correlation of each pair, with an interval.

    Each metric is read as a *cost of removal*: distance, influence and damage as they stand, similarity
    negated. So 1 always means that two metrics would remove blocks in the same order, and a metric against
    ``block_damage`` says how far to trust the metric. A frame of layers counts as blocks of size 1; each pair
    is compared on the blocks that both hold. Blocks overlap, so read the interval (``spearman_interval``) as
    a description of this model, not as a test.

    Args:
        metrics: name -> frame of ``angular_distances``, ``block_influence``, ``removal_similarity``,
            ``block_damage``.
        by: ``"size"`` for one row for each block size. None compares the blocks of all sizes together: one
            number that is high for any metric that grows with the size.
        confidence: coverage of the interval, between 0 and 1.

    Returns:
        Frame ``first, second, (size,) n, spearman, ci_low, ci_high``; the correlation is NaN where fewer than
        three blocks are shared or one side is constant, the interval where ``spearman_interval`` has none.

    Raises:
        ValueError: for fewer than two metrics, a frame without blocks and a metric, or a pair that shares no
            block.

    >>> one = pd.DataFrame({"layer": range(3), "influence": [0.1, 0.2, 0.3]})
    >>> other = pd.DataFrame({"layer": range(3), "similarity": [0.9, 0.8, 0.7]})
    >>> rank_agreement({"influence": one, "similarity": other})["spearman"].tolist()
    [1.0]
    """
    if len(metrics) < 2:
        raise ValueError(f"metrics must hold at least two named frames, got {list(metrics)}")
    one_of(by, (None, "size"), "by")
    costs = {name: removal_cost(frame) for name, frame in metrics.items()}
    rows = []
    for first, second in combinations(costs, 2):
        both = costs[first].merge(costs[second], on=["start", "size"], suffixes=("_1", "_2"))
        if both.empty:
            raise ValueError(f"metrics must share blocks (start, size), {first!r} and {second!r} share none")
        groups: Any = both.groupby("size") if by else [(None, both)]
        for size, group in groups:
            pair = group[["cost_1", "cost_2"]].to_numpy().T
            low, high = spearman_interval(pair, confidence)
            rho = spearman(*pair) if len(group) > 2 else np.nan
            row = {"first": first, "second": second, "size": size, "n": len(group)}
            rows.append(row | {"spearman": rho, "ci_low": low, "ci_high": high})
    return pd.DataFrame(rows).drop(columns=[] if by else ["size"])


def spearman_interval(pair: NDArray[np.float64], confidence: float = 0.95) -> tuple[float, float]:
    """Return the interval of Spearman's correlation of ``pair [2, n]``, by Fisher's transformation.

    The variance is that of Bonett and Wright (2000). A correlation of exactly 1 is read as the largest one
    below it, for the end that faces 0: five blocks in the same order support [-0.17, 1], not [1, 1].

    Args:
        pair: the two sides.
        confidence: coverage, between 0 and 1.

    Returns:
        The two ends; NaN for fewer than four pairs, a constant side, or one on which all but one or two
        values are tied (one wrong answer of eighty has no ranks to speak of).

    >>> low, high = spearman_interval(np.array([[1.0, 2, 3, 4, 5], [1, 2, 3, 4, 5]]))
    >>> round(low, 2), high
    (-0.17, 1.0)
    """
    n = pair.shape[1]
    apart = [n - np.unique(side, return_counts=True)[1].max(initial=0) for side in pair]
    if n < 4 or min(apart) < 3:
        return np.nan, np.nan
    rho = spearman(*pair)
    most = 1 - 12 / (n**3 - n)  # two neighbours have changed places
    clipped = min(max(rho, -most), most)
    half = float(norm.ppf((1 + confidence) / 2)) * np.sqrt((1 + clipped**2 / 2) / (n - 3))
    low, high = np.tanh(np.arctanh(clipped) - half), np.tanh(np.arctanh(clipped) + half)
    return (-1.0 if rho < -most else float(low)), (1.0 if rho > most else float(high))


def removal_cost(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what removing each block costs by a metric's frame: ``start, size, cost``, low = remove first.

    Raises:
        ValueError: when the frame has neither ``layer`` nor ``start, size``, or not exactly one known metric.

    >>> removal_cost(pd.DataFrame({"layer": [0, 1], "similarity": [0.9, 0.7]})).values.tolist()
    [[0.0, 1.0, -0.9], [1.0, 1.0, -0.7]]
    """
    found = [name for name in COST_SIGNS if name in frame]
    if len(found) != 1 or not ("layer" in frame or {"start", "size"} <= set(frame)):
        raise ValueError(f"a metric needs layer or start, size and one of {[*COST_SIGNS]}, got {list(frame)}")
    if "layer" in frame:
        frame = frame.assign(start=frame["layer"], size=1)
    frame = frame.assign(cost=COST_SIGNS[found[0]] * frame[found[0]].astype(float))
    blocks = frame[["start", "size", "cost"]].dropna()
    return blocks.astype({"start": "int64", "size": "int64"}).reset_index(drop=True)
