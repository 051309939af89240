"""Intervals and paired tests over texts, items or seeds. No torch.

Every interval says where the mean of *other units of the same kind* (texts, items, seeds) would lie, for
this model and this way of measuring: nothing of other models, of how a text was cut, or of a choice among
many that was made on the same units. What the units cannot support is NaN: no interval of width 0. The same
values and seed give the same interval.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm, permutation_test
from scipy.stats import t as student

from workbench.checks import told

_Array = NDArray[np.float64]

#: units below which a percentile bootstrap covers too little (5 units: 85 % instead of 95 %)
FEW = 60


@lru_cache(maxsize=1)  # intervals over as many units follow one another
def resample_counts(n: int, *, n_resamples: int = 2000, seed: int = 0) -> NDArray[np.float64]:
    """Return how often each of ``n`` units is drawn in each bootstrap resample.

    A resampled mean is then one matrix product, ``counts @ values / n``, whatever the number of columns.

    Returns:
        Array ``[n_resamples, n]``, for reading alone; each row sums to ``n``.

    >>> resample_counts(3, n_resamples=2).sum(axis=1).tolist()
    [3.0, 3.0]
    """
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_resamples).astype(np.float64)
    drawn.flags.writeable = False
    return drawn


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
    is the studentized bootstrap (Efron and Tibshirani 1993, 12.5), and Student's t below four units. Two or
    more values that are all 0 or 1, without weights, groups and other bounds, are right or wrong answers:
    theirs is Wilson's interval, also where all are right. It says where the mean over other units of the same
    kind lies. The least of many means, picked by these very units, lies below what its interval says.

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
        are all equal (and no right or wrong answers), tell nothing of the spread: NaN, not an interval of
        width 0.

    Raises:
        ValueError: for no values, values that are not finite, weights that do not fit, or a setting out of
            range.

    >>> low, high = bootstrap_interval([0.0, 1.0, 1.0, 1.0])
    >>> round(low, 2), round(high, 2)
    (0.3, 0.95)
    """
    columns = _finite("values", values, columns=True)
    weight = _weights(weights, len(columns))
    answers = tuple(bounds) in ((-np.inf, np.inf), (0, 1))  # no cosines or differences, which can be -1
    alone = answers and columns.ndim == 1 and weights is None and groups is None
    if alone and len(columns) > 1 and np.isin(columns, (0, 1)).all():
        counted = binomtest(int(columns.sum()), len(columns)).proportion_ci(confidence, method="wilson")
        return float(counted.low), float(counted.high)
    flat, weight = _units(columns.reshape(len(columns), -1), weight, groups)
    low, high = _mean_interval(flat, weight, confidence, n_resamples, seed).clip(*bounds)
    return (float(low[0]), float(high[0])) if columns.ndim == 1 else (low, high)


def _weights(weights: ArrayLike | None, n: int) -> _Array:
    weight = np.ones(n) if weights is None else _finite("weights", weights)
    if len(weight) != n or (weight < 0).any() or weight.sum() == 0:
        raise ValueError(f"weights must be {n} numbers >= 0, not all 0, got {len(weight)}")
    return weight


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
            ends[:, spread] = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
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
    weights: ArrayLike | None = None,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Compare two variants on the same items: mean difference, its interval, and a test of that mean.

    For right/wrong answers, 0 or 1 each, that count alike the p-value is the exact McNemar test, and the
    interval is that of Bonett and Price (2012) for paired proportions, which holds where few items or none
    differ. Else the p-value is that of Fisher's randomization test: how often the mean is as far from 0 when
    the sign of each unit's difference is drawn by chance; exact up to 13 units that differ, of 9,999 draws
    beyond, so that it is never below 0.0002. The interval is then that of ``bootstrap_interval``, NaN where
    all items differ alike; of one item there is none. Both are two-sided. Several comparisons: correct their
    p-values by ``holm``.

    Args:
        first: ``[n]`` values of one variant, such as right (1) or wrong (0) for each item.
        second: ``[n]`` values of the other variant, in the same order of items.
        weights: ``[n]`` as for ``bootstrap_interval``, such as the tokens of texts. Default: equal.
        groups: ``[n]`` as for ``bootstrap_interval``: items of one name are one unit. Default: each is one.
        confidence: coverage of the interval, between 0 and 1.
        n_resamples: number of bootstrap resamples.
        seed: of the resampling and of the signs.

    Returns:
        ``n`` (units), ``difference`` (mean of second - first), ``ci_low``, ``ci_high``, ``higher`` and
        ``lower`` (units where second is above, below first), ``ties``, ``p_value`` (1.0 when none differs).

    Raises:
        ValueError: when the two do not hold the same number of finite values, at least one, or weights or
            groups do not fit.

    >>> result = paired_difference([1, 1, 1, 1], [0, 0, 0, 1])
    >>> result["difference"], result["lower"], result["p_value"]
    (-0.75, 3, 0.25)
    """
    one, two = _finite("first", first), _finite("second", second)
    if len(one) != len(two):
        raise ValueError(f"first and second must hold one value for each item, got {len(one)} and {len(two)}")
    columns, weight = _units((two - one)[:, None], _weights(weights, len(one)), groups)
    change = columns[:, 0]
    higher, lower = int((change > 0).sum()), int((change < 0).sum())
    if weights is None and groups is None and np.isin([one, two], (0, 1)).all():
        low, high = _paired_proportions(higher, lower, len(change), confidence)
        p_value = float(binomtest(higher, higher + lower).pvalue) if higher + lower else 1.0
    else:
        low, high = _mean_interval(columns, weight, confidence, n_resamples, seed)[:, 0].tolist()
        p_value = _by_signs(change * weight, seed)
    mean = float(np.average(change, weights=weight))
    found = {"n": len(change), "difference": mean, "ci_low": low, "ci_high": high}
    return found | {"higher": higher, "lower": lower, "ties": int((change == 0).sum()), "p_value": p_value}


def _by_signs(changes: _Array, seed: int) -> float:
    """Return the two-sided p-value of a sum when each sign is as likely as the other."""
    changes = changes[changes != 0]
    if len(changes) < 2:  # one is as far from 0 with either sign
        return 1.0
    asked: Any = {"permutation_type": "samples", "vectorized": True, "batch": max(1, 2**22 // len(changes))}
    return float(permutation_test((changes,), np.sum, rng=np.random.default_rng(seed), **asked).pvalue)


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
    if ((given < 0) | (given > 1)).any():
        raise ValueError(f"p_values must be between 0 and 1, got {np.nanmin(given)} to {np.nanmax(given)}")
    order = np.argsort(given, kind="stable")  # NaN comes last
    steps = given[order] * (np.count_nonzero(~np.isnan(given)) - np.arange(len(given)))
    corrected = np.empty_like(given)
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected


def _finite(name: str, values: ArrayLike, *, columns: bool = False) -> NDArray[np.float64]:
    with told(f"{name} must be numbers", ValueError, TypeError):
        array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 1 + columns) or not len(array):
        shape = "[n] or [n, k]" if columns else "[n]"
        raise ValueError(f"{name} must be {shape} numbers, at least one, got shape {list(array.shape)}")
    if bad := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{name} must be finite, got {bad} that are not (NaN or inf)")
    return array
