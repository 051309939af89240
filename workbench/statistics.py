"""Intervals and paired tests over texts, items or seeds; rank agreement of layer metrics. No torch.

Every interval says where the mean of *other units of the same kind* (texts, items, seeds) would lie, for
this model and this way of measuring: nothing of other models, of how a text was cut, or of a choice among
many that was made on the same units. What the units cannot support is NaN: no interval of width 0. The same
values and seed give the same interval.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm, rankdata
from scipy.stats import t as student

from workbench.checks import one_of, whole_number

_Array = NDArray[np.float64]

#: units below which a percentile bootstrap covers too little (5 units: 85 % instead of 95 %)
FEW = 60

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
    rng = np.random.default_rng(whole_number(seed, "seed", least=0))
    return rng.multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)


def checked_interval(confidence: Any, seed: Any) -> None:
    """Raise a ValueError unless these are a coverage and a seed: to call before anything runs for hours.

    >>> checked_interval(95, 0)
    Traceback (most recent call last):
    ValueError: confidence must be between 0 and 1, got 95
    """
    number = isinstance(confidence, float | np.floating)
    if not number or not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence!r}")
    whole_number(seed, "seed", least=0)


def bootstrap_interval(
    values: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    bounds: tuple[float, float] = (-np.inf, np.inf),
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Return the bootstrap interval of a mean over units (texts, items, seeds).

    From 60 units on this is the percentile bootstrap. With fewer, that covers less than it says, so there it
    is the studentized bootstrap (Efron and Tibshirani 1993, 12.5), and Student's t below four units.
    Values that are all 0 or 1, without weights, are right or wrong answers: theirs is Wilson's interval.
    It says where the mean over other units of the same kind lies. The least of many means, picked by these
    very units, lies below what its interval says.

    Args:
        values: ``[n]``, or ``[n, k]`` for ``k`` means over the same units, which are resampled together.
        weights: ``[n]`` non-negative weights of the units, for a weighted mean such as a loss per token over
            texts of different lengths (value: the text's own mean loss, weight: its tokens). Default: equal.
        groups: ``[n]`` names: values of one name are one unit, such as copies of a text, or several points
            of it. Default: each value is a unit.
        bounds: the least and the most that a value can be; the ends stay within.
        confidence: coverage, between 0 and 1.
        n_resamples: number of bootstrap resamples.
        seed: of the resampling.

    Returns:
        ``(low, high)``: two floats for ``[n]``, two arrays ``[k]`` for ``[n, k]``. One unit, or units that
        are all equal, tell nothing of the spread: NaN, not an interval of width 0.

    Raises:
        ValueError: for no values, values that are not finite, weights that do not fit, or a setting out of
            range.

    >>> low, high = bootstrap_interval([0.0, 1.0, 1.0, 1.0])
    >>> round(low, 2), round(high, 2)
    (0.3, 0.95)
    """
    checked_interval(confidence, seed)
    whole_number(n_resamples, "n_resamples")
    columns = _finite("values", values, columns=True)
    weight = np.ones(len(columns)) if weights is None else _finite("weights", weights)
    if len(weight) != len(columns) or (weight < 0).any() or weight.sum() == 0:
        raise ValueError(
            f"weights must be {len(columns)} numbers >= 0, not all 0, one for each value, got {len(weight)}"
        )
    alone = columns.ndim == 1 and weights is None and groups is None
    if alone and len(columns) > 1 and np.isin(columns, (0, 1)).all():
        counted = binomtest(int(columns.sum()), len(columns)).proportion_ci(confidence, method="wilson")
        return float(counted.low), float(counted.high)
    flat, weight = _units(columns.reshape(len(columns), -1), weight, groups)
    low, high = _mean_interval(flat, weight, confidence, n_resamples, seed).clip(*bounds)
    return (float(low[0]), float(high[0])) if columns.ndim == 1 else (low, high)


def _units(values: _Array, weight: _Array, groups: ArrayLike | None) -> tuple[_Array, _Array]:
    """Return the values and weights of units: one for each group; those that weigh nothing are left out."""
    if groups is not None:
        names, unit = np.unique(np.asarray(groups), return_inverse=True)
        if len(unit) != len(values):
            raise ValueError(f"groups must name the unit of each of {len(values)} values, got {len(unit)}")
        belongs = (np.arange(len(names))[:, None] == unit) * weight
        total = belongs.sum(axis=1)
        values, weight = belongs @ values / np.where(total > 0, total, 1)[:, None], total
    return values[weight > 0], weight[weight > 0]


def _mean_interval(values: _Array, weight: _Array, confidence: float, n_resamples: int, seed: int) -> _Array:
    """Return the ends of the interval of the weighted mean of units ``[n, k]``: ``[2, k]``."""
    n = len(values)
    spread = np.ptp(values, axis=0) > 1e-12 * np.abs(values).max(axis=0)
    ends = np.full((2, values.shape[1]), np.nan)
    if n > 1 and spread.any():
        drawn = resample_counts(n, n_resamples=n_resamples, seed=seed) * weight
        if n < FEW:
            ends[:, spread] = _studentized(values[:, spread], weight, drawn, confidence)
        else:
            means = drawn @ values[:, spread] / drawn.sum(axis=1, keepdims=True)
            ends[:, spread] = _quantiles(means.T, confidence)
    return ends


def _studentized(values: _Array, weight: _Array, drawn: _Array, confidence: float) -> _Array:
    """Return the interval by the distribution of each resample's own t, ``[2, k]``."""
    n = len(values)
    mean = weight @ values / weight.sum()
    away = values - mean
    error = np.sqrt(n / (n - 1) * (weight**2 @ away**2)) / weight.sum()
    total = drawn.sum(axis=1, keepdims=True)
    means = drawn @ away / total
    # the sum over drawn units of (weight * (value - the resample's mean))^2
    heavy = drawn * weight
    sums = heavy @ away**2 - 2 * means * (heavy @ away) + means**2 * heavy.sum(axis=1, keepdims=True)
    errors = np.sqrt(n / (n - 1) * sums.clip(min=0)) / total
    flat = errors < 1e-6 * error  # a resample of one value has no t
    with np.errstate(divide="ignore", invalid="ignore"):
        scores = np.where(flat, np.nan, means / errors)
    tail = (1 - confidence) / 2
    plain = student.ppf([[tail], [1 - tail]], n - 1)
    low, high = np.repeat(plain, values.shape[1], axis=1)
    told = flat.mean(axis=0) <= tail if n > 3 else np.zeros(values.shape[1], dtype=bool)
    if told.any():
        ends = np.nanquantile(scores[:, told], [tail, 1 - tail], axis=0)
        low[told], high[told] = ends.clip(4 * plain[0], 4 * plain[1])  # four units can give any width
    return np.stack([mean - high * error, mean - low * error])


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
    answers, 0 or 1 each, this is the exact McNemar test, and the interval is that of Bonett and Price (2012)
    for paired proportions, which holds where few items or none differ. For other values it is that of
    ``bootstrap_interval``, NaN where no item differs. Several comparisons: correct their p-values by
    ``holm``.

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
    checked_interval(confidence, seed)
    change = two - one
    higher, lower = int((change > 0).sum()), int((change < 0).sum())
    if np.isin([one, two], (0, 1)).all():
        low, high = _paired_proportions(higher, lower, len(change), confidence)
    else:
        equal = np.ones(len(change))
        ends = _mean_interval(
            change[:, None], equal, confidence, whole_number(n_resamples, "n_resamples"), seed
        )
        low, high = ends[:, 0].tolist()
    p_value = float(binomtest(higher, higher + lower).pvalue) if higher + lower else 1.0
    found = {"n": len(change), "difference": float(change.mean()), "ci_low": low, "ci_high": high}
    return found | {"higher": higher, "lower": lower, "ties": int((change == 0).sum()), "p_value": p_value}


def _paired_proportions(higher: int, lower: int, n: int, confidence: float) -> tuple[float, float]:
    """Return the interval of a difference of paired proportions: Wald's with an item added to each kind."""
    if n < 2:
        return np.nan, np.nan
    up, down = (higher + 1) / (n + 2), (lower + 1) / (n + 2)
    half = float(norm.ppf((1 + confidence) / 2)) * np.sqrt((up + down - (up - down) ** 2) / (n + 2))
    return float(max(-1, up - down - half)), float(min(1, up - down + half))


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Return p-values corrected for how many there are (Holm 1979): below 0.05, all such hold together.

    The chance that any of the differences called clear is none is then at most the level, whatever depends on
    what.

    Args:
        p_values: ``[n]`` in ``[0, 1]``; NaN is no test, stays NaN and does not count.

    Returns:
        ``[n]`` corrected p-values, none below its own.

    Raises:
        ValueError: for a value outside of ``[0, 1]``.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]
    """
    given = np.asarray(p_values, dtype=np.float64).ravel()
    tested = np.flatnonzero(~np.isnan(given))
    if ((given[tested] < 0) | (given[tested] > 1)).any():
        raise ValueError(
            f"p_values must be between 0 and 1, got {given[tested].min()} to {given[tested].max()}"
        )
    order = tested[np.argsort(given[tested], kind="stable")]
    corrected = np.full(len(given), np.nan)
    steps = given[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps)) if len(order) else steps
    return corrected


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
    by: str | None = "size",
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
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
        n_resamples: no longer used, the interval is computed.
        seed: no longer used.

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
    checked_interval(confidence, seed)
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


def spearman_interval(
    pair: NDArray[np.float64], confidence: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the interval of Spearman's correlation of ``pair [2, n]``, by Fisher's transformation.

    The variance is that of Bonett and Wright (2000). A correlation of exactly 1 is read as the largest one
    below it, for the end that faces 0: five blocks in the same order support [-0.17, 1], not [1, 1].

    Args:
        pair: the two sides.
        confidence: coverage, between 0 and 1.
        n_resamples: no longer used.
        seed: no longer used.

    Returns:
        The two ends; NaN for fewer than four pairs, a constant side, or one on which all but one or two
        values are tied (one wrong answer of eighty has no ranks to speak of).

    >>> low, high = spearman_interval(np.array([[1.0, 2, 3, 4, 5], [1, 2, 3, 4, 5]]))
    >>> round(low, 2), high
    (-0.17, 1.0)
    """
    checked_interval(confidence, seed)
    n = pair.shape[1]
    apart = [n - np.unique(side, return_counts=True)[1].max(initial=0) for side in pair]
    if n < 4 or min(apart) < 3:
        return np.nan, np.nan
    rho = float(spearman(*pair))
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
