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
from workbench.plots import axes, style


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
    hover = f"%{{fullData.name}}, layers %{{customdata[0]}}<br>{style.DISTANCE} %{{y:.4f}}"
    shown = {"custom_data": "removed", "markers": True, "hover": hover}
    lines = style.draw(px.line, rows, "start", "distance", styles, "size", **shown)
    lines.update_traces(marker_size=style.px_of(6), line_width=style.px_of(2))
    lines.for_each_trace(lambda line: line.update(name=_sized(line.name)))
    bands = _bands(rows, styles) if {"ci_low", "ci_high"} <= set(rows) else []
    marks = style.best_marks(best["start"], best["distance"], size=style.px_of(13), fill="rgba(0,0,0,0)")
    fig = go.Figure([*bands, *lines.data, marks], lines.layout)
    fig = style.legend_above(fig.update_layout(style.titled(title)))
    fig.update_xaxes(title="first removed layer", **axes.layer_axis(style.last_layer(frame) + 1))
    return fig.update_yaxes(title=style.DISTANCE, rangemode="tozero")


def metric_comparison(
    metrics: Mapping[str, pd.DataFrame],
    *,
    title: str | None = "What each metric says of removing one layer (filled: least)",
) -> go.Figure:
    """Draw the scores of single layers under each other, each on its own log scale; low = remove this.

    Each has its interval where its frame has one. Triangles at the end of a scale lie below it; an interval
    that ends below it runs out of the scale, with an arrow and no cap.

    Args:
        metrics: name -> frame, as ``rank_agreement`` takes them: ``angular_distances`` and ``block_damage``
            (their blocks of size 1), ``block_influence``, ``removal_similarity`` (drawn as 1 - similarity).
        title: of the figure.

    Raises:
        ValueError: when nothing is given, a frame holds no known metric, or has no block of size 1.
    """
    panels = dict(_layer_costs(name, frame) for name, frame in metrics.items())
    fig = style.new_panels(title, len(panels), 1, shared_xaxes=True, vertical_spacing=0.06)
    fig.update_layout(height=style.px_of(70 + 150 * len(panels)), showlegend=False)
    for row, (name, scores) in enumerate(panels.items(), start=1):
        _add_layer_panel(fig, row, name, scores)
    n_layers = max(int(scores.index.max()) + 1 for scores in panels.values())
    fig.update_xaxes(axes.layer_axis(n_layers))
    return fig.update_xaxes(title="removed layer", row=len(panels), col=1)


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
    rows = both[both["size"].isin(wanted)]
    names = {size: f"{_sized(size)}: {_agreement(rows[rows['size'] == size])}" for size in wanted}
    styles = dict(zip(names.values(), style.size_styles(wanted).values(), strict=True))
    floor = axes.log_floor(rows["damage"])
    rows = rows.assign(name=rows["size"].map(names), drawn=rows["damage"].clip(lower=floor))
    hover = "layers %{customdata[0]}<br>distance %{x:.4f}<br>damage %{customdata[1]:.4f}"
    shown = {"custom_data": ["removed", "damage"], "hover": hover}
    fig = style.draw(px.scatter, rows, "distance", "drawn", styles, "name", title=title, **shown)
    fig.update_traces(marker={"size": style.px_of(9), "line": {"width": 0.5, "color": style.INK}})
    fig.for_each_trace(lambda trace: trace.update(meta={"y": [one[1] for one in trace.customdata]}))
    below = rows[rows["damage"] < floor]
    if len(below):
        marks = axes.floor_marks(below["distance"], floor)
        fig.add_trace(marks.update(meta={"y": below["damage"].tolist()}))
    fig.update_yaxes(title=f"{style.DAMAGE}, log scale", **axes.log_axis(rows["damage"], floor))
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
        sizes: block sizes to draw; None means those of 1, 2, 4, 6, 8, 10 that the frame holds.
        n_layers: of the model, the length of the layer axis; None ends it at the deepest removed layer.
        title: of the figure.

    Raises:
        ValueError: for missing columns, a set that occurs twice in one size, or a size that the frame does
            not hold.
    """
    columns, keys = ["size", "calibration", "removed", "distance"], ("size", "calibration")
    best = checked(ablation, columns, "ablation", unique=keys)
    wanted = style.sizes_to_draw(best, sizes)
    best = best[best["size"].isin(wanted)].sort_values("size", kind="stable")
    # a row for each bar, and an empty one between sizes
    best = best.assign(row=np.arange(len(best)) + best["size"].rank(method="dense").to_numpy() - 1)
    wide = {"column_widths": [0.62, 0.38], "shared_yaxes": True, "horizontal_spacing": 0.05}
    fig = style.new_panels(title, 1, 2, **wide)
    rows = style.escaped(best, "calibration")
    styles = style.set_styles(rows["calibration"])
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
    axis = axes.layer_axis(n_layers, ticks=6 if style.narrow() else 12)
    fig.update_xaxes(title="removed layers", **axis, col=1)
    far = float(best.get("ci_high", best["distance"]).max())
    few = {"nticks": 2 + 3 * (not style.narrow()), "tickangle": 0}
    # room for the numbers behind the marks
    fig.update_xaxes(title=style.DISTANCE, range=[0, (2.1 if style.narrow() else 1.6) * far], **few, col=2)
    middles = best.groupby("size")["row"].mean()
    labels = {"tickvals": list(middles), "ticktext": [f"{size}" for size in middles.index]}
    fig.update_yaxes(range=[best["row"].max() + 0.8, -0.8], showgrid=False, **labels)
    fig.update_yaxes(title="block size", col=1)
    height = (11 + 1.4 * (len(best) + len(wanted))) * style.current_template().layout.font.size
    return style.legend_above(fig.update_layout(height=height, barmode="overlay"))


def _layer_labels(rows: pd.DataFrame, last: pd.Series, n_layers: int) -> go.Figure:
    """Return the names of the layers behind their bars; before those that end where the axis does."""
    deep = last > 0.8 * n_layers
    x = rows["first"].where(deep, last + 0.5)
    sides = np.where(deep, "middle left", "middle right")
    texts = [f"\u00a0{text}\u00a0" for text in rows["removed"]]
    shown = {"mode": "text", "textposition": sides, "hoverinfo": "skip", "showlegend": False}
    shown["textfont"] = {"size": style.small()}
    return go.Figure(go.Scatter(x=x, y=rows["row"], text=texts, cliponaxis=False, **shown))


def _agreement_legend(fig: go.Figure, entries: int) -> go.Figure:
    """Put the legend beside the figure, below it where that is narrow; the figure grows until it fits."""
    line = 1.7 * style.current_template().layout.font.size
    title = {"title": {"text": "Spearman ρ [95 %]"}}
    if style.narrow():
        place = {"x": 0, "y": 0, "yref": "container", "yanchor": "bottom"}
        room = line * (entries + 1)
        fig.update_layout(height=fig.layout.height + room, margin_b=room + style.px_of(60))
    else:
        place = {"x": 1.02, "y": 1, "yref": "paper", "yanchor": "top"}
        fig.update_layout(height=max(fig.layout.height, style.px_of(130) + line * (entries + 1)))
    return fig.update_layout(legend={**title, **place})


def _scored_marks(rows: pd.DataFrame, styles: dict[str, style.Style]) -> go.Figure:
    """Return the distances with their intervals, and the same as text at the end of the intervals."""
    shown = {"error_x": ("ci_low", "ci_high"), "hover": f"%{{fullData.name}}<br>{style.DISTANCE} %{{x:.4f}}"}
    marks = style.draw(px.scatter, rows, "distance", "row", styles, "calibration", **shown)
    rows = rows.assign(label=[f"\u00a0\u00a0{value:.3f}" for value in rows["distance"]])
    end = "ci_high" if "ci_high" in rows else "distance"
    labels = style.draw(px.scatter, rows, end, "row", styles, "calibration", text="label")
    look = {"textposition": "middle right", "cliponaxis": False, "textfont_size": style.small()}
    labels.update_traces(mode="text", **look)
    marks.update_traces(marker_size=style.px_of(9)).add_traces(labels.data)
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


def _layer_costs(name: str, frame: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return one metric's cost of removing each layer, under the name that an axis gives it, with its unit.

    Similarities near 1 become distances from 1.
    """
    costs = removal_cost(frame)
    single = costs[costs["size"] == 1].set_index("start")["cost"].sort_index()
    if single.empty:
        raise ValueError(f"metrics are compared layer by layer, but {name!r} has no block of size 1")
    turned = "similarity" in frame
    if turned:
        name, single = name if name.startswith("1") else f"1 − {name}", 1 + single
    elif "damage" in frame and "nats" not in name:
        name = f"{name} {style.DAMAGE_UNIT}"
    rows = frame[frame["size"] == 1] if "size" in frame else frame
    rows = rows.set_index("start" if "start" in rows else "layer")
    ends = rows.reindex(columns=["ci_low", "ci_high"]).astype(float).set_axis(["low", "high"], axis=1)
    if turned:
        ends = (1 - ends).rename(columns={"low": "high", "high": "low"})
    return name, single.to_frame("cost").join(ends)


def _add_layer_panel(fig: go.Figure, row: int, label: str, scores: pd.DataFrame) -> None:
    """Draw one metric on a log axis, on a plain one where nothing is above 0; triangles lie below its end."""
    costs, known = scores["cost"], scores[["low", "high"]].notna().all(axis=None)
    ends = scores[["low", "high"]].stack()
    log, floor = bool((costs > 0).any()), axes.log_floor(pd.concat([costs, ends[ends > 0]]))
    drawn = costs.clip(lower=floor) if log else costs
    line = {"color": "#5c6370", "width": style.px_of(1.5)}
    chosen = scores.index == costs.idxmin()
    small = style.px_of(float(np.clip(200 / len(costs), 3.5, 7)))
    fill, size = np.where(chosen, "#0072b2", "white"), np.where(chosen, style.px_of(11), small)
    symbol = np.where(drawn > costs, "triangle-down", "circle")
    marker = {"color": fill, "size": size, "symbol": symbol, "opacity": 1, "line": line}
    hover = f"layer %{{x}}<br>{style.plain(label)} %{{customdata:.4f}}<extra></extra>"
    shown: dict[str, Any] = {"mode": "lines+markers", "line": line, "marker": marker, "hovertemplate": hover}
    shown |= {"customdata": costs, "meta": {"y": costs.tolist()}, "cliponaxis": False}
    axis: dict[str, Any] = {}
    if log:
        reach = {"reach": float(scores["high"].max())} if known else {}
        axis = axes.log_axis(costs, floor, None if style.DAMAGE_UNIT in label else "≤ 0", **reach)
    if known:
        low, high = (scores[end].clip(lower=floor) if log else scores[end] for end in ("low", "high"))
        below = log & (scores["low"] < floor)
        sides = {"array": high - drawn, "arrayminus": (drawn - low).mask(below, 0)}
        look = {"color": line["color"], "thickness": style.px_of(1.5), "width": style.px_of(2)}
        shown["error_y"] = {**sides, "symmetric": False, **look}
        real = {"error_y": scores["high"] - costs, "error_y_minus": costs - scores["low"]}
        shown["meta"] |= {side: values.tolist() for side, values in real.items()}
        if below.any():
            fig.add_trace(_open_ends(drawn[below], 10 ** axis["range"][0], look), row=row, col=1)
    fig.add_trace(go.Scatter(x=scores.index, y=drawn, **shown), row=row, col=1)
    title = "<br>".join(map(style.plain, textwrap.wrap(f"{label}, log" if log else label, 15)))
    fig.update_yaxes(title={"text": title, "font": {"size": style.small()}}, **axis, row=row, col=1)


def _open_ends(drawn: pd.Series, bottom: float, look: dict[str, Any]) -> go.Scatter:
    """Return the lower sides of intervals that end below an axis: lines that leave it, with an arrow."""
    x = np.repeat(drawn.index.to_numpy(dtype=float), 3)
    y = np.column_stack([drawn, np.full(len(drawn), bottom), np.full(len(drawn), np.nan)]).ravel()
    size = np.tile([0, style.px_of(9), 0], len(drawn))
    marker = {
        "symbol": "arrow-down",
        "size": size,
        "color": look["color"],
        "opacity": 1,
        "line": {"width": 0},
    }
    shown = {"mode": "lines+markers", "hoverinfo": "skip", "cliponaxis": False, "connectgaps": False}
    line = {"color": look["color"], "width": look["thickness"]}
    return go.Scatter(x=x, y=y, line=line, marker=marker, meta={"x": [], "y": []}, **shown)


def _sized(size: Any) -> str:
    return f"{size} layer" + ("" if str(size) == "1" else "s")


def _agreement(rows: pd.DataFrame) -> str:
    """Return Spearman's correlation of one size's blocks with its interval and their number, as text."""
    agreement = rank_agreement({name: rows[["start", "size", name]] for name in ("distance", "damage")})
    rho, low, high = agreement.loc[0, ["spearman", "ci_low", "ci_high"]].astype(float)
    known = np.isfinite([rho, low, high]).all()
    return f"{rho:.2f} [{low:.2f}, {high:.2f}], n={len(rows)}" if known else f"too few blocks (n={len(rows)})"
