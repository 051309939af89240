"""Figures of what came out: rewrites kept, training loss, scores, similarity. Offered by ``plots``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.export import current_template
from workbench.figures import INK, Style, checked, new_figure, plain, variant_styles
from workbench.outcomes import score_intervals
from workbench.scores import headline
from workbench.statistics import bootstrap_interval


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


def score_bars(scores: pd.DataFrame, *, title: str | None = "Scores with 95 % intervals") -> go.Figure:
    """Draw every task's score per variant with its interval; perplexities get a panel of their own.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``: ``variant``, ``task``, ``metric``, ``value``,
            ``stderr``, and ``n`` where there. One metric a task is drawn, the one that papers report.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = headline(checked(scores, ["variant", "task", "metric", "value", "stderr"], "scores"))
    frame = frame.assign(unit=[_unit(metric) for metric in frame["metric"]])
    tasks = frame.groupby("unit", sort=False)["task"].nunique()
    fig = make_subplots(1, len(tasks), column_widths=list(tasks + 1), horizontal_spacing=0.09)
    # above the bars: below them the names of many tasks need the room
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    fig.update_layout(
        template=current_template(), title=title, legend=legend, margin={"t": 92 if title else 44}
    )
    for column, unit in enumerate(tasks.index, start=1):
        for name, style in variant_styles(frame["variant"]).items():
            rows = frame[(frame["unit"] == unit) & (frame["variant"] == name)]
            fig.add_trace(
                _score_bar(rows, plain(name), style).update(showlegend=column == 1), row=1, col=column
            )
        fig.update_yaxes(title=unit, rangemode="tozero", row=1, col=column)
    shares = [column for column, unit in enumerate(tasks.index, start=1) if unit == "score"]
    for column in shares:
        fig.update_yaxes(range=[0, 1.02], row=1, col=column)
    fig.update_xaxes(showgrid=False, automargin=True, tickangle=-30)
    return fig.update_layout(barmode="group", bargap=0.2, bargroupgap=0.05)


def similarity_distribution(
    similarities: pd.DataFrame, *, title: str | None = "How close the responses stay to the unpruned model's"
) -> go.Figure:
    """Draw each variant's whole distribution of similarities, with the mean and its interval.

    Every response is a dot: a mean alone hides whether all responses moved a little or a few moved far.

    Args:
        similarities: frames of ``response_similarity`` under each other: ``variant``, ``similarity``
            (cosine, 1 = same direction); one row a response.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(similarities, ["variant", "similarity"], "similarities")
    frame = frame[frame["similarity"].notna()]
    styles = variant_styles(frame["variant"])
    fig = new_figure(title, height=150 + 105 * len(styles), showlegend=False)
    ticks = []
    for place, (name, style) in enumerate(styles.items()):
        values = frame.loc[frame["variant"] == name, "similarity"].to_numpy(dtype=float)
        mean, (low, high) = float(values.mean()), bootstrap_interval(values)
        fig.add_traces(spread_marks(values, place, style))
        fig.add_trace(mean_mark(mean, low, high, place, plain(name)))
        ticks.append(f"{plain(name)}<br>mean {mean:.3f} [{low:.3f}, {high:.3f}]<br>{len(values)} responses")
    fig.update_yaxes(
        tickvals=list(range(len(ticks))), ticktext=ticks, range=[len(ticks) - 0.35, -0.65], showgrid=False
    )
    lowest = min(0.0, float(frame["similarity"].min()))
    return fig.update_xaxes(
        title="cosine similarity to the unpruned model's response", range=[lowest - 0.03, 1.04]
    )


def _unit(metric: str) -> str:
    name = str(metric).split(",")[0]
    return plain(name) if any(word in name for word in ("perplexity", "loss", "bits_per_byte")) else "score"


def _score_bar(rows: pd.DataFrame, name: str, style: Style) -> go.Bar:
    rows = score_intervals(rows)
    spread = {"array": rows["high"] - rows["value"], "arrayminus": rows["value"] - rows["low"]}
    return go.Bar(
        x=[plain(task) for task in rows["task"]],
        y=rows["value"],
        name=name,
        legendgroup=name,
        error_y={"type": "data", "symmetric": False, **spread, "thickness": 1.3, "width": 3, "color": INK},
        marker={"color": style.color, "pattern": {"shape": style.pattern, "fillmode": "overlay", "size": 6}},
        customdata=np.stack([rows["low"], rows["high"]], axis=-1),
        hovertemplate=f"{name}<br>%{{x}} %{{y:.3f}} [%{{customdata[0]:.3f}}, %{{customdata[1]:.3f}}]"
        "<extra></extra>",
    )


def spread_marks(
    values: np.ndarray, place: int, style: Style, *, hover: list[str] | None = None
) -> list[Any]:
    """Return half a violin above the line of a variant and its responses as dots below."""
    shape = go.Violin(
        x=values,
        y0=place,
        orientation="h",
        side="negative",
        spanmode="hard",
        width=0.9,
        points=False,
        line={"color": style.color, "width": 1.2},
        fillcolor=style.color,
        opacity=0.45,
        hoverinfo="skip",
    )
    # a fixed jitter: the same frame gives the same picture
    below = place + 0.1 + 0.2 * np.random.default_rng(0).random(len(values))
    dots = go.Scatter(
        x=values,
        y=below,
        mode="markers",
        marker={"color": style.color, "size": 4, "opacity": float(np.clip(60 / len(values), 0.15, 0.7))},
        text=hover,
        hovertemplate="%{text}<extra></extra>" if hover else "%{x:.3f}<extra></extra>",
    )
    return [shape, dots]


def mean_mark(mean: float, low: float, high: float, place: int, name: str) -> go.Scatter:
    """Return a mean with its interval on the line of a variant."""
    return go.Scatter(
        x=[mean],
        y=[place],
        mode="markers",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [high - mean],
            "arrayminus": [mean - low],
            "width": 5,
            "color": INK,
        },
        marker={"symbol": "diamond", "size": 10, "color": "white", "line": {"color": INK, "width": 1.8}},
        hovertemplate=f"{name}<br>mean {mean:.3f} [{low:.3f}, {high:.3f}]<extra></extra>",
    )
