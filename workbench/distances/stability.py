"""How sure a pick is: the spread of distances over texts and over calibration sets. No torch, no model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from workbench.checks import checked
from workbench.distances.blocks import (
    best_blocks,
    block_metric,
    block_text,
    checked_sizes,
    layers_in,
    sizes_in,
)
from workbench.statistics import bootstrap_interval, resample_counts


def mean_distances(angles: pd.DataFrame, *, confidence: float = 0.95, seed: int = 0) -> pd.DataFrame:
    """Average the angles of texts into distances, with their spread.

    Args:
        angles: frame ``text, start, size, angle`` of ``block_angles``.
        confidence: coverage of the bootstrap interval over texts, between 0 and 1.
        seed: of the bootstrap.

    Returns:
        Frame ``start, size, distance, std, ci_low, ci_high, n_texts`` ordered by size, then start; ``std`` is
        the sample standard deviation over texts. With one text, spread and interval are NaN.

    Raises:
        ValueError: when columns or angles are missing.

    >>> angles = pd.DataFrame({"text": [0, 0, 1, 1], "start": [0, 1, 0, 1], "size": 1})
    >>> angles["angle"] = [0.3, 0.2, 0.5, 0.2]
    >>> mean_distances(angles)[["start", "size", "distance", "n_texts"]].values.tolist()
    [[0.0, 1.0, 0.4, 2.0], [1.0, 1.0, 0.2, 2.0]]
    """
    blocks, values = _angle_table(angles)
    frame = blocks.assign(**mean_and_spread("distance", values, confidence=confidence, seed=seed))
    frame.attrs = dict(angles.attrs)
    return frame


def mean_and_spread(name: str, values: np.ndarray, *, confidence: float, seed: int) -> dict[str, Any]:
    """Return columns for the values of texts ``[text, k]``: mean, std and bootstrap interval over texts."""
    low, high = bootstrap_interval(values, confidence=confidence, seed=seed)
    std = values.std(axis=0, ddof=1) if len(values) > 1 else np.nan
    return {name: values.mean(axis=0), "std": std, "ci_low": low, "ci_high": high, "n_texts": len(values)}


def pick_stability(
    angles: pd.DataFrame, sizes: Iterable[int] | None = None, *, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Say how sure the pick is: how often bootstrap resamples of the texts choose the same block.

    Args:
        angles: frame ``text, start, size, angle`` of ``block_angles``.
        sizes: block sizes; None means every size in the frame.
        n_resamples: number of resamples of the texts.
        seed: of the resampling.

    Returns:
        Frame ``size, start, removed, distance, stability, runner_up, n_texts``: the block of least distance,
        the share of resamples (0..1) that pick it, and the start picked most often among the others (<NA>
        where none ever is). Equal distances go to the lower start. With one text there is nothing to
        resample: stability is NaN.

    Raises:
        ValueError: when columns or angles are missing, or for a size that the frame does not hold.

    >>> angles = pd.DataFrame({"text": [0, 0, 1, 1], "start": [0, 1, 0, 1], "size": 1})
    >>> angles["angle"] = [0.3, 0.2, 0.5, 0.2]
    >>> pick_stability(angles)[["size", "removed", "stability"]].values.tolist()
    [[1, '1', 1.0]]
    """
    blocks, values = _angle_table(angles)
    layers = layers_in(blocks)
    counts = resample_counts(len(values), n_resamples=n_resamples, seed=seed)
    rows = []
    for size in sizes_in(blocks, sizes):
        of_size = blocks["size"].to_numpy() == size
        starts, angle = blocks["start"].to_numpy()[of_size], values[:, of_size]
        best = int(angle.mean(axis=0).argmin())
        picks = np.bincount((counts @ angle).argmin(axis=1), minlength=len(starts)) / len(counts)
        others = np.where(np.arange(len(starts)) == best, 0.0, picks)
        removed = block_text(starts[best], size, layers)
        stability = float(picks[best]) if len(values) > 1 else np.nan
        runner_up = int(starts[others.argmax()]) if others.any() and len(values) > 1 else pd.NA
        distance = float(angle[:, best].mean())
        rows.append((size, int(starts[best]), removed, distance, stability, runner_up, len(values)))
    columns = ["size", "start", "removed", "distance", "stability", "runner_up", "n_texts"]
    return pd.DataFrame(rows, columns=columns).astype({"runner_up": "Int64"})


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
    if not distances:
        raise ValueError("distances must hold at least one named frame of angular_distances, got none")
    layers = {name: layers_in(block_metric(frame)[1]) for name, frame in distances.items()}
    first = next(iter(layers.values()))
    if any(other != first for other in layers.values()):
        counts = {name: len(numbers) for name, numbers in layers.items()}
        raise ValueError(
            f"distances must all come from one model, got sets over different layers: {counts} layers"
        )
    asked = checked_sizes(sizes, len(first))
    parts = [best_blocks(frame, asked).assign(calibration=name) for name, frame in distances.items()]
    for part in parts:
        part.attrs = {}  # each set has its own provenance; the table's own is the sets' names
    extra = [c for c in ("std", "ci_low", "ci_high", "n_texts") if all(c in part for part in parts)]
    columns = ["size", "calibration", "start", "removed", "distance", *extra]
    return pd.concat(parts)[columns].sort_values("size", kind="stable", ignore_index=True)


def _angle_table(angles: Any) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the blocks, by size and start, and the angles ``[text, block]``."""
    checked(angles, ["text", "start", "size", "angle"], "angles")
    table = angles.pivot(index="text", columns=["size", "start"], values="angle").sort_index(axis=1)
    if table.isna().to_numpy().any():
        raise ValueError("angles must hold one angle for every text and block, got some missing")
    return table.columns.to_frame(index=False)[["start", "size"]], table.to_numpy()
