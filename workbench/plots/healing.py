"""Figures of healing: the loss while it falls, in one place, and what a grid search found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.checks import checked
from workbench.plots.style import INK, current_template, new_figure, plain, variant_styles

_COLOR, _BEST = "#0072b2", "#d55e00"


def tuning_figure(trials: pd.DataFrame, *, title: str | None = "Held-out loss over the grid") -> go.Figure:
    """Draw the held-out loss against each searched setting; a line joins the least loss of each value.

    Args:
        trials: of ``tune`` or ``read_trials``: ``trial``, ``state``, ``loss`` (nats a token), one column a
            setting.
        title: of the figure.

    Raises:
        ValueError: for missing columns, or no trial with a loss.
    """
    frame = checked(trials, ["trial", "state", "loss"], "trials")
    frame = frame[frame["loss"].notna()]
    checked(frame, ["loss"], "trials with a loss")
    after = list(frame.columns).index("state") + 1
    settings = list(frame.columns[after : list(frame.columns).index("loss")])
    best = frame.loc[frame["loss"].idxmin()]
    fig = make_subplots(1, len(settings), shared_yaxes=True, horizontal_spacing=0.03)
    for column, name in enumerate(settings, start=1):
        values = sorted(frame[name].unique())
        for trace in _panel(frame, name, [_tick(value) for value in values], values, best):
            fig.add_trace(trace.update(showlegend=column == 1), row=1, col=column)
        ticks = [_tick(value) for value in values]
        fig.update_xaxes(
            tickangle=0,
            title=name.replace("_", " "),
            type="category",
            categoryarray=ticks,
            showgrid=False,
            col=column,
        )
    fig.update_yaxes(title="held-out loss (nats per token)", col=1)
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    return fig.update_layout(template=current_template(), title=title, legend=legend, margin={"t": 92})


def _panel(
    frame: pd.DataFrame, name: str, ticks: list[str], values: list[Any], best: pd.Series
) -> list[go.Scatter]:
    least = [frame.loc[frame[name] == value, "loss"].min() for value in values]
    dots = go.Scatter(
        x=[_tick(value) for value in frame[name]],
        y=frame["loss"],
        mode="markers",
        name="a training",
        marker={"color": _COLOR, "size": 7, "opacity": 0.5},
        customdata=frame["trial"],
        hovertemplate="trial %{customdata}: %{y:.4f}<extra></extra>",
    )
    line = go.Scatter(
        x=ticks, y=least, mode="lines", name="least of the value", line={"color": _COLOR, "width": 2}
    )
    mark = {"symbol": "star", "size": 14, "color": _BEST, "line": {"color": INK, "width": 1}}
    star = go.Scatter(
        x=[_tick(best[name])], y=[best["loss"]], mode="markers", name="best", marker=mark, hoverinfo="skip"
    )
    return [line, dots, star]


def _tick(value: float) -> str:
    return np.format_float_scientific(value, trim="-", exp_digits=1) if 0 < value < 1e-3 else f"{value:g}"


def kept_reasons(distilled: pd.DataFrame, *, title: str | None = None) -> go.Figure:
    """Draw how many rewrites were kept, and why the others fell back to the reference.

    Args:
        distilled: frame of ``self_distill``: ``kept`` (bool), ``reason``.
        title: of the figure; None writes the share kept.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(distilled, ["kept", "reason"], "distilled")
    counts = frame.groupby(["kept", "reason"], dropna=False).size().reset_index(name="n")
    counts = counts.sort_values(["kept", "n"], ascending=[True, True])
    kept = int(frame["kept"].sum())
    title = title or f"{kept} of {len(frame)} rewrites kept ({kept / len(frame):.1%})"
    fig = new_figure(title, height=170 + 34 * len(counts), legend={"title": {"text": "response used"}})
    for label, rows, color, pattern in (
        ("the model's own words", counts[counts["kept"]], "#0072b2", ""),
        ("the reference", counts[~counts["kept"].astype(bool)], "#e69f00", "/"),
    ):
        fig.add_trace(
            go.Bar(
                x=rows["n"],
                y=[plain(reason) for reason in rows["reason"]],
                orientation="h",
                name=label,
                marker={"color": color, "pattern": {"shape": pattern, "fillmode": "overlay"}},
                text=[f"{n} ({n / len(frame):.1%})" for n in rows["n"]],
                textposition="outside",
                cliponaxis=False,
                hovertemplate="%{y}: %{text}<extra></extra>",
            )
        )
    fig.update_xaxes(title="examples", range=[0, 1.18 * counts["n"].max()])
    return fig.update_yaxes(showgrid=False, ticks="", type="category")


def loss_curve(
    log: pd.DataFrame,
    *,
    value: str = "loss",
    smooth: int | None = None,
    title: str | None = "Healing: training loss",
) -> go.Figure:
    """Draw the loss against the training step, one line a variant.

    Args:
        log: ``step``, the ``value`` column, and ``variant`` where several runs are compared (logs of
            ``heal``).
        value: column to draw; rows without a number in it are left out.
        smooth: steps of a centred running mean drawn over the raw line; None means a twentieth of the steps,
            1 draws the raw line alone.
        title: of the figure.

    Raises:
        ValueError: for missing columns or no number to draw.
    """
    frame = checked(log, ["step", value], "log")
    frame = frame[frame[value].notna()]
    checked(frame, ["step", value], f"log rows with a number in {value!r}")
    frame = frame.assign(variant=frame.get("variant", value))
    fig = new_figure(title)
    for name, style in variant_styles(frame["variant"]).items():
        rows = frame[frame["variant"] == name].sort_values("step")
        window = smooth if smooth is not None else len(rows) // 20
        if window > 1:
            raw = go.Scatter(x=rows["step"], y=rows[value], line={"color": style.color, "width": 1})
            fig.add_trace(raw.update(mode="lines", opacity=0.35, showlegend=False, hoverinfo="skip"))
        mean = rows[value].rolling(max(window, 1), center=True, min_periods=1).mean()
        line = {"color": style.color, "width": 2.2, "dash": style.dash}
        fig.add_trace(go.Scatter(x=rows["step"], y=mean, name=plain(name), mode="lines", line=line))
    several = frame["variant"].nunique() > 1
    fig.update_xaxes(title="optimizer step", rangemode="tozero")
    fig.update_yaxes(title=f"{plain(value)} (nats per token)", rangemode="tozero")
    return fig.update_layout(showlegend=several, hovermode="x unified")
