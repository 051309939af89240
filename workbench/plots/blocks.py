"""Figures of blocks: distances as lines, measures side by side, distance against damage, calibration sets."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.agreement import rank_agreement, removal_cost
from workbench.checks import checked
from workbench.distances.blocks import checked_blocks, least, parse_layers
from workbench.plots import style


def distance_lines(
    distances: pd.DataFrame,
    *,
    sizes: Iterable[int] | None = None,
    title: str | None = "Angular distance by first removed layer",
) -> go.Figure:
    """Draw one line per block size: distance against start, with its interval and its least.

    Args:
        distances: frame of ``angular_distances``.
        sizes: block sizes to draw; None means those of 1, 2, 4, 6, 8, 10 that the frame holds.
        title: of the figure.

    Raises:
        ValueError: for missing columns or a size that the frame does not hold.
    """
    frame = checked_blocks(distances, "distance", "distances")
    styles = style.size_styles(style.sizes_to_draw(frame, sizes))
    rows = frame.assign(size=frame["size"].astype(str))
    rows = rows[rows["size"].isin(styles)]
    best = least(rows, "distance")
    hover = f"size %{{fullData.name}}, layers %{{customdata[0]}}<br>{style.DISTANCE} %{{y:.4f}}"
    shown = {"custom_data": "removed", "markers": True, "hover": hover}
    lines = style.draw(px.line, rows, "start", "distance", styles, "size", **shown)
    lines.update_traces(marker_size=6)
    bands = _bands(rows, styles) if {"ci_low", "ci_high"} <= set(rows) else []
    marks = style.best_marks(best["start"], best["distance"], size=13, fill="rgba(0,0,0,0)")
    fig = go.Figure([*bands, *lines.data, marks], lines.layout)
    legend = {"title": {"text": "block size"}, "traceorder": "reversed"}
    fig.update_layout(title={"text": title}, legend=legend)
    fig.update_xaxes(title="first removed layer", **style.layer_axis(style.last_layer(frame) + 1))
    return fig.update_yaxes(title=style.DISTANCE, rangemode="tozero")


def metric_comparison(
    metrics: Mapping[str, pd.DataFrame],
    *,
    title: str | None = "What each metric says of removing one layer (filled: remove this one)",
) -> go.Figure:
    """Draw the scores of single layers under each other, each on its own log scale; low = remove this.

    Args:
        metrics: name -> frame, as ``rank_agreement`` takes them: ``angular_distances`` and ``block_damage``
            (their blocks of size 1), ``block_influence``, ``removal_similarity`` (drawn as 1 - similarity).
        title: of the figure.

    Raises:
        ValueError: when nothing is given, a frame holds no known metric, or has no block of size 1.
    """
    if not metrics:
        raise ValueError("metrics must hold at least one named frame, got none")
    panels = dict(_layer_costs(name, frame) for name, frame in metrics.items())
    fig = style.new_panels(title, len(panels), 1, shared_xaxes=True, vertical_spacing=0.06)
    fig.update_layout(height=70 + 0.33 * style.current_template().layout.height * len(panels))
    for row, (name, scores) in enumerate(panels.items(), start=1):
        _add_layer_panel(fig, row, style.plain(name), scores)
    n_layers = max(int(scores.index.max()) + 1 for scores in panels.values())
    fig.update_xaxes(range=[-0.5, n_layers - 0.5], **style.layer_axis(n_layers))
    return fig.update_xaxes(title="removed layer", row=len(panels), col=1).update_layout(showlegend=False)


def distance_vs_damage(
    distances: pd.DataFrame,
    damage: pd.DataFrame,
    *,
    sizes: Iterable[int] | None = None,
    title: str | None = "Does a small distance mean little damage?",
) -> go.Figure:
    """Draw each block's distance against the damage of skipping it, with the rank correlation per size.

    The correlation (Spearman's) is given for each size on its own: larger blocks are both farther and more
    harmful, so that one correlation over all sizes would be high for any metric that grows with the size.

    Args:
        distances: frame of ``angular_distances``.
        damage: frame of ``block_damage``.
        sizes: block sizes to draw; None means every size of both frames.
        title: of the figure.

    Raises:
        ValueError: for missing columns, or when the two frames share no block (of those sizes).
    """
    both = style.joined(distances, damage)
    wanted = sorted(both["size"].unique()) if sizes is None else style.sizes_to_draw(both, sizes)
    styles = style.size_styles(wanted)
    names = {size: f"{size}: {_agreement(both[both['size'] == size])}" for size in wanted}
    rows = both[both["size"].isin(wanted)]
    floor = style.damage_floor(rows["damage"])
    rows = rows.assign(name=rows["size"].map(names), drawn=rows["damage"].clip(lower=floor))
    styles = dict(zip(names.values(), styles.values(), strict=True))
    hover = "layers %{customdata[0]}<br>distance %{x:.4f}<br>damage %{customdata[1]:.4f}"
    shown = {"custom_data": ["removed", "damage"], "hover": hover}
    fig = style.draw(px.scatter, rows, "distance", "drawn", styles, "name", title=title, **shown)
    fig.update_traces(marker={"size": 9, "line": {"width": 0.5, "color": style.INK}})
    fig.for_each_trace(lambda trace: trace.update(meta={"y": [one[1] for one in trace.customdata]}))
    below = rows[rows["damage"] < floor]
    if len(below):
        fig.add_trace(
            style.floor_marks(below["distance"], floor).update(meta={"y": below["damage"].tolist()})
        )
    fig.update_yaxes(title=f"{style.DAMAGE}, log scale", **style.log_axis(rows["damage"], floor))
    fig.update_xaxes(title=style.DISTANCE, rangemode="tozero")
    return _agreement_legend(fig, len(fig.data))


def calibration_comparison(
    ablation: pd.DataFrame,
    *,
    sizes: Iterable[int] | None = None,
    n_layers: int | None = None,
    title: str | None = "The block that each calibration set would remove",
) -> go.Figure:
    """Draw, per block size and calibration set, the nearest layers and how near they are (SDD table 7).

    Args:
        ablation: frame of ``calibration_ablation``: ``size``, ``calibration``, ``removed``, ``distance``, and
            ``ci_low``, ``ci_high`` where there.
        sizes: block sizes to draw; None means those of 2, 4, 6, 8, 10 that the frame holds.
        n_layers: of the model, the length of the layer axis; None ends it at the deepest removed layer.
        title: of the figure.

    Raises:
        ValueError: for missing columns, a set that occurs twice in one size, or a size that the frame does
            not hold.
    """
    columns, keys = ["size", "calibration", "removed", "distance"], ("size", "calibration")
    best = checked(ablation, columns, "ablation", unique=keys)
    wanted = style.sizes_to_draw(best, sizes, usual=(2, 4, 6, 8, 10))
    best = best[best["size"].isin(wanted)].sort_values("size", kind="stable")
    # a row for each bar, and an empty one between sizes
    best = best.assign(row=np.arange(len(best)) + best["size"].rank(method="dense").to_numpy() - 1)
    wide = {"column_widths": [0.62, 0.38], "shared_yaxes": True, "horizontal_spacing": 0.04}
    fig = style.new_panels(title, 1, 2, **wide)
    rows = style.escaped(best, "calibration")
    styles = style.variant_styles(rows["calibration"])
    layers = rows["removed"].map(parse_layers)
    first, last = layers.str[0], layers.str[-1]
    rows = rows.assign(length=last - first + 1, first=first - 0.5)
    n_layers = n_layers or style.last_layer(best) + 1
    shown = {"base": "first", "text": "removed", "orientation": "h"}
    hover = "%{fullData.name}<br>layers %{text}"
    bars = style.draw(px.bar, rows, "length", "row", styles, "calibration", hover=hover, **shown)
    style.add_panel(fig, bars.update_traces(width=0.8, textposition="none"), 1)
    style.add_panel(fig, _layer_labels(rows, last, n_layers), 1)
    style.add_panel(fig, _scored_marks(rows, styles), 2)
    fig.update_xaxes(style.layer_axis(n_layers), col=1)
    fig.update_xaxes(title="removed layers", range=[-0.5, n_layers - 0.5], col=1)
    far = float(best.get("ci_high", best["distance"]).max())
    fig.update_xaxes(title=style.DISTANCE, range=[0, 1.6 * far], nticks=5, tickangle=0, col=2)
    middles = best.groupby("size")["row"].mean()
    labels = {"tickvals": list(middles), "ticktext": [f"{size}" for size in middles.index]}
    fig.update_yaxes(range=[best["row"].max() + 0.8, -0.8], showgrid=False, **labels)
    fig.update_yaxes(title="block size", col=1)
    height = (12 + 1.6 * (len(best) + len(wanted))) * style.current_template().layout.font.size
    return fig.update_layout(height=height, barmode="overlay")


def _layer_labels(rows: pd.DataFrame, last: pd.Series, n_layers: int) -> go.Figure:
    """Return the names of the layers behind their bars; before those that end where the axis does."""
    deep = last > 0.8 * n_layers
    x = rows["first"].where(deep, last + 0.5)
    sides = np.where(deep, "middle left", "middle right")
    texts = [f" {text} " for text in rows["removed"]]
    shown = {"mode": "text", "textposition": sides, "hoverinfo": "skip", "showlegend": False}
    return go.Figure(go.Scatter(x=x, y=rows["row"], text=texts, cliponaxis=False, **shown))


def _agreement_legend(fig: go.Figure, entries: int) -> go.Figure:
    """Put the legend into the empty corner; a longer one beside the figure, which grows until it fits."""
    place = {"x": 0.99, "y": 0.02, "xanchor": "right", "yanchor": "bottom"}
    if entries > 6:
        place = {"x": 1.02, "y": 1, "xanchor": "left", "yanchor": "top"}
        size = style.current_template().layout.font.size
        fig.update_layout(height=max(fig.layout.height, 130 + 1.6 * size * (entries + 1)))
    return fig.update_layout(legend={"title": {"text": "block size: Spearman ρ [95 %]"}, **place})


def _scored_marks(rows: pd.DataFrame, styles: dict[str, style.Style]) -> go.Figure:
    """Return the distances with their intervals, and the same as text at the end of the intervals."""
    ends = ("ci_low", "ci_high") if {"ci_low", "ci_high"} <= set(rows) else None
    hover = f"%{{fullData.name}}<br>{style.DISTANCE} %{{x:.4f}}"
    marks = style.draw(px.scatter, rows, "distance", "row", styles, "calibration", error_x=ends, hover=hover)
    rows = rows.assign(label=[f"  {value:.3f}" for value in rows["distance"]])
    end = "ci_high" if ends else "distance"
    labels = style.draw(px.scatter, rows, end, "row", styles, "calibration", text="label")
    labels.update_traces(mode="text", textposition="middle right", cliponaxis=False)
    marks.update_traces(marker_size=9).add_traces(labels.data)
    return marks.update_traces(showlegend=False)


def _bands(rows: pd.DataFrame, styles: dict[str, style.Style]) -> list[go.Scatter]:
    """Return the interval of each size as an area."""
    area = {"mode": "lines", "fill": "toself", "opacity": 0.18, "line": {"width": 0}}
    area |= {"hoverinfo": "skip", "showlegend": False}
    bands = []
    for size, own_style in styles.items():
        part = rows[rows["size"] == size]
        x, y = [*part["start"], *part["start"][::-1]], [*part["ci_high"], *part["ci_low"][::-1]]
        bands.append(go.Scatter(x=x, y=y, fillcolor=own_style.color, **area))
    return bands


def _layer_costs(name: str, frame: pd.DataFrame) -> tuple[str, pd.Series]:
    """Return one metric's cost of removing each layer, under the name that an axis gives it, with its unit.

    Similarities near 1 become distances from 1.
    """
    costs = removal_cost(frame)
    single = costs[costs["size"] == 1].set_index("start")["cost"].sort_index()
    if single.empty:
        raise ValueError(f"metrics are compared layer by layer, but {name!r} has no block of size 1")
    if "similarity" in frame:
        return name if name.startswith("1") else f"1 − {name}", 1 + single
    unit = f" {style.DAMAGE_UNIT}" if "damage" in frame and "nats" not in name else ""
    return name + unit, single


def _add_layer_panel(fig: go.Figure, row: int, label: str, scores: pd.Series) -> None:
    """Draw one metric on a log axis, on a plain one where nothing is above 0; triangles lie below its end."""
    chosen, positive = scores.index == scores.idxmin(), scores[scores > 0]
    damage = style.DAMAGE_UNIT in label
    floor = (
        style.damage_floor(scores) if damage else positive.min() / (2 if len(positive) < len(scores) else 1)
    )
    drawn = scores if positive.empty else scores.clip(lower=floor)
    line = {"color": "#5c6370", "width": 1.5}
    fill, size = np.where(chosen, "#0072b2", "white"), np.where(chosen, 11, 7)
    symbol = np.where(drawn > scores, "triangle-down", "circle")
    marker = {"color": fill, "size": size, "symbol": symbol, "opacity": 1, "line": line}
    hover = f"layer %{{x}}<br>{label} %{{customdata:.4f}}<extra></extra>"
    shown: dict[str, Any] = {"mode": "lines+markers", "line": line, "marker": marker, "hovertemplate": hover}
    shown |= {"customdata": scores, "meta": {"y": scores.tolist()}, "cliponaxis": False}
    fig.add_trace(go.Scatter(x=scores.index, y=drawn, **shown), row=row, col=1)
    axis = {} if positive.empty else style.log_axis(scores, floor, None if damage else "≤ 0")
    fig.update_yaxes(title={"text": "<br>".join(textwrap.wrap(label, 14))}, **axis, row=row, col=1)


def _agreement(rows: pd.DataFrame) -> str:
    """Return Spearman's correlation of one size's blocks with its interval, as text."""
    agreement = rank_agreement({name: rows[["start", "size", name]] for name in ("distance", "damage")})
    rho, low, high = agreement.loc[0, ["spearman", "ci_low", "ci_high"]].astype(float)
    return f"{rho:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite([rho, low, high]).all() else "too few blocks"
