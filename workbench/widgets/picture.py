"""The picker as a picture, for where no kernel runs: a saved notebook, its page, GitHub. No torch.

One SVG without scripts or fonts of its own: the layers, two heatmaps with their colour bars, the choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from workbench.distances.blocks import format_layers, least
from workbench.widgets.metrics import Metric

#: viridis from its light end: light = low = removable, as in the static figures and on the page
SCALE = ("#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154")
#: share of the blocks whose values the colours tell apart; what is more has the darkest one
USEFUL = 0.75
SHADES = 48
_WIDE, _HIGH, _TOP, _LEFT, _BAR = 400, 250, 96, 44, 78
_INK, _CHOSEN = "#1f2328", "#d6006c"


def picture(metrics: Sequence[Metric], layers: Sequence[int], chosen: Sequence[int], title: str) -> str:
    """Return the picture of a choice as SVG.

    Args:
        metrics: one or two measures to draw, side by side.
        layers: the model's layers.
        chosen: the layers that go.
        title: above the picture.
    """
    panels = [_panel(metric, layers, chosen, i * (_LEFT + _WIDE + _BAR)) for i, metric in enumerate(metrics)]
    width, height = len(metrics) * (_LEFT + _WIDE + _BAR), _TOP + _HIGH + 44
    what = f"removes layer{'s' if len(chosen) > 1 else ''} {format_layers(chosen)}"
    head = [
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        _text(_LEFT, 20, title, size=15, weight=600),
        _text(_LEFT, 40, f"{what} ({len(chosen)} of {len(layers)})"),
        _strip(layers, chosen, width - _LEFT - 20),
    ]
    font = 'font-family="Helvetica, Arial, sans-serif" font-size="12"'
    box = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    label = escape(f"{title}: {what}", quote=True)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {box} {font} fill="{_INK}" role="img" aria-label="{label}">'
        + "".join([*head, *panels])
        + "</svg>"
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


def _panel(metric: Metric, layers: Sequence[int], chosen: Sequence[int], x: float) -> str:
    table = metric.table.dropna(subset="value")
    sizes = sorted(table["size"].unique())
    wide, high = _WIDE / len(layers), min(_HIGH / len(sizes), 30)
    bottom = _TOP + _HIGH
    low, top = limits(table["value"])
    place = {layer: at for at, layer in enumerate(layers)}
    rows = {size: row for row, size in enumerate(sizes)}

    def corner(start: Any, size: Any) -> tuple[float, float]:
        return x + _LEFT + place[int(start)] * wide, bottom - (rows[size] + 1) * high

    best = [corner(*block) for block in least(table, "value")[["start", "size"]].to_numpy()]
    radius = min(max(0.22 * min(wide, high), 1.2), 4)
    dots = [f'<circle cx="{a + wide / 2:.4g}" cy="{b + high / 2:.4g}" r="{radius:.2g}"/>' for a, b in best]
    parts = [
        _cells(table, corner, wide, high, low, top),
        f'<g fill="#fff" stroke="{_INK}">{"".join(dots)}</g>',
        *(_frame(*corner(a, n), wide, high) for a, n in _blocks(chosen, layers) if n in rows),
        *_axes(layers, sizes, x, wide, high, bottom),
        _bar(metric, table["value"], (low, top), x + _LEFT + _WIDE + 12),
    ]
    return "".join(parts)


def _cells(table: pd.DataFrame, corner: Any, wide: float, high: float, low: float, top: float) -> str:
    """Return the cells as one stroke a shade, with neighbours of a shade joined."""
    shares = (table["value"] - low) / (top - low or 1)
    ordered = table.assign(level=(shares.clip(0, 1) * (SHADES - 1)).round().astype(int))
    runs: list[list[Any]] = []  # level, left, top, cells
    for start, size, level in ordered.sort_values(["size", "start"])[["start", "size", "level"]].to_numpy():
        x, y = corner(start, size)
        last = runs[-1] if runs else [-1, 0.0, 0.0, 0]
        if (last[0], last[2]) == (level, y) and abs(last[1] + wide * last[3] - x) < wide / 2:
            last[3] += 1
        else:
            runs.append([level, x, y, 1])
    paths: dict[int, str] = {}
    for level, x, y, cells in runs:
        paths[level] = paths.get(level, "") + f"M{x:.1f} {y + high / 2:.1f}h{wide * cells:.1f}"
    drawn = [
        f'<path stroke="{shade(level / (SHADES - 1))}" d="{path}"/>' for level, path in sorted(paths.items())
    ]
    look = f'fill="none" stroke-width="{high:.4g}" shape-rendering="crispEdges"'
    return f"<g {look}>{''.join(drawn)}</g>"


def _blocks(chosen: Sequence[int], layers: Sequence[int]) -> list[tuple[int, int]]:
    """Return the blocks, runs of the model's layers, that a choice is made of."""
    at = [(layers.index(layer), layer) for layer in chosen]
    runs = [list(run) for _, run in groupby(enumerate(at), lambda one: one[1][0] - one[0])]
    return [(run[0][1][1], len(run)) for run in runs]


def _frame(x: float, y: float, wide: float, high: float) -> str:
    around = f'x="{x - 1:.1f}" y="{y - 1:.1f}" width="{wide + 2:.1f}" height="{high + 2:.1f}" fill="none"'
    return (
        f'<rect {around} stroke="#fff" stroke-width="4"/><rect {around} stroke="{_CHOSEN}" stroke-width="2"/>'
    )


def _strip(layers: Sequence[int], chosen: Sequence[int], width: float) -> str:
    each = width / len(layers)
    boxes = []
    for at, layer in enumerate(layers):
        box = f'<rect x="{_LEFT + at * each + 0.5:.1f}" y="52" width="{max(each - 1, 1):.1f}" height="14"'
        boxes.append(f'{box} fill="{_CHOSEN if layer in chosen else "none"}"/>')
    every = max(1, int(np.ceil(26 / each)))
    names = [
        _text(_LEFT + (at + 0.5) * each, 80, layers[at], anchor="middle", size=11)
        for at in range(0, len(layers), every)
    ]
    return f'<g stroke="#8c959f">{"".join(boxes)}</g>' + "".join(names)


def _axes(
    layers: Sequence[int], sizes: Sequence[int], x: float, wide: float, high: float, bottom: float
) -> list[str]:
    across, up = max(1, int(np.ceil(26 / wide))), max(1, int(np.ceil(13 / high)))
    ticks = [
        _text(x + _LEFT + (at + 0.5) * wide, bottom + 14, layers[at], anchor="middle", size=11)
        for at in range(0, len(layers), across)
    ]
    ticks += [
        _text(x + _LEFT - 5, bottom - (row + 0.5) * high + 4, sizes[row], anchor="end", size=11)
        for row in range(0, len(sizes), up)
    ]
    middle = _TOP + _HIGH / 2
    turned = f'transform="rotate(-90 {x + 12} {middle})"'
    return [
        *ticks,
        _text(x + _LEFT + _WIDE / 2, bottom + 34, "first removed layer", anchor="middle"),
        _text(x + 12, middle, "block size", anchor="middle", more=turned),
    ]


def _bar(metric: Metric, values: pd.Series, ends: tuple[float, float], x: float) -> str:
    low, high = ends
    steps = 24
    each = _HIGH / steps
    boxes = "".join(
        f'<rect x="{x}" y="{_TOP + i * each:.1f}" width="12" height="{each + 0.5:.1f}" '
        f'fill="{shade(1 - i / (steps - 1))}"/>'
        for i in range(steps)
    )
    more = "≥ " if values.max() > high else ""
    middle = _TOP + _HIGH / 2
    turned = f'transform="rotate(-90 {x + 58} {middle})"'
    return (
        boxes
        + _text(x + 16, _TOP + 9, f"{more}{number(high)}", size=11)
        + _text(x + 16, _TOP + _HIGH, number(low), size=11)
        + _text(x + 58, middle, metric.label, anchor="middle", more=turned)
    )


def number(value: float) -> str:
    """Return a value with about three digits that count."""
    text = f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"
    return text.lstrip("-") if float(text) == 0 else text


def _text(
    x: float,
    y: float,
    words: Any,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: int = 400,
    more: str = "",
) -> str:
    look = f'text-anchor="{anchor}" font-size="{size}" font-weight="{weight}" {more}'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(str(words))}</text>'
