"""Figures of scores: against the fraction of layers dropped, by category, and what turned. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.checks import checked
from workbench.evaluation.scores import accuracies, headline, score_intervals, task_names
from workbench.evaluation.suites import CHANCE
from workbench.plots import style

_FRACTION = ["task", "metric", "value", "stderr", "series", "healed", "fraction"]
_GUESS = "random guess"
_TURNED = {
    "right to wrong": style.Style("#d55e00", pattern_shape="/"),
    "wrong to right": style.Style("#0072b2"),
}


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
    frame = accuracies(checked(scores, _FRACTION, "scores"))
    frame = checked(frame, _FRACTION, "scores where higher is better")
    fig = _fraction_panels(frame, CHANCE if chance is None else chance, columns, title)
    fig.update_yaxes(range=[-0.02, 1.04], tickformat=".0%")
    return fig.update_yaxes(title="score", col=1)


def loss_vs_fraction(
    scores: pd.DataFrame, *, columns: int = 3, title: str | None = "Loss against the share of layers dropped"
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
    fig = _fraction_panels(frame, dict.fromkeys(frame["task"], 1.0), columns, title)
    lowest = min(0.05, 0.8 * float(frame["value"].min()))
    fig.update_yaxes(**style.log_axis(frame["value"].clip(lower=1.0), lowest))
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
    frame = style.escaped(frame, "variant", "category")
    fig = _interval_bars(frame, "category", style.variant_styles(frame["variant"]))
    fig.update_layout(title={"text": title}, bargap=0.25, bargroupgap=0.06)
    fig.update_xaxes(title="", showgrid=False, ticks="")
    fig.update_yaxes(title="mean score", range=[0, 1.04], tickformat=".0%")
    return style.legend_above(fig)


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
    frame = style.escaped(frame.assign(task=task_names(frame)), "variant", "task")
    frame = frame.assign(unit=[_unit(metric) for metric in frame["metric"]])
    tasks = frame.groupby("unit", sort=False)["task"].nunique()
    fig = style.new_panels(title, 1, len(tasks), column_widths=list(tasks + 1), horizontal_spacing=0.09)
    styles = style.variant_styles(frame["variant"])
    frame = score_intervals(frame)
    for column, unit in enumerate(tasks.index, start=1):
        style.add_panel(fig, _interval_bars(frame[frame["unit"] == unit], "task", styles), column)
        share = {"range": [0, 1.02]} if unit == "score" else {}
        fig.update_yaxes(title=unit, rangemode="tozero", col=column, **share)
    fig.update_xaxes(showgrid=False, automargin=True, tickangle=-30)
    # above the bars: below them the names of many tasks need the room
    return style.legend_above(fig.update_layout(barmode="group", bargap=0.2, bargroupgap=0.05))


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
    frame = frame.assign(task=task_names(frame)).rename(columns=lambda name: name.replace("_", " "))
    rows = style.escaped(frame, "variant", "task")
    rows = rows.melt(["variant", "task", "n"], [*_TURNED], "turned", "count")
    signs = rows["turned"].map({"right to wrong": -1, "wrong to right": 1})
    labels = rows["count"].map(lambda count: f"{count}" if count else "")
    rows = rows.assign(label=labels, share=signs * rows["count"] / rows["n"])
    panels = {"facet_col": "variant", "facet_col_spacing": 0.03, "height": 205 + 30 * frame["task"].nunique()}
    hover = "%{y}: %{customdata[0]} of %{customdata[1]} %{fullData.name}"
    shown = {"text": "label", "custom_data": ["count", "n"], "hover": hover, "title": title}
    fig = style.draw(px.bar, rows, "share", "task", _TURNED, "turned", **panels, **shown)
    fig.update_traces(textposition="outside")
    # shares, since tasks may have different numbers of items; one scale for all panels
    reach = max(0.1, 1.3 * float(rows["share"].abs().max()))
    fig.update_xaxes(zeroline=True, zerolinecolor=style.INK, nticks=4)
    fig.update_xaxes(title="share of items", range=[-reach, reach], tickformat=".0%")
    fig.update_yaxes(title="", autorange="reversed", showgrid=False, ticks="")
    return style.legend_below(style.facet_titles(fig).update_layout(bargap=0.3))


def _fraction_panels(
    frame: pd.DataFrame, guesses: Mapping[str, float], columns: int, title: str | None
) -> go.Figure:
    """Return one panel a task, with a line a series and the line of a guess."""
    frame = score_intervals(frame).assign(panel=task_names(frame))
    checked(frame, [], "scores", unique=("series", "panel", "fraction"))
    frame = style.escaped(frame, "series", "panel")
    tasks = frame.drop_duplicates("panel").set_index("panel")["task"]
    most = max(float(frame["fraction"].max()), 0.1)
    span = [-0.03 * most, 1.06 * most]
    guess = pd.DataFrame([(task, x) for task in tasks.index for x in span], columns=["panel", "fraction"])
    guess = guess.assign(series=_GUESS, value=guess["panel"].map(tasks).map(guesses), note="")
    styles = _series_styles(frame)
    lines = _noted(_from_the_whole(frame, [*styles])).sort_values("fraction", kind="stable")
    rows = pd.concat([guess.dropna(subset="value"), lines])
    across = max(1, min(columns, len(tasks)))
    down = -(-len(tasks) // across)
    panels = {"facet_col": "panel", "facet_col_wrap": across, "category_orders": {"panel": list(tasks.index)}}
    panels |= {"facet_col_spacing": 0.04, "facet_row_spacing": 0.25 / down}
    styles = {_GUESS: style.Style("#8b9199", "dash"), **styles}
    shown = {"custom_data": "note", "hover": "%{fullData.name}<br>%{customdata[0]}<br>%{y:.3f}"}
    lines = {"markers": True, "error_y": ("low", "high"), "title": title}
    fig = style.draw(px.line, rows, "fraction", "value", styles, "series", **lines, **panels, **shown)
    fig.for_each_trace(_mark_line)
    fig.update_xaxes(range=span, tickformat=".0%", title="", showticklabels=True)
    fig.update_xaxes(title="layers dropped", row=1)
    height = 110 + down * (0.55 * style.current_template().layout.height)
    return style.legend_below(style.facet_titles(fig).update_layout(height=height))


def _series_styles(frame: pd.DataFrame) -> dict[str, style.Style]:
    """Return the style of each line: solid where healed, dotted where not, marks that can be open."""
    series = frame.groupby("series", sort=False)
    most, healed = series["fraction"].max(), series["healed"].any()
    styles = style.variant_styles(most.index[most > 0]) or style.variant_styles(most.index)
    for name, one in styles.items():
        symbol = "circle" if one.symbol in ("x", "cross", "star") else one.symbol
        styles[name] = replace(one, line_dash="solid" if healed[name] else "dot", symbol=symbol)
    return styles


def _from_the_whole(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return the rows of these series; the whole model begins those without a point of their own at 0."""
    own = frame[frame["series"].isin(names)]
    whole = frame[~frame["series"].isin(names) & (frame["fraction"] == 0)].drop_duplicates("panel")
    least = own.groupby(["series", "panel"], as_index=False, sort=False)["fraction"].min()
    lacking = least.loc[least["fraction"] > 0, ["series", "panel"]]
    return pd.concat([whole.drop(columns="series").merge(lacking, on="panel"), own], ignore_index=True)


def _noted(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with a note for the hover: the layers that are out, the number of items."""
    removed = rows["removed"].map(style.plain) if "removed" in rows else pd.Series("", rows.index)
    notes = ("layers " + removed + " out").where(removed != "", "whole model")
    return rows.assign(note=notes + rows["n"].map(", {:.0f} items".format) if "n" in rows else notes)


def _mark_line(trace: go.Scatter) -> None:
    if trace.name == _GUESS:
        trace.update(mode="lines", line_width=1.4, hovertemplate="random guess %{y:.3g}<extra></extra>")
        return
    color = trace.line.color
    fill = color if trace.line.dash == "solid" else "white"
    marker = {"size": 8, "color": fill, "line": {"color": color, "width": 1.8}}
    trace.update(line_width=2.2, marker=marker, error_y={"color": color, "thickness": 1.1})


def _unit(metric: str) -> str:
    name = str(metric).split(",")[0]
    own = any(word in name for word in ("perplexity", "loss", "bits_per_byte"))
    return style.plain(name) if own else "score"


def _interval_bars(rows: pd.DataFrame, by: str, styles: dict[str, style.Style]) -> go.Figure:
    """Return a group of bars with intervals for each value of a column, one bar a variant."""
    hover = "%{fullData.name}<br>%{x} %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]"
    ends = {"custom_data": ["low", "high"], "error_y": ("low", "high")}
    return style.draw(px.bar, rows, by, "value", styles, barmode="group", hover=hover, **ends)
