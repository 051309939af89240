"""The picker as a picture, for where no kernel runs: a saved notebook, its page, GitHub. No torch.

One SVG without scripts or fonts of its own: the layers, two heatmaps with their colour bars, the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from workbench.distances.blocks import format_layers, least
from workbench.runs.files import template
from workbench.widgets.metrics import Metric

#: viridis from its light end: light = low = removable, as in the static figures and on the page
SCALE = ("#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154")
#: share of the blocks whose values the colours tell apart; what is more has the darkest one
USEFUL = 0.75
SHADES = 48
#: pixels of a heatmap
_WIDE, _HIGH = 400, 250
_DRAWING = template(Path(__file__).with_name("picture.svg.j2"))


def picture(metrics: Sequence[Metric], layers: Sequence[int], chosen: Sequence[int], title: str) -> str:
    """Return the picture of a choice as SVG.

    Args:
        metrics: one or two measures to draw, side by side.
        layers: the model's layers.
        chosen: the layers that go.
        title: above the picture.
    """
    return _DRAWING.render(
        title=title,
        what=f"removes layer{'s' if len(chosen) > 1 else ''} {format_layers(chosen)}",
        layers=[*layers],
        chosen=chosen,
        panels=[_panel(metric, [*layers], chosen) for metric in metrics],
        bar=[shade(1 - share) for share in np.linspace(0, 1, 24)],
    )


def limits(values: pd.Series) -> tuple[float, float]:
    """Return the values at the two ends of the colours: the least, and the upper quartile."""
    low, high = float(values.min()), float(values.quantile(USEFUL))
    return low, high if high > low else float(values.max())


def shade(share: float) -> str:
    """Return the colour at a share of the scale, 0 = light."""
    at = min(max(share, 0.0), 1.0) * (len(SCALE) - 1)
    low = min(int(at), len(SCALE) - 2)
    ends = [[int(SCALE[i][j : j + 2], 16) for j in (1, 3, 5)] for i in (low, low + 1)]
    mixed = (round(a * (1 - at + low) + b * (at - low)) for a, b in zip(*ends, strict=True))
    return "#" + "".join(f"{part:02x}" for part in mixed)


def blocks_of(chosen: Sequence[int], layers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the blocks, runs of the model's layers, that a choice is made of.

    >>> blocks_of([3, 4, 9], range(12))
    [(3, 2), (9, 1)]
    """
    places = enumerate(layers.index(layer) for layer in chosen)
    runs = [[at for _, at in run] for _, run in groupby(places, lambda one: one[1] - one[0])]
    return [(layers[run[0]], len(run)) for run in runs]


def _panel(metric: Metric, layers: list[int], chosen: Sequence[int]) -> dict[str, Any]:
    """Return what is drawn of a measure; places are the upper left corners of cells."""
    table = metric.table.dropna(subset="value")
    (low, top), sizes = limits(table["value"]), sorted(table["size"].unique())
    wide, high = _WIDE / len(layers), min(_HIGH / len(sizes), 30)
    table = table.assign(at=table["start"].map(layers.index), row=table["size"].map(sizes.index))
    table = table.assign(x=wide * table["at"], y=_HIGH - high * (table["row"] + 1))
    framed = [(layers.index(a), sizes.index(n)) for a, n in blocks_of(chosen, layers) if n in sizes]
    return {
        **{"wide": wide, "high": high, "sizes": sizes, "label": metric.label},
        "radius": min(max(0.22 * min(wide, high), 1.2), 4),
        "cells": _cells(table, (table["value"] - low) / (top - low or 1), wide, high),
        "best": least(table, "value")[["x", "y"]].to_numpy().tolist(),
        "chosen": [(at * wide, _HIGH - (row + 1) * high) for at, row in framed],
        "most": f"{'≥ ' if table['value'].max() > top else ''}{number(top)}",
        "least": number(low),
    }


def _cells(table: pd.DataFrame, shares: pd.Series, wide: float, high: float) -> list[tuple[str, str]]:
    """Return the cells as one stroke a shade, with neighbours of a shade joined."""
    table = table.assign(level=(shares.clip(0, 1) * (SHADES - 1)).round().astype(int))
    table = table.sort_values(["row", "at"])
    begins = (table[["level", "row"]].diff() != 0).any(axis=1) | (table["at"].diff() != 1)
    runs = (
        table.groupby(begins.cumsum())[["level", "x", "y"]]
        .agg("first")
        .assign(n=begins.cumsum().value_counts())
    )
    strokes = [f"M{run.x:.1f} {run.y + high / 2:.1f}h{wide * run.n:.1f}" for run in runs.itertuples()]
    paths = pd.Series(strokes, runs.index).groupby(runs["level"]).agg("".join)
    return [(shade(level / (SHADES - 1)), path) for level, path in paths.items()]


def number(value: float) -> str:
    """Return a value with about three digits that count."""
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
    return text.lstrip("-") if float(text) == 0 else text
