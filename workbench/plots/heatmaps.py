"""Heatmaps over all blocks: distance, damage, and the two beside each other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from workbench.distances.blocks import block_row, checked_blocks, least
from workbench.plots import axes, style

_SIZE = "block size (layers removed)"


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
    zmin: float | None = None,
    zmax: float | None = None,
) -> go.Figure:
    """Draw the loss increase of every measured block on a log scale, laid out as ``distance_heatmap``.

    Triangles mark the blocks whose damage is less than the light end of the scale: they are not told apart.

    Args:
        damage: frame of ``block_damage``: ``start``, ``size``, ``damage`` (nats per token; below 0 it fell).
        title: of the figure.
        zmin: damage at the light end, above 0; all that is less, and below 0, has that colour. None takes
            the least damage above 0, at most four decades below the largest.
        zmax: damage at the dark end; None means the largest.

    Raises:
        ValueError: for missing columns, repeated blocks, or a ``zmin`` that is not above 0.
    """
    frame = checked_blocks(damage, "damage", "damage")
    fig = style.new_figure(title, *_damage_traces(frame, zmin, zmax))
    return style.legend_above(_heatmap_axes(fig, frame))


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
    down, across = (2, 1) if style.narrow() else (1, 2)
    beside = {"horizontal_spacing": 0.2, "vertical_spacing": 0.2, "shared_yaxes": across == 2}
    fig = style.new_panels(title, down, across, **beside)
    if down == 2:
        fig.update_layout(height=1.9 * fig.layout.height)
    first, second = ({"x": 1.005, "y": 0.8, "len": 0.4}, {"x": 1.005, "y": 0.2, "len": 0.4})
    left = [_cells(both, "distance", style.DISTANCE, 0.0, None), _best(both, "distance")]
    right = _damage_traces(both, None, None)
    for number, (traces, bar) in enumerate(((left, first), (right, second)), start=1):
        traces[0].colorbar.update(bar if down == 2 else {"x": (0.405, 1.005)[number - 1]})
        row, column = (number, 1) if down == 2 else (1, number)
        style.add_panel(fig, go.Figure(traces), column, row)
    if down == 2:
        fig.update_layout(xaxis2_title="first removed layer", yaxis2_title=_SIZE)
    return style.legend_above(_heatmap_axes(fig, both, ticks=10))


def _damage_traces(frame: pd.DataFrame, zmin: float | None, zmax: float | None) -> list[Any]:
    """Return the cells of damage on a log scale, with marks on those below it and on the least of a size."""
    floor = axes.log_floor(frame["damage"]) if zmin is None else zmin
    cells = _by_decades(_cells(frame, "damage", style.DAMAGE, floor, zmax))
    best = _best(frame, "damage")
    below = frame[(frame["damage"] < floor) & ~frame.index.isin(least(frame, "damage").index)]
    marks = axes.floor_marks(below["start"], floor, below["size"])
    return [cells, marks.update(marker_size=0.6 * _mark_size(frame)), best] if len(below) else [cells, best]


def _rescaled(frame: pd.DataFrame) -> pd.DataFrame:
    groups = frame.groupby("size")["distance"]
    low, high = groups.transform("min"), groups.transform("max")
    # a size with one block (or equal ones) has no range: 0/0 is drawn as the least, which it is
    return frame.assign(distance=((frame["distance"] - low) / (high - low)).fillna(0.0))


def _step(frame: pd.DataFrame) -> int:
    """Return how many layers apart the measured sizes are, at least: the height of a row.

    Rows lie where their sizes do: sizes 1, 2, 4, 6 leave gaps at 3 and 5, sizes 2, 4, 6 none.
    """
    return int(np.gcd.reduce(np.diff(np.sort(frame["size"].unique())))) or 1


def _cells(frame: pd.DataFrame, value: str, label: str, zmin: float | None, zmax: float | None) -> go.Heatmap:
    rows = range(frame["size"].min(), frame["size"].max() + 1, _step(frame))
    frame = frame.assign(note=[_note(row, value, label) for row in frame.itertuples()])
    columns = range(style.last_layer(frame) + 1)
    z, notes = (
        frame.pivot(index="size", columns="start", values=name).reindex(rows, columns=columns)
        for name in (value, "note")
    )
    return go.Heatmap(
        x=list(columns),
        y=[int(size) for size in z.index],
        z=z.to_numpy(dtype=float),
        text=notes.to_numpy(dtype=object),
        hovertemplate="%{text}<extra></extra>",
        hoverongaps=False,
        colorscale=style.SEQUENTIAL,
        zmin=float(frame[value].min()) if zmin is None else zmin,
        zmax=float(frame[value].max()) if zmax is None else zmax,
        colorbar=style.colour_bar(label, x=1.02, xanchor="left"),
    )


def _mark_size(frame: pd.DataFrame) -> float:
    return style.px_of(float(np.clip(150 / max(style.last_layer(frame), 1) + 1, 3, 9)))


def _best(frame: pd.DataFrame, value: str) -> go.Scatter:
    best = least(frame, value)
    return style.best_marks(best["start"], best["size"], size=_mark_size(frame))


def _by_decades(trace: go.Heatmap) -> go.Heatmap:
    """Colour by the logarithm; the values themselves stay with the trace as ``customdata``."""
    low, values = trace.zmin, np.asarray(trace.z, dtype=float)
    if not low > 0:
        raise ValueError(f"zmin must be above 0, the scale is logarithmic, got {low}")
    high = max(trace.zmax, 2 * low)
    axis = axes.log_axis(pd.Series(values.ravel()).dropna(), low)
    trace.colorbar.update(tickvals=np.log10(axis["tickvals"]), ticktext=axis["ticktext"])
    z = np.log10(np.maximum(values, low))
    return trace.update(z=z, zmin=np.log10(low), zmax=np.log10(high), customdata=values)


def _note(row: Any, value: str, label: str) -> str:
    number = f"{label} {getattr(row, value):.4f}"
    if value == "distance" and hasattr(row, "ci_low") and label == style.DISTANCE:
        number += style.bracketed(row.ci_low, row.ci_high, ".4f")
    return f"start {row.start}, size {row.size}<br>removes {row.removed}<br>{number}"


def _outline(frame: pd.DataFrame, chosen: tuple[int, int]) -> go.Scatter:
    """Return a frame around the chosen block."""
    start, size = chosen
    block = block_row(frame, start, size)
    # around the cell, and never smaller than the eye finds among eighty layers
    n_layers, step, sizes = style.last_layer(frame) + 1, _step(frame), frame["size"]
    wide, high = max(0.5, n_layers / 60), max(step / 2, (sizes.max() - sizes.min() + step) / 45)
    x = start + wide * np.array([-1, 1, 1, -1, -1, 1])
    y = np.maximum(size + high * np.array([-1, -1, 1, 1, -1, -1]), sizes.min() - step / 2)
    # thinner where cells are small: the cell's own colour is to be seen
    width = style.px_of(float(np.clip(90 / n_layers, 1.4, 3)))
    line, name = {"color": "#d6006c", "width": width}, f"chosen: {block['removed']}"
    shown = {"mode": "lines", "line": line, "hoverinfo": "skip"}
    return go.Scatter(x=x, y=y, name=name, **shown)


def _heatmap_axes(fig: go.Figure, frame: pd.DataFrame, *, ticks: int | None = None) -> go.Figure:
    n_layers, sizes, step = style.last_layer(frame) + 1, sorted(frame["size"].unique()), _step(frame)
    fig.update_xaxes(title="first removed layer", **axes.layer_axis(n_layers, ticks=ticks))
    low, high, layout = sizes[0], sizes[-1], style.current_template().layout
    # as many labels as have room; sizes that lie too near to the one below have none
    room = (high - low + step) * 1.4 * layout.font.size / (layout.height - style.px_of(130))
    shown = [sizes[0]]
    for size in sizes:
        shown += [size] if size - shown[-1] >= room else []
    labels = {"tickvals": shown, "ticktext": [f"{size}" for size in shown]}
    fig.update_yaxes(range=[low - step / 2, high + step / 2], **{"showgrid": False, **labels})
    return fig.update_layout(yaxis_title=_SIZE)
