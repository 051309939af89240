"""Axes of layers and of logarithms: their ticks, their ends, and marks on what lies beyond an end."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.plots import style

#: at most so many decades of damage on a log axis: what is less is noise beside the first layers' nats
_DECADES = 4


def layer_axis(n_layers: int, *, ticks: int | None = None) -> dict[str, Any]:
    """Return an axis over the layers that there are, with whole-numbered ticks, at most about ``ticks``."""
    ticks = ticks or (10 if style.narrow() else 20)
    step = next(step for step in (1, 2, 5, 10, 20, 50) if n_layers / step <= ticks or step == 50)
    whole = {"tickmode": "linear", "tick0": 0, "dtick": step, "showgrid": False}
    return {**whole, "range": [-0.5, n_layers - 0.5]}


def title_below(fig: go.Figure, title: str, panels: int, across: int) -> None:
    """Title the lowest horizontal axis of each column of panels that ``plotly.express`` has wrapped."""
    fig.update_xaxes(title="")
    for column in range(1, min(panels, across) + 1):
        # rows count from below, and the lowest may be short
        short = 0 < panels % across < column and panels > across
        fig.update_xaxes(title=title, row=2 if short else 1, col=column)


def log_axis(
    values: pd.Series, lowest: float, end: str | None = None, *, reach: float = 0.0
) -> dict[str, Any]:
    """Return a log axis from ``lowest`` up, ticked at decades, or at 1, 2, 5 where it spans less than two.

    Args:
        values: what is drawn on it.
        lowest: its lower end; what is less lies at it.
        end: what the tick at the lower end says where something lies there that is less; None says so by its
            number.
        reach: how far up it must reach at least, such as the highest end of an interval.
    """
    low, high = np.log10(lowest), np.log10(max(values.max(), 2 * lowest, reach))
    fine = (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    steps = fine if high - low < 0.6 else (1, 2, 5) if high - low < 2 else (1,)
    ticks = [step * 10.0**decade for decade in range(int(np.floor(low)), int(high) + 2) for step in steps]
    texts = {tick: f"{tick:g}" for tick in ticks if tick >= lowest}
    if (values < lowest).any():
        texts = {lowest: end or f"≤ {lowest:g}"} | {
            tick: texts[tick] for tick in texts if np.log10(tick) > low + 0.1 * (high - low)
        }
    room = 0.06 * (high - low)
    labels = {"tickvals": [*texts], "ticktext": [*texts.values()]}
    return {"type": "log", "range": [low - room, high + room], **labels}


def log_floor(values: pd.Series) -> float:
    """Return where a log axis of these values begins: 1, 2 or 5 of a decade, at or below the least above 0.

    At most four decades below the largest; what is less lies at the end of the axis, and is marked there.

    >>> log_floor(pd.Series([0.23, 3.0])), log_floor(pd.Series([-0.1, 1e-9, 8.0]))
    (0.2, 0.0005)
    """
    above = values[values > 0]
    if above.empty:
        return 1e-3
    least = float(above.min()) / (2 if (values <= 0).any() else 1)  # apart from what is not above 0
    least = max(least, float(above.max()) / 10**_DECADES) * (1 + 1e-9)
    decade = 10.0 ** np.floor(np.log10(least))
    return float(f"{max(step for step in (1, 2, 5) if step * decade <= least) * decade:.3g}")


def floor_marks(x: Any, floor: float, y: Any = None) -> go.Scatter:
    """Return marks over the points that lie at the end of a log axis because they are less."""
    line = {"color": style.INK, "width": 1.2}
    marker = {"symbol": "triangle-down-open", "size": style.px_of(12), "color": style.INK, "line": line}
    shown = {"mode": "markers", "marker": marker, "hoverinfo": "skip", "cliponaxis": False}
    y = [floor] * len(x) if y is None else list(y)
    return go.Scatter(x=list(x), y=y, name=f"less than {floor:g}", showlegend=True, **shown)
