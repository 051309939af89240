"""Figures of scores: against the fraction of layers dropped, by category, and what turned. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from workbench.checks import checked
from workbench.evaluation.scores import CHANCE, headline, score_intervals
from workbench.plots.style import INK, Style, current_template, log_axis, new_figure, plain, variant_styles

_GUESS = "#8b9199"
_FRACTION = ["task", "metric", "value", "stderr", "series", "healed", "fraction"]


def score_vs_fraction(
    scores: pd.DataFrame,
    *,
    chance: Mapping[str, float] | None = None,
    columns: int = 3,
    title: str | None = "Score against the share of layers dropped",
) -> go.Figure:
    """Draw each task's score against the fraction of layers dropped, as in GRO figures 2 and 7.

    Healed models are solid with filled marks, models that were not healed dotted with open marks; a dashed
    grey line is the score of a uniform guess.

    Args:
        scores: rows of ``scores_by_depth`` and ``at_fractions`` under each other: ``task, metric, value,
            stderr, series, healed, fraction``, and ``n`` where there. A series of fraction 0 alone (the whole
            model) is where each series begins that has no such point of its own.
        chance: task -> score of a guess; None takes ``CHANCE``. Tasks without one get no line.
        columns: panels beside each other.
        title: of the figure.

    Raises:
        ValueError: for missing columns, no score where higher is better, or a series that has two scores of a
            task at one fraction.
    """
    frame = headline(checked(scores, _FRACTION, "scores"))
    if "higher_is_better" in frame:
        frame = frame[frame["higher_is_better"].astype(bool)]
    frame = checked(frame, _FRACTION, "scores where higher is better")
    guesses = CHANCE if chance is None else chance
    fig = _fraction_panels(score_intervals(frame), guesses, columns, title)
    fig.update_yaxes(range=[-0.02, 1.04], tickformat=".0%")
    return fig.update_yaxes(title="score", col=1)


def loss_vs_fraction(
    scores: pd.DataFrame,
    *,
    columns: int = 3,
    title: str | None = "Loss against the share of layers dropped",
) -> go.Figure:
    """Draw the loss divided by log(vocabulary size) against the fraction of layers dropped (GRO figure 3).

    Args:
        scores: as for ``score_vs_fraction``; rows whose metric is ``normalized_loss`` are drawn. The scale is
            logarithmic, from 0.05 (lower where a loss is) to 1, a uniform guess, or beyond if one is worse.
        columns: panels beside each other, one a set of texts.
        title: of the figure.

    Raises:
        ValueError: for missing columns, no such row, or a series with two losses at one fraction.
    """
    frame = checked(scores, _FRACTION, "scores")
    frame = frame[frame["metric"] == "normalized_loss"]
    frame = checked(frame, _FRACTION, "scores with the metric normalized_loss")
    guesses = dict.fromkeys(frame["task"], 1.0)
    fig = _fraction_panels(score_intervals(frame), guesses, columns, title)
    values = pd.concat([frame["value"], pd.Series([1.0])])
    fig.update_yaxes(**log_axis(values, min(0.05, 0.8 * float(frame["value"].min()))))
    return fig.update_yaxes(title="loss / log(vocabulary)", col=1)


def category_bars(
    categories: pd.DataFrame, *, title: str | None = "Scores by category with 95 % intervals"
) -> go.Figure:
    """Draw the mean score of each category for each variant with its interval.

    Args:
        categories: frame of ``category_scores``: ``variant, category, value, low, high``.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(categories, ["variant", "category", "value", "low", "high"], "categories")
    fig = new_figure(title, barmode="group", bargap=0.25, bargroupgap=0.06)
    for name, style in variant_styles(frame["variant"]).items():
        rows = frame[frame["variant"] == name]
        fig.add_trace(
            go.Bar(
                x=[plain(category) for category in rows["category"]],
                y=rows["value"],
                name=plain(name),
                error_y=_errors(rows),
                marker={"color": style.color, "pattern": {"shape": style.pattern, "fillmode": "overlay"}},
                customdata=rows[["low", "high"]],
                hovertemplate=f"{plain(name)}<br>%{{x}} %{{y:.3f}} [%{{customdata[0]:.3f}}, "
                "%{customdata[1]:.3f}]<extra></extra>",
            )
        )
    fig.update_layout(legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}, margin={"t": 92})
    fig.update_xaxes(showgrid=False, ticks="")
    return fig.update_yaxes(title="mean score", range=[0, 1.04], tickformat=".0%")


def flip_bars(
    flips: pd.DataFrame, *, title: str | None = "Items that turned, against the unpruned model"
) -> go.Figure:
    """Draw how many items of each task turned from right to wrong (left) and from wrong to right (right).

    Args:
        flips: frame of ``flip_counts``: ``variant, task, n, right_to_wrong, wrong_to_right``.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(flips, ["variant", "task", "n", "right_to_wrong", "wrong_to_right"], "flips")
    names = [*dict.fromkeys(frame["variant"])]
    fig = make_subplots(
        1, len(names), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=[*map(plain, names)]
    )
    height = 150 + 30 * frame["task"].nunique()
    fig.update_layout(template=current_template(), title=title, height=height, barmode="relative", bargap=0.3)
    for column, name in enumerate(names, start=1):
        rows = frame[frame["variant"] == name]
        _add_flips(fig, rows, column)
    # shares, since tasks may have different numbers of items; one scale for all panels
    most = float((frame[["right_to_wrong", "wrong_to_right"]].max(axis=1) / frame["n"]).max())
    reach = max(0.1, 1.3 * most)
    fig.update_xaxes(range=[-reach, reach], tickformat=".0%", zeroline=True, zerolinecolor=INK, nticks=4)
    fig.update_xaxes(title="share of items", row=1)
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    return fig.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container"})


def _fraction_panels(
    frame: pd.DataFrame, guesses: Mapping[str, float], columns: int, title: str | None
) -> go.Figure:
    """Return one panel a task, with a line a series and the line of a guess."""
    frame = frame.assign(panel=_panel_names(frame))
    _check_once(frame)
    tasks = frame.drop_duplicates("panel").set_index("panel")["task"]
    across = max(1, min(columns, len(tasks)))
    down = -(-len(tasks) // across)
    fig = make_subplots(
        down,
        across,
        shared_yaxes=True,
        subplot_titles=[*map(plain, tasks.index)],
        horizontal_spacing=0.04,
        vertical_spacing=0.25 / down,
    )
    template = current_template()
    height = 110 + down * (0.55 * template.layout.height)
    fig.update_layout(template=template, title=title, height=height, margin={"t": 70, "b": 110})
    most = float(frame["fraction"].max())
    span = [-0.03 * max(most, 0.1), 1.06 * max(most, 0.1)]
    drawn: set[str] = set()
    for number, (panel, task) in enumerate(tasks.items()):
        at = {"row": number // across + 1, "col": number % across + 1}
        if task in guesses:
            fig.add_trace(_guess(span, guesses[task], "guess" not in drawn), **at)
            drawn.add("guess")
        for trace in _series_traces(frame[frame["panel"] == panel], _series_styles(frame), drawn):
            fig.add_trace(trace, **at)
    fig.update_xaxes(range=span, tickformat=".0%")
    fig.update_xaxes(title="layers dropped", row=down)
    return fig.update_layout(legend={"orientation": "h", "x": 0, "y": 0, "yref": "container"})


def _series_styles(frame: pd.DataFrame) -> dict[Any, Style]:
    lines = frame.groupby("series", sort=False)["fraction"].max()
    return variant_styles(lines.index[lines > 0]) or variant_styles(lines.index)


def _series_traces(rows: pd.DataFrame, styles: Mapping[Any, Style], drawn: set[str]) -> list[go.Scatter]:
    """Return a line a series; the whole model begins those without a point of their own at 0."""
    alone = ~rows["series"].isin(styles)
    start = rows[alone & (rows["fraction"] == 0)].head(1)
    traces = []
    for name, style in styles.items():
        own = rows[rows["series"] == name]
        if own.empty:
            continue
        if not (own["fraction"] == 0).any():
            own = pd.concat([start, own])
        healed = bool(rows.loc[rows["series"] == name, "healed"].any())
        line = _series_line(own.sort_values("fraction"), str(name), style, healed)
        traces.append(line.update(showlegend=str(name) not in drawn))
        drawn.add(str(name))
    return traces


def _series_line(rows: pd.DataFrame, name: str, style: Style, healed: bool) -> go.Scatter:
    counts = [f", {n:.0f} items" for n in rows["n"]] if "n" in rows else [""] * len(rows)
    removed = rows["removed"] if "removed" in rows else [""] * len(rows)
    return go.Scatter(
        x=rows["fraction"],
        y=rows["value"],
        mode="lines+markers",
        name=plain(name),
        legendgroup=plain(name),
        line={"color": style.color, "width": 2.2, "dash": "solid" if healed else "dot"},
        marker={
            "symbol": style.symbol if style.symbol not in ("x", "cross", "star") else "circle",
            "size": 8,
            "color": style.color if healed else "white",
            "line": {"color": style.color, "width": 1.8},
        },
        error_y=_errors(rows) | {"color": style.color, "thickness": 1.1},
        customdata=[
            f"layers {plain(cut)} out{n}" if cut else f"whole model{n}"
            for cut, n in zip(removed, counts, strict=True)
        ],
        hovertemplate=f"{plain(name)}<br>%{{customdata}}<br>%{{y:.3f}}<extra></extra>",
    )


def _guess(span: list[float], value: float, first: bool) -> go.Scatter:
    return go.Scatter(
        x=span,
        y=[value, value],
        mode="lines",
        name="random guess",
        legendgroup="random guess",
        showlegend=first,
        line={"color": _GUESS, "width": 1.4, "dash": "dash"},
        hovertemplate=f"random guess {value:.3g}<extra></extra>",
    )


def _errors(rows: pd.DataFrame) -> dict[str, Any]:
    spread = {"array": rows["high"] - rows["value"], "arrayminus": rows["value"] - rows["low"]}
    return {"type": "data", "symmetric": False, **spread, "thickness": 1.3, "width": 3, "color": INK}


def _add_flips(fig: go.Figure, rows: pd.DataFrame, column: int) -> None:
    for label, key, sign, color, pattern in (
        ("right to wrong", "right_to_wrong", -1, "#d55e00", "/"),
        ("wrong to right", "wrong_to_right", 1, "#0072b2", ""),
    ):
        fig.add_trace(
            go.Bar(
                y=[plain(task) for task in rows["task"]],
                x=sign * rows[key] / rows["n"],
                orientation="h",
                name=label,
                legendgroup=label,
                showlegend=column == 1,
                marker={"color": color, "pattern": {"shape": pattern, "fillmode": "overlay", "size": 6}},
                text=[f"{count}" if count else "" for count in rows[key]],
                textposition="outside",
                cliponaxis=False,
                customdata=rows[[key, "n"]],
                hovertemplate=f"%{{y}}: %{{customdata[0]}} of %{{customdata[1]}} {label}<extra></extra>",
            ),
            row=1,
            col=column,
        )


def _panel_names(frame: pd.DataFrame) -> pd.Series:
    """Return the task, with its number of shots where there are several."""
    if "n_shot" not in frame:
        return frame["task"].astype(str)
    several = frame.groupby("task")["n_shot"].transform("nunique") > 1
    shots = ", " + frame["n_shot"].astype(str) + "-shot"
    return frame["task"].astype(str) + shots.where(several, "")


def _check_once(frame: pd.DataFrame) -> None:
    twice = frame[frame.duplicated(["series", "panel", "fraction"])]
    if len(twice):
        row = twice.iloc[0]
        raise ValueError(
            f"each series must have one score a task and fraction; {row['series']!r} has two of "
            f"{row['task']!r} at {row['fraction']:.3g}; give them series of their own"
        )


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
