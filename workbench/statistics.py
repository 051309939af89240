"""Intervals and paired tests over texts, items or seeds; rank agreement of layer metrics. No torch.

Every interval here is a seeded percentile bootstrap: the same values and seed give the same interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, rankdata

from workbench.checks import one_of, whole_number

#: column of a metric frame -> its sign as a *cost* of removal (similarity is high where removal costs
#: little).
COST_SIGNS = {"distance": 1, "influence": 1, "damage": 1, "similarity": -1}


def resample_counts(n: int, *, n_resamples: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Return how often each of ``n`` units is drawn in each bootstrap resample.

    A resampled mean is then one matrix product, ``counts @ values / n``, whatever the number of columns.

    Returns:
        Array ``[n_resamples, n]``; each row sums to ``n``.

    Raises:
        ValueError: when ``n`` or ``n_resamples`` is not a whole number of at least 1.

    >>> resample_counts(3, n_resamples=2).sum(axis=1).tolist()
    [3.0, 3.0]
    """
    whole_number(n, "n")
    whole_number(n_resamples, "n_resamples")
    rng = np.random.default_rng(seed)
    return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)


def bootstrap_interval(
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Return the percentile bootstrap interval of a mean over units (texts, items, seeds).

    Args:
        values: ``[n]``, or ``[n, k]`` for ``k`` means over the same units, which are resampled together.
        weights: ``[n]`` non-negative weights of the units, for a weighted mean such as a loss per token over
            texts of different lengths (value: the text's own mean loss, weight: its tokens). Default: equal.
        confidence: coverage, between 0 and 1.
        n_resamples: number of bootstrap resamples.
        seed: of the resampling.

    Returns:
        ``(low, high)``: two floats for ``[n]``, two arrays ``[k]`` for ``[n, k]``. One unit tells nothing of
        the spread, so ``n = 1`` gives NaN, not an interval of width 0.

    Raises:
        ValueError: for no values, values that are not finite, weights that do not fit, or a setting out of
            range.

    >>> low, high = bootstrap_interval([0.0, 1.0, 1.0, 1.0])
    >>> low, high
    (0.25, 1.0)
    """
    columns = _finite("values", values, columns=True)
    weight = np.ones(len(columns)) if weights is None else _finite("weights", weights)
    if len(weight) != len(columns) or (weight < 0).any() or weight.sum() == 0:
        raise ValueError(
            f"weights must be {len(columns)} numbers >= 0, not all 0, one for each value, got {len(weight)}"
        )
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}")
    flat = columns.reshape(len(columns), -1)
    low, high = np.full((2, flat.shape[1]), np.nan)
    if len(columns) > 1:
        counts = resample_counts(len(columns), n_resamples=n_resamples, seed=seed) * weight
        total = counts.sum(axis=1, keepdims=True)
        kept = total[:, 0] > 0  # a resample of units that all weigh 0 has no mean
        low, high = _quantiles((counts[kept] @ flat / total[kept]).T, confidence)
    return (float(low[0]), float(high[0])) if columns.ndim == 1 else (low, high)


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    *,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Compare two variants on the same items: mean difference, its interval, and an exact sign test.

    The p-value is two-sided and exact (binomial over the items where the two differ). For right/wrong
    answers, 0 or 1 each, this is the exact McNemar test.

    Args:
        first: ``[n]`` values of one variant, such as right (1) or wrong (0) for each item.
        second: ``[n]`` values of the other variant, in the same order of items.
        confidence: coverage of the interval, between 0 and 1.
        n_resamples: number of bootstrap resamples.
        seed: of the resampling.

    Returns:
        ``n``, ``difference`` (mean of second - first), ``ci_low``, ``ci_high``, ``higher`` and ``lower``
        (items where second is above, below first), ``ties``, ``p_value`` (1.0 when no item differs).

    Raises:
        ValueError: when the two do not hold the same number of finite values, at least one.

    >>> result = paired_difference([1, 1, 1, 1], [0, 0, 0, 1])
    >>> result["difference"], result["lower"], result["p_value"]
    (-0.75, 3, 0.25)
    """
    one, two = _finite("first", first), _finite("second", second)
    if len(one) != len(two):
        raise ValueError(f"first and second must hold one value for each item, got {len(one)} and {len(two)}")
    change = two - one
    low, high = bootstrap_interval(change, confidence=confidence, n_resamples=n_resamples, seed=seed)
    higher, lower = int((change > 0).sum()), int((change < 0).sum())
    p_value = float(binomtest(higher, higher + lower).pvalue) if higher + lower else 1.0
    found = {"n": len(change), "difference": float(change.mean()), "ci_low": low, "ci_high": high}
    return found | {"higher": higher, "lower": lower, "ties": int((change == 0).sum()), "p_value": p_value}


def spearman(first: ArrayLike, second: ArrayLike) -> NDArray[np.float64] | float:
    """Return Spearman's rank correlation along the last axis, ties by average rank.

    Args:
        first: ``[..., n]`` values.
        second: values of the same shape.

    Returns:
        Correlation in ``[-1, 1]`` for each row, a float for ``[n]``; NaN where one side is constant.

    >>> round(spearman([1, 2, 3, 4], [1, 3, 2, 4]), 3)
    0.8
    """
    ranks = [rankdata(np.asarray(v, dtype=np.float64), axis=-1) for v in (first, second)]
    one, two = (r - r.mean(axis=-1, keepdims=True) for r in ranks)
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = (one * two).sum(axis=-1) / np.sqrt((one**2).sum(axis=-1) * (two**2).sum(axis=-1))
    return float(rho) if rho.ndim == 0 else np.clip(rho, -1.0, 1.0)


def rank_agreement(
    metrics: Mapping[str, pd.DataFrame],
    *,
    by: str | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Say how far metrics rank the same blocks alike: Spearman's correlation of each pair, with an interval.

    Each metric is read as a *cost of removal*: distance, influence and damage as they stand, similarity
    negated. So 1 always means that two metrics would remove blocks in the same order, and a metric against
    ``block_damage`` says how far to trust the metric. A frame of layers counts as blocks of size 1; each pair
    is compared on the blocks that both hold. The interval resamples blocks, which overlap: read it as a
    description of this model, not as a test.

    Args:
        metrics: name -> frame of ``angular_distances``, ``block_influence``, ``removal_similarity``,
            ``block_damage``.
        by: ``"size"`` for one row for each block size; None compares all blocks together.
        confidence: coverage of the interval, between 0 and 1.
        n_resamples: number of bootstrap resamples.
        seed: of the resampling.

    Returns:
        Frame ``first, second, (size,) n, spearman, ci_low, ci_high``; NaN where fewer than three blocks are
        shared or one side is constant.

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
            low, high = spearman_interval(pair, confidence, n_resamples, seed)
            rho = spearman(*pair) if len(group) > 2 else np.nan
            row = {"first": first, "second": second, "size": size, "n": len(group)}
            rows.append(row | {"spearman": rho, "ci_low": low, "ci_high": high})
    return pd.DataFrame(rows).drop(columns=[] if by else ["size"])


def spearman_interval(
    pair: NDArray[np.float64], confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the bootstrap interval of Spearman's correlation of ``pair [2, n]``; NaN below n = 3."""
    n = pair.shape[1]
    if n < 3:
        return np.nan, np.nan
    whole_number(n_resamples, "n_resamples")
    drawn = np.random.default_rng(seed).integers(n, size=(n_resamples, n))
    rho = np.asarray(spearman(pair[0][drawn], pair[1][drawn]))
    rho = rho[np.isfinite(rho)]  # a resample that drew one value only has no ranks
    low, high = _quantiles(rho, confidence) if len(rho) else (np.nan, np.nan)
    return float(low), float(high)


def removal_cost(frame: pd.DataFrame) -> pd.DataFrame:
    """Return what removing each block costs by a metric's frame: ``start, size, cost``, low = remove first.

    Raises:
        ValueError: when the frame has neither ``layer`` nor ``start, size``, or not exactly one known metric.

    >>> removal_cost(pd.DataFrame({"layer": [0, 1], "similarity": [0.9, 0.7]})).values.tolist()
    [[0.0, 1.0, -0.9], [1.0, 1.0, -0.7]]
    """
    columns = list(frame.columns) if isinstance(frame, pd.DataFrame) else []
    found = [name for name in COST_SIGNS if name in columns]
    if len(found) != 1 or not ("layer" in columns or {"start", "size"} <= set(columns)):
        got = columns or type(frame).__name__
        raise ValueError(
            f"a metric must be a frame with layer (or start, size) and one of {list(COST_SIGNS)}, got {got}"
        )
    if "layer" in columns:
        frame = frame.assign(start=frame["layer"], size=1)
    cost = COST_SIGNS[found[0]] * frame[found[0]].astype(float)
    blocks = frame[["start", "size"]].assign(cost=cost).dropna()
    return blocks.astype({"start": "int64", "size": "int64"}).reset_index(drop=True)


def _quantiles(samples: NDArray[np.float64], confidence: float) -> NDArray[np.float64]:
    """Return the ends of the central interval along the last axis, ``[2, ...]``."""
    tail = (1 - confidence) / 2
    return np.quantile(np.ascontiguousarray(samples), [tail, 1 - tail], axis=-1)


def _finite(name: str, values: ArrayLike, *, columns: bool = False) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 1 + columns) or not len(array):
        shape = "[n] or [n, k]" if columns else "[n]"
        raise ValueError(f"{name} must be {shape} numbers, at least one, got shape {list(array.shape)}")
    if bad := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{name} must be finite, got {bad} that are not (NaN or inf)")
    return array
