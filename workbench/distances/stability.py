"""How sure a pick is: the spread of distances over texts and over calibration sets. No torch, no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked, is_whole, one_of
from workbench.distances.blocks import (
    best_blocks,
    block_metric,
    block_text,
    checked_sizes,
    layers_in,
    sizes_in,
)
from workbench.statistics import bootstrap_interval, resample_counts

#: what an interval of distances says
INTERVAL = "of each block by itself, over other texts cut in the same way"
#: what ``pick_stability`` can draw anew
OVER = ("texts", "endpoints", "both")


def mean_distances(angles: pd.DataFrame, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Average the angles of texts into distances, with their spread.

    Args:
        angles: frame ``text, start, size, angle`` of ``block_angles``, with ``point`` where it has several.
        confidence: coverage of the bootstrap interval over texts, between 0 and 1.
        seed: of the bootstrap.

    Returns:
        Frame ``start, size, distance, std, ci_low, ci_high, n_texts`` ordered by size, then start; ``std`` is
        the sample standard deviation over texts. With one text, spread and interval are NaN. The interval is
        that of each block by itself, over other texts that are cut in the same way; copies of a text count as
        one unit in it.

    Raises:
        ValueError: when columns or angles are missing.

    >>> angles = pd.DataFrame({"text": [0, 0, 1, 1], "start": [0, 1, 0, 1], "size": 1})
    >>> angles["angle"] = [0.3, 0.2, 0.5, 0.2]
    >>> mean_distances(angles)[["start", "size", "distance", "n_texts"]].values.tolist()
    [[0.0, 1.0, 0.4, 2.0], [1.0, 1.0, 0.2, 2.0]]
    """
    blocks, values, text = _angle_table(angles)
    by_text = pd.DataFrame(values).groupby(text).mean()  # a text counts once, whatever its points
    drawn: dict[str, Any] = {"confidence": confidence, "seed": seed, "groups": _groups(angles, by_text.index)}
    frame = blocks.assign(**mean_and_spread("distance", by_text.to_numpy(), **drawn))
    frame.attrs = angles.attrs | {"interval": INTERVAL}
    return frame


def mean_and_spread(
    name: str, values: np.ndarray, *, bounds: tuple[float, float] = (0.0, 1.0), **drawn: Any
) -> dict[str, Any]:
    """Return columns for the values of texts ``[text, k]``: mean, std and bootstrap interval over texts.

    ``bounds`` are those of the values; ``drawn`` goes to ``bootstrap_interval``.
    """
    low, high = bootstrap_interval(values, bounds=bounds, **drawn)
    std = values.std(axis=0, ddof=1) if len(values) > 1 else np.nan
    return {name: values.mean(axis=0), "std": std, "ci_low": low, "ci_high": high, "n_texts": len(values)}


def pick_stability(
    angles: pd.DataFrame,
    sizes: Iterable[int] | None = None,
    *,
    over: str = "texts",
    picks: pd.DataFrame | None = None,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Say how sure the pick is: how often resampling chooses the same block.

    Over texts, it asks whether other such texts would choose it; texts that all end in one token answer for
    that token alone. Over end points, it asks whether the same texts, cut elsewhere, would: that needs angles
    at several points of each text (``block_angles`` with ``position="random", points_per_text=8``).

    Args:
        angles: frame ``text, start, size, angle`` of ``block_angles``, with ``point`` where it has several.
        sizes: block sizes; None means every size in the frame.
        over: what a resample draws anew. ``"texts"``: the texts, each with all its points. ``"endpoints"``:
            one point for each text. ``"both"``: the texts, and one point for each.
        picks: judge these blocks (``size, start``, such as ``best_blocks`` of other distances) instead of
            those of least distance here.
        n_resamples: number of resamples.
        seed: of the resampling.

    Returns:
        Frame ``size, start, removed, distance, stability, runner_up, n_texts, over``: the block of least
        distance, the share of resamples (0..1) that pick it, and the start picked most often among the others
        (<NA> where none ever is). Equal distances go to the lower start; copies of a text are drawn together.
        With one text, or one point a text, there is nothing to resample: stability is NaN.

    Raises:
        ValueError: when columns or angles are missing, for end points of a frame without points, or for a
            size that the frame does not hold.

    >>> angles = pd.DataFrame({"text": [0, 0, 1, 1], "start": [0, 1, 0, 1], "size": 1})
    >>> angles["angle"] = [0.3, 0.2, 0.5, 0.2]
    >>> pick_stability(angles)[["size", "removed", "stability"]].values.tolist()
    [[1, '1', 1.0]]
    """
    one_of(over, OVER, "over")
    blocks, values, text = _angle_table(angles)
    if over != "texts" and "point" not in angles:
        raise ValueError(f"over={over!r} needs block_angles(position='random'), got no column 'point'")
    layers = layers_in(blocks)
    names, unit = np.unique(_groups(angles, text), return_inverse=True)
    per_text = np.unique(text, return_counts=True)[1]
    enough = len(names) > 1 if over != "endpoints" else per_text.max() > 1
    weights = _resampled(unit, text, over, n_resamples, seed)
    equally = _resampled(unit, text, None, n_resamples, seed)[0]
    rows = []
    for size in sizes_in(blocks, sizes):
        of_size = blocks["size"].to_numpy() == size
        starts, angle = blocks["start"].to_numpy()[of_size], values[:, of_size]
        means = equally @ angle
        best = int(means.argmin()) if picks is None else _place(picks, size, starts)
        chosen = np.bincount((weights @ angle).argmin(axis=1), minlength=len(starts)) / len(weights)
        others = np.where(np.arange(len(starts)) == best, 0.0, chosen)
        removed = block_text(starts[best], size, layers)
        stability = float(chosen[best]) if enough else np.nan
        runner_up = int(starts[others.argmax()]) if others.any() and enough else pd.NA
        rows.append((size, int(starts[best]), removed, float(means[best]), stability, runner_up))
    columns = ["size", "start", "removed", "distance", "stability", "runner_up"]
    frame = pd.DataFrame(rows, columns=columns).astype({"runner_up": "Int64"})
    return frame.assign(n_texts=len(np.unique(text)), over=over)


def calibration_ablation(
    distances: Mapping[str, pd.DataFrame], sizes: Iterable[int] | None = None
) -> pd.DataFrame:
    """Compare what calibration sets would remove: SDD table 7 as a frame.

    Args:
        distances: name of the calibration set -> its frame of ``angular_distances``, all for one model.
        sizes: block sizes (SDD: 2, 4, 6, 8); None means every size that can be removed.

    Returns:
        Frame ``size, calibration, start, removed, distance`` (the score) and, where there, ``std, ci_low,
        ci_high, n_texts``; one row for each size and set, sets in the order given.

    Raises:
        ValueError: for no set, sets for models of different layers, or a size out of range.

    >>> one = pd.DataFrame({"start": [0, 1], "size": 1, "distance": [0.3, 0.2]})
    >>> other = one.assign(distance=[0.1, 0.2])
    >>> calibration_ablation({"C4": one, "own": other})[["calibration", "removed"]].values.tolist()
    [['C4', '1'], ['own', '0']]
    """
    layers = {name: layers_in(block_metric(frame)[1]) for name, frame in distances.items()}
    first = next(iter(layers.values()))
    if any(other != first for other in layers.values()):
        raise ValueError(f"distances must come from one model, got sets over different layers: {layers}")
    asked = checked_sizes(sizes, len(first))
    parts = [best_blocks(frame, asked).assign(calibration=name) for name, frame in distances.items()]
    for part in parts:
        part.attrs = {}  # each set has its own provenance; the table's own is the sets' names
    extra = [c for c in ("std", "ci_low", "ci_high", "n_texts") if all(c in part for part in parts)]
    columns = ["size", "calibration", "start", "removed", "distance", *extra]
    return pd.concat(parts)[columns].sort_values("size", kind="stable", ignore_index=True)


def _resampled(unit: np.ndarray, text: np.ndarray, over: str | None, n: int, seed: int) -> np.ndarray:
    """Return the weight of each point in each resample, ``[n, point]``; as measured, ``[1, point]``.

    Args:
        unit: the unit of each point: its text, or the first copy of that.
        text: the text of each point.
        over: what is drawn anew; None: nothing, one row.
        n: number of resamples.
        seed: of the drawing.
    """
    _, of_text, points = np.unique(text, return_inverse=True, return_counts=True)
    drawn = np.ones((1, unit.max() + 1))
    if over in ("texts", "both"):
        drawn = resample_counts(unit.max() + 1, n_resamples=n, seed=seed)
    share = drawn[:, unit] / points[of_text]
    if over in ("endpoints", "both"):
        rng = np.random.default_rng([seed, 1])
        first = np.concatenate([[0], np.cumsum(points)[:-1]])
        # points come text by text: one of each text's own
        cut = first + (rng.random((n, len(points))) * points).astype(int)
        taken = np.zeros((n, len(text)))
        np.put_along_axis(taken, cut, 1.0, axis=1)
        share = drawn[:, unit] * taken
    weights: np.ndarray = share / share.sum(axis=1, keepdims=True)
    return weights


def _place(picks: pd.DataFrame, size: int, starts: np.ndarray) -> int:
    """Return where the pick of a size is among the starts."""
    mine = checked(picks, ["size", "start"], "picks").query("size == @size")["start"]
    if len(mine) != 1 or mine.item() not in starts:
        raise ValueError(f"picks must name one block of size {size} that angles hold, got start {list(mine)}")
    return int(np.flatnonzero(starts == mine.item())[0])


def _groups(angles: pd.DataFrame, texts: Any) -> np.ndarray:
    """Return the unit of each text: itself, or the first text that it is a copy of."""
    first = angles.attrs.get("first_of", [])
    return np.array([first[text] if is_whole(text) and 0 <= text < len(first) else text for text in texts])


def _angle_table(angles: Any) -> tuple[pd.DataFrame, np.ndarray, np.ndarray]:
    """Return the blocks, by size and start, the angles ``[point, block]``, and the text of each point."""
    point = ["text", "point"] if "point" in angles else ["text"]
    each = [*point, "start", "size"]
    checked(angles, [*each, "angle"], "angles", unique=each)
    table = angles.pivot(index=point, columns=["size", "start"], values="angle").sort_index(axis=1)
    if table.isna().to_numpy().any():
        raise ValueError("angles must hold one angle for every text and block, got some missing")
    text = table.index.get_level_values("text").to_numpy()
    return table.columns.to_frame(index=False)[["start", "size"]], table.to_numpy(), text
