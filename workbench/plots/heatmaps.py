"""Heatmaps over all blocks: distance, damage, and the two beside each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.distances.blocks import checked_blocks, least
from workbench.plots import style

_ABOVE = {"x": 1, "y": 1.02, "xanchor": "right", "yanchor": "bottom"}


def distance_heatmap(
    distances: pd.DataFrame,
    *,
    title: str | None = "Angular distance across each block",
    zmin: float | None = 0.0,
    zmax: float | None = None,
    rescale: bool = False,
    mark_best: bool = True,
    chosen: tuple[int, int] | None = None,
) -> go.Figure:
    """Draw the distance of every block: start across, size up, light cells near and so removable.

    Args:
        distances: frame of ``angular_distances``: ``start``, ``size``, ``distance`` (0 same direction, 0.5
            orthogonal), and, for the hover, ``ci_low`` and ``ci_high`` where there.
        title: of the figure, None for none.
        zmin: distance at the light end of the scale; None means the least in the frame.
        zmax: distance at the dark end; None means the largest in the frame. Give both to compare figures.
        rescale: stretch each size to 0..1, as Gromov et al. (2024), figure 4, do.
        mark_best: mark the nearest block of each size.
        chosen: ``(start, size)`` of a block to frame.

    Raises:
        ValueError: for missing columns, repeated blocks, or a chosen block that the frame does not hold.
    """
    frame, label = checked_blocks(distances, "distance", "distances"), style.DISTANCE
    if rescale:
        frame, label, zmin, zmax = _rescaled(frame), f"{style.DISTANCE}, rescaled per size", 0.0, 1.0
    fig = style.new_figure(title, _cells(frame, "distance", label, zmin, zmax))
    if mark_best:
        fig.add_trace(_best(frame, "distance"))
    if chosen is not None:
        fig.add_trace(_outline(frame, chosen))
    # the triangle of blocks leaves room in the corner
    corner = {"x": 0.99, "y": 0.99, "xanchor": "right", "yanchor": "top"}
    return _heatmap_axes(fig, frame).update_layout(legend=corner)


def damage_heatmap(
    damage: pd.DataFrame,
    *,
    title: str | None = "Damage when the block is really skipped",
    zmin: float = style.DAMAGE_FLOOR,
    zmax: float | None = None,
) -> go.Figure:
    """Draw the loss increase of every measured block on a log scale, laid out as ``distance_heatmap``.

    Args:
        damage: frame of ``block_damage``: ``start``, ``size``, ``damage`` (nats per token; below 0 it fell).
        title: of the figure.
        zmin: damage at the light end, above 0; all that is less, and below 0, has that colour.
        zmax: damage at the dark end; None means the largest.

    Raises:
        ValueError: for missing columns, repeated blocks, or a ``zmin`` that is not above 0.
    """
    frame = checked_blocks(damage, "damage", "damage")
    cells = _by_decades(_cells(frame, "damage", style.DAMAGE, zmin, zmax))
    fig = style.new_figure(title, cells, _best(frame, "damage"))
    return _legend_above(_heatmap_axes(fig, frame))


def distance_beside_damage(
    distances: pd.DataFrame,
    damage: pd.DataFrame,
    *,
    title: str | None = "What the metric says, and what skipping the block does",
) -> go.Figure:
    """Draw the two heatmaps side by side, over the blocks whose damage was measured.

    Where the light cells agree, the metric can be trusted to choose; where they differ, the right side is
    the truth.

    Raises:
        ValueError: for missing columns, or when the two frames share no block.
    """
    both = style.joined(distances, damage)
    fig = style.new_panels(title, 1, 2, shared_yaxes=True, horizontal_spacing=0.2)
    left = _cells(both, "distance", style.DISTANCE, 0.0, None, bar_at=0.405)
    right = _by_decades(_cells(both, "damage", style.DAMAGE, style.DAMAGE_FLOOR, None, bar_at=1.005))
    style.add_panel(fig, go.Figure([left, _best(both, "distance")]), 1)
    style.add_panel(fig, go.Figure([right, _best(both, "damage")]), 2)
    return _legend_above(_heatmap_axes(fig, both, ticks=10))


def _rescaled(frame: pd.DataFrame) -> pd.DataFrame:
    groups = frame.groupby("size")["distance"]
    low, high = groups.transform("min"), groups.transform("max")
    # a size with one block (or equal ones) has no range: 0/0 is drawn as the least, which it is
    return frame.assign(distance=((frame["distance"] - low) / (high - low)).fillna(0.0))


def _rows_of_sizes(frame: pd.DataFrame) -> dict[int, int]:
    """Return the row of each size: the size itself, or its rank where sizes between were not measured."""
    sizes = [int(size) for size in sorted(frame["size"].unique())]
    whole = sizes == list(range(sizes[0], sizes[-1] + 1))
    return {size: size if whole else rank for rank, size in enumerate(sizes, start=1)}


def _cells(
    frame: pd.DataFrame, value: str, label: str, zmin: float | None, zmax: float | None, bar_at: float = 1.02
) -> go.Heatmap:
    rows = _rows_of_sizes(frame)
    frame = frame.assign(note=[_note(row, value, label) for row in frame.itertuples()])
    columns = range(style.last_layer(frame) + 1)
    z, notes = (
        frame.pivot(index="size", columns="start", values=name).reindex(columns=columns)
        for name in (value, "note")
    )
    bar = {"title": {"text": label, "side": "right"}, "x": bar_at, "xanchor": "left", "thickness": 14}
    return go.Heatmap(
        x=list(columns),
        y=[rows[size] for size in z.index],
        z=z.to_numpy(dtype=float),
        meta={"y": [int(size) for size in z.index]},  # what the rows stand for
        text=notes.to_numpy(dtype=object),
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        colorscale=style.SEQUENTIAL,
        zmin=float(frame[value].min()) if zmin is None else zmin,
        zmax=float(frame[value].max()) if zmax is None else zmax,
        colorbar={**bar, "outlinewidth": 0, "ticks": "outside"},
    )


def _best(frame: pd.DataFrame, value: str) -> go.Scatter:
    best = least(frame, value)
    size = float(np.clip(150 / style.last_layer(frame) + 1, 3, 9))
    marks = style.best_marks(best["start"], best["size"].map(_rows_of_sizes(frame)), size=size)
    return marks.update(meta={"y": best["size"].tolist()})


def _by_decades(trace: go.Heatmap) -> go.Heatmap:
    """Colour by the logarithm; the values themselves stay with the trace as ``customdata``."""
    low, values = trace.zmin, np.asarray(trace.z, dtype=float)
    if not low > 0:
        raise ValueError(f"zmin must be above 0, the scale is logarithmic, got {low}")
    high = max(trace.zmax, 10 * low)
    ticks = 10.0 ** np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
    texts = [f"≤ {tick:g}" if tick == low else f"{tick:g}" for tick in ticks]
    trace.colorbar.update(tickvals=np.log10(ticks), ticktext=texts)
    z = np.log10(np.maximum(values, low))
    return trace.update(z=z, zmin=np.log10(low), zmax=np.log10(high), customdata=values)


def _note(row: Any, value: str, label: str) -> str:
    number = f"{label} {getattr(row, value):.4f}"
    if value == "distance" and hasattr(row, "ci_low") and label == style.DISTANCE:
        number += f" [{row.ci_low:.4f}, {row.ci_high:.4f}]"
    return f"start {row.start}, size {row.size}<br>removes {row.removed}<br>{number}"


def _outline(frame: pd.DataFrame, chosen: tuple[int, int]) -> go.Scatter:
    """Return a frame around the chosen block."""
    start, size = chosen
    block = frame[(frame["start"] == start) & (frame["size"] == size)]
    if block.empty:
        raise ValueError(f"chosen must be a block (start, size) of the frame, got {tuple(chosen)}")
    x = start + np.array([-1, 1, 1, -1, -1, 1]) / 2
    y = _rows_of_sizes(frame)[size] + np.array([-1, -1, 1, 1, -1, -1]) / 2
    # thinner where cells are small: the cell's own colour is to be seen
    width = float(np.clip(90 / (style.last_layer(frame) + 1), 1, 3))
    line, name = {"color": "#d6006c", "width": width}, f"chosen: {block['removed'].item()}"
    shown = {"mode": "lines", "line": line, "hoverinfo": "skip", "meta": {"y": [size] * len(x)}}
    return go.Scatter(x=x, y=y, name=name, **shown)


def _heatmap_axes(fig: go.Figure, frame: pd.DataFrame, *, ticks: int = 20) -> go.Figure:
    n_layers, rows = style.last_layer(frame) + 1, _rows_of_sizes(frame)
    fig.update_xaxes(title="first removed layer", range=[-0.5, n_layers - 0.5])
    fig.update_xaxes(style.layer_axis(n_layers, ticks=ticks))
    low, high = min(rows.values()), max(rows.values())
    layout = style.current_template().layout
    step = int(np.ceil(len(rows) * 1.4 * layout.font.size / (layout.height - 120)))
    labels = {"tickvals": list(rows.values())[::step], "ticktext": [f"{size}" for size in rows][::step]}
    fig.update_yaxes(range=[low - 0.5, high + 0.5], **{"showgrid": False, **labels})
    return fig.update_layout(yaxis_title="block size (layers removed)")


def _legend_above(fig: go.Figure) -> go.Figure:
    return fig.update_layout(legend=_ABOVE, margin={"t": 84 if fig.layout.title.text else 44})
