"""Figures of blocks: distances as lines, measures side by side, distance against damage, calibration sets."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.checks import checked
from workbench.distances.blocks import checked_blocks, parse_layers
from workbench.plots.style import (
    DAMAGE,
    DAMAGE_FLOOR,
    DAMAGE_UNIT,
    DISTANCE,
    INK,
    best_marks,
    current_template,
    joined,
    last_layer,
    layer_axis,
    least,
    log_axis,
    new_figure,
    plain,
    size_styles,
    sizes_to_draw,
    variant_styles,
)
from workbench.statistics import rank_agreement, removal_cost


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
    wanted = sizes_to_draw(frame, sizes)
    fig = new_figure(title, legend={"title": {"text": "block size"}, "traceorder": "reversed"})
    for size, style in size_styles(wanted).items():
        rows = frame[frame["size"] == size]
        if {"ci_low", "ci_high"} <= set(rows.columns):
            fig.add_trace(_band(rows["start"], rows["ci_low"], rows["ci_high"], style.color))
        fig.add_trace(
            go.Scatter(
                x=rows["start"],
                y=rows["distance"],
                name=f"{size}",
                mode="lines+markers",
                line={"color": style.color, "width": 2},
                marker={"symbol": style.symbol, "size": 6},
                customdata=rows["removed"],
                hovertemplate=f"size {size}, layers %{{customdata}}<br>{DISTANCE} %{{y:.4f}}<extra></extra>",
            )
        )
    best = least(frame[frame["size"].isin(wanted)], "distance")
    fig.add_trace(best_marks(best["start"], best["distance"], size=13, fill="rgba(0,0,0,0)"))
    fig.update_xaxes(title="first removed layer", **layer_axis(last_layer(frame) + 1))
    return fig.update_yaxes(title=DISTANCE, rangemode="tozero")


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
    panels = {_cost_name(name, frame): _layer_scores(name, frame) for name, frame in metrics.items()}
    fig = make_subplots(len(panels), 1, shared_xaxes=True, vertical_spacing=0.06)
    template = current_template()
    fig.update_layout(template=template, title=title, height=70 + 0.33 * template.layout.height * len(panels))
    for row, (name, scores) in enumerate(panels.items(), start=1):
        _add_layer_panel(fig, row, plain(name), scores)
    fig.update_xaxes(**layer_axis(max(int(scores.index.max()) + 1 for scores in panels.values())))
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
    both = joined(distances, damage)
    wanted = sorted(both["size"].unique()) if sizes is None else sizes_to_draw(both, sizes)
    fig = new_figure(
        title,
        legend={
            "title": {"text": "block size: Spearman ρ [95 %]"},
            "x": 0.99,
            "y": 0.02,
            "xanchor": "right",
            "yanchor": "bottom",
        },
    )
    for size, style in size_styles(wanted).items():
        rows = both[both["size"] == size]
        fig.add_trace(
            go.Scatter(
                x=rows["distance"],
                y=rows["damage"].clip(lower=DAMAGE_FLOOR),
                mode="markers",
                name=f"{size}: {_agreement(rows)}",
                marker={
                    "color": style.color,
                    "symbol": style.symbol,
                    "size": 9,
                    "line": {"width": 0.5, "color": INK},
                },
                customdata=rows[["removed", "damage"]],
                hovertemplate="layers %{customdata[0]}<br>distance %{x:.4f}<br>damage %{customdata[1]:.4f}"
                "<extra></extra>",
            )
        )
    fig.update_yaxes(title=f"{DAMAGE}, from {DAMAGE_FLOOR:g} up", **log_axis(both["damage"]))
    return fig.update_xaxes(title=DISTANCE, rangemode="tozero")


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
    best = checked(ablation, ["size", "calibration", "removed", "distance"], "ablation")
    if best.duplicated(["size", "calibration"]).any():
        raise ValueError("ablation must hold each calibration set once a size; select one set of rows")
    wanted = sizes_to_draw(best, sizes, usual=(2, 4, 6, 8, 10))
    best = best[best["size"].isin(wanted)].sort_values("size", kind="stable")
    # a row for each bar, and an empty one between sizes
    best = best.assign(row=np.arange(len(best)) + best["size"].rank(method="dense").to_numpy() - 1)
    fig = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.04, column_widths=[0.62, 0.38])
    height = (12 + 1.6 * (len(best) + len(wanted))) * current_template().layout.font.size
    fig.update_layout(template=current_template(), title=title, height=height, barmode="overlay")
    for name, style in variant_styles(best["calibration"]).items():
        _add_calibration(fig, best[best["calibration"] == name], plain(name), style.color, style.symbol)
    n_layers = n_layers or last_layer(best) + 1
    fig.update_xaxes(
        title="removed layers", range=[-0.5, n_layers - 0.5], **layer_axis(n_layers), row=1, col=1
    )
    far = float(best.get("ci_high", best["distance"]).max())
    fig.update_xaxes(title=DISTANCE, range=[0, 1.3 * far], row=1, col=2)
    middles = best.groupby("size")["row"].mean()
    labels = {"tickvals": list(middles), "ticktext": [f"{size}" for size in middles.index]}
    fig.update_yaxes(range=[best["row"].max() + 0.8, -0.8], showgrid=False, **labels)
    return fig.update_yaxes(title="block size", row=1, col=1)


def _band(x: pd.Series, low: pd.Series, high: pd.Series, color: str) -> go.Scatter:
    return go.Scatter(
        x=pd.concat([x, x[::-1]]),
        y=pd.concat([high, low[::-1]]),
        mode="lines",
        fill="toself",
        fillcolor=color,
        opacity=0.18,
        line={"width": 0},
        hoverinfo="skip",
        showlegend=False,
    )


def _cost_name(name: str, frame: pd.DataFrame) -> str:
    """Return what an axis of costs is called, with its unit."""
    if "damage" in frame and "nats" not in name:
        return f"{name} {DAMAGE_UNIT}"
    return f"1 − {name}" if "similarity" in frame and not name.startswith("1") else name


def _layer_scores(name: str, frame: pd.DataFrame) -> pd.Series:
    """Return one metric's cost of removing each layer; similarities near 1 become distances from 1."""
    costs = removal_cost(frame)
    single = costs[costs["size"] == 1].set_index("start")["cost"].sort_index()
    if single.empty:
        raise ValueError(f"metrics are compared layer by layer, but {name!r} has no block of size 1")
    return 1 + single if "similarity" in frame else single


def _add_layer_panel(fig: go.Figure, row: int, label: str, scores: pd.Series) -> None:
    chosen = scores.index == scores.idxmin()
    lowest = DAMAGE_FLOOR if DAMAGE_UNIT in label else scores[scores > 0].min()
    fig.add_trace(
        go.Scatter(
            x=scores.index,
            y=scores.clip(lower=lowest),
            mode="lines+markers",
            line={"color": "#5c6370", "width": 1.5},
            marker={
                "color": np.where(chosen, "#0072b2", "white"),
                "size": np.where(chosen, 11, 7),
                "opacity": 1,
                "line": {"color": "#5c6370", "width": 1.5},
            },
            customdata=scores,
            hovertemplate=f"layer %{{x}}<br>{label} %{{customdata:.4f}}<extra></extra>",
        ),
        row=row,
        col=1,
    )
    title = "<br>".join(textwrap.wrap(label, 14))
    fig.update_yaxes(title={"text": title}, **log_axis(scores, lowest), row=row, col=1)


def _add_calibration(fig: go.Figure, rows: pd.DataFrame, name: str, color: str, symbol: str) -> None:
    layers = [parse_layers(text) for text in rows["removed"]]
    fig.add_trace(
        go.Bar(
            x=[removed[-1] - removed[0] + 1 for removed in layers],
            base=[removed[0] - 0.5 for removed in layers],
            y=rows["row"],
            width=0.8,
            orientation="h",
            name=name,
            legendgroup=name,
            marker={"color": color},
            text=rows["removed"],
            textposition="outside",
            cliponaxis=False,
            hovertemplate=f"{name}<br>layers %{{text}}<extra></extra>",
        ),
        row=1,
        col=1,
    )
    score = {"y": rows["row"], "legendgroup": name, "showlegend": False}
    fig.add_trace(
        go.Scatter(
            x=rows["distance"],
            error_x=_interval(rows, "distance"),
            mode="markers",
            marker={"color": color, "symbol": symbol, "size": 9},
            hovertemplate=f"{name}<br>{DISTANCE} %{{x:.4f}}<extra></extra>",
            **score,
        ),
        row=1,
        col=2,
    )
    fig.add_trace(
        go.Scatter(
            x=rows.get("ci_high", rows["distance"]),
            mode="text",
            text=[f"  {value:.3f}" for value in rows["distance"]],
            textposition="middle right",
            hoverinfo="skip",
            **score,
        ),
        row=1,
        col=2,
    )


def _interval(rows: pd.DataFrame, value: str) -> dict[str, Any] | None:
    if not {"ci_low", "ci_high"} <= set(rows.columns):
        return None
    above, below = rows["ci_high"] - rows[value], rows[value] - rows["ci_low"]
    return {
        "type": "data",
        "symmetric": False,
        "array": above,
        "arrayminus": below,
        "thickness": 1.5,
        "width": 3,
    }


def _agreement(rows: pd.DataFrame) -> str:
    """Return Spearman's correlation of one size's blocks with its interval, as text."""
    agreement = rank_agreement(
        {"distance": rows[["start", "size", "distance"]], "damage": rows[["start", "size", "damage"]]}
    )
    rho, low, high = agreement.loc[0, ["spearman", "ci_low", "ci_high"]].astype(float)
    return f"{rho:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite([rho, low, high]).all() else "too few blocks"
