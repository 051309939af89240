"""Figures of scores: against the fraction of layers dropped, by category, and what turned. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.checks import checked
from workbench.evaluation.scores import accuracies, headline, score_intervals, task_names
from workbench.evaluation.suites import CHANCE
from workbench.plots import axes, style
from workbench.tables.markup import task_label

_FRACTION = ["task", "metric", "value", "stderr", "series", "healed", "fraction"]
_GUESS = "random guess"
_WHOLE = "whole model"
_SIGNS = {"right to wrong": -1, "wrong to right": 1}


def score_vs_fraction(
    scores: pd.DataFrame,
    *,
    chance: Mapping[str, float] | None = None,
    columns: int = 3,
    title: str | None = "Score against the share of layers dropped",
) -> go.Figure:
    """Draw each task's score against the fraction of layers dropped, as in GRO figures 2 and 7.

    A line joins the measured blocks of a series of three or more; of fewer only the marks are drawn. Healed
    models are solid with filled marks, models that were not healed dotted with open marks; the whole model
    stands alone at 0, a dashed grey line is the score of a uniform guess.

    Args:
        scores: rows of ``scores_by_depth`` and ``at_fractions`` under each other: ``task, metric, value,
            stderr, series, healed, fraction``, and ``n`` where there. The whole model (fraction 0) is drawn
            once a task, from the most items that it was asked.
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
        scores: as for ``score_vs_fraction``; rows whose metric is ``normalized_loss`` are drawn, on
            a log scale over their range; the loss of a uniform guess, 1, is drawn where one is above 0.5.
        columns: panels beside each other, one a set of texts.
        title: of the figure.

    Raises:
        ValueError: for missing columns, no such row, or a series with two losses at one fraction.
    """
    frame = checked(scores, _FRACTION, "scores")
    frame = frame[frame["metric"] == "normalized_loss"]
    frame = checked(frame, _FRACTION, "scores with the metric normalized_loss")
    near = float(frame["value"].max()) > 0.5
    fig = _fraction_panels(frame, dict.fromkeys(frame["task"], 1.0) if near else {}, columns, title)
    lowest = frame["value"] - 2 * frame["stderr"].fillna(0)
    ends = pd.concat([lowest, frame["value"], pd.Series([1.0] * near)])
    fig.update_yaxes(**axes.log_axis(ends, 0.9 * float(ends[ends > 0].min())))
    return fig.update_yaxes(title="loss / log(vocabulary), log", col=1)


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
    fig = style.new_panels(title, 1, 1)
    _add_interval_panel(fig, frame.assign(label=frame["category"]), "mean score", 1)
    height = _rows_height(frame["category"].nunique(), frame["variant"].nunique())
    return style.legend_above(fig.update_layout(height=height + style.px_of(150)))


def score_bars(scores: pd.DataFrame, *, title: str | None = "Scores with 95 % intervals") -> go.Figure:
    """Draw every task's score per variant with its interval; perplexities get a panel of their own below.

    Args:
        scores: rows of ``evaluate`` with a column ``variant``: ``variant``, ``task``, ``metric``, ``value``,
            ``stderr``, and ``n`` where there. One metric a task is drawn, the one that papers report.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = headline(checked(scores, ["variant", "task", "metric", "value", "stderr"], "scores"))
    frame = score_intervals(frame.assign(label=task_names(frame).map(task_label)))
    frame = style.escaped(frame, "variant", "label")
    frame = frame.assign(unit=[_unit(metric) for metric in frame["metric"]])
    tasks, n_variants = frame.groupby("unit", sort=False)["label"].nunique(), frame["variant"].nunique()
    heights = [_rows_height(count, n_variants) for count in tasks]
    whole = sum(heights) + style.px_of(80) * len(heights)
    gap = style.px_of(80) / whole
    fig = style.new_panels(title, len(tasks), 1, row_heights=heights, vertical_spacing=gap)
    for row, unit in enumerate(tasks.index, start=1):
        _add_interval_panel(fig, frame[frame["unit"] == unit], unit, row)
    return style.legend_above(fig.update_layout(height=whole + style.px_of(70)))


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
    frame = checked(flips, ["variant", "task", "n", *(turn.replace(" ", "_") for turn in _SIGNS)], "flips")
    frame = frame.assign(task=task_names(frame).map(task_label))
    rows = style.escaped(frame.rename(columns=lambda name: name.replace("_", " ")), "variant", "task")
    rows = rows.melt(["variant", "task", "n"], [*_SIGNS], "turned", "count")
    rows = rows.assign(share=rows["turned"].map(_SIGNS) * rows["count"] / rows["n"])
    rows = rows.assign(label=rows["count"].map(lambda count: f"{count}" if count else ""))
    n_rows = (frame["task"].nunique(), frame["variant"].nunique())
    hover = "%{y}: %{customdata[0]} of %{customdata[1]} %{customdata[2]}"
    shown = {"text": "label", "custom_data": ["count", "n", "turned"], "hover": hover, "title": title}
    height = _rows_height(*n_rows) * 1.15 + style.px_of(150)
    size: dict[str, Any] = {"height": height, "barmode": "group", "orientation": "h"}
    fig = style.draw(px.bar, rows, "share", "task", **shown, **size)
    fig.update_traces(textposition="outside", textfont={"size": style.small(), "color": style.INK})
    # shares, since tasks may have different numbers of items
    reach = max(0.1, 1.3 * float(rows["share"].abs().max()))
    step = next(step for step in (0.05, 0.1, 0.2, 0.25, 0.5, 1) if reach / step <= 3 or step == 1)
    at = [step * place for place in range(-int(reach / step), int(reach / step) + 1)]
    ticks = {"tickvals": at, "ticktext": [f"{abs(one):.0%}" for one in at], "range": [-reach, reach]}
    sides = "← right to wrong\u2003\u2003wrong to right →<br>(share of items)"
    fig.update_xaxes(title=sides, zeroline=True, zerolinecolor=style.INK, **ticks)
    fig.update_yaxes(title="", autorange="reversed", showgrid=False, ticks="")
    return style.legend_above(fig.update_layout(bargap=0.25))


def _fraction_panels(
    frame: pd.DataFrame, guesses: Mapping[str, float], columns: int, title: str | None
) -> go.Figure:
    """Return one panel a task, with a line a series and the line of a guess."""
    frame = score_intervals(frame).assign(panel=task_names(frame).map(task_label))
    checked(frame, [], "scores", unique=("series", "panel", "fraction"))
    frame = style.escaped(frame, "series", "panel")
    tasks = frame.drop_duplicates("panel").set_index("panel")["task"]
    most = max(float(frame["fraction"].max()), 0.1)
    span = [-0.05 * most, 1.06 * most]
    guess = pd.DataFrame([(task, x) for task in tasks.index for x in span], columns=["panel", "fraction"])
    guess = guess.assign(series=_GUESS, value=guess["panel"].map(tasks).map(guesses), note="")
    styles = {_GUESS: style.Style("#8b9199", "dash"), **_series_styles(frame)}
    rows = pd.concat([guess.dropna(subset="value"), _noted(_in_series(frame))])
    across = max(1, min(columns, len(tasks), 2 if style.narrow() else columns))
    down = -(-len(tasks) // across)
    panels = {"facet_col": "panel", "facet_col_wrap": across, "category_orders": {"panel": list(tasks.index)}}
    panels |= {"facet_col_spacing": 0.04 * (1 + style.narrow()), "facet_row_spacing": 0.28 / down}
    shown = {"custom_data": "note", "hover": "%{fullData.name}<br>%{customdata[0]}<br>%{y:.3f}"}
    lines = {"markers": True, "error_y": ("low", "high"), "title": title}
    fig = style.draw(px.line, rows, "fraction", "value", styles, "series", **lines, **panels, **shown)
    fig.for_each_trace(_mark_line)
    fig.update_xaxes(range=span, tickformat=".0%", showticklabels=True, nticks=5)
    axes.title_below(fig, "layers dropped", len(tasks), across)
    height = style.px_of(150) + down * style.px_of(260)
    return style.legend_below(style.facet_titles(fig).update_layout(height=height))


def _series_styles(frame: pd.DataFrame) -> dict[str, style.Style]:
    """Return the style of each series: solid where healed, dotted where not, marks that can be open."""
    series = frame.groupby("series", sort=False)
    most, healed = series["fraction"].max(), series["healed"].any()
    styles = style.variant_styles(most.index[most > 0])
    for name, one in styles.items():
        symbol = "circle" if one.symbol in ("x", "cross", "star") else one.symbol
        styles[name] = replace(one, line_dash="solid" if healed[name] else "dot", symbol=symbol)
    return {_WHOLE: style.Style("#5c6370", "solid", "square"), **styles}


def _in_series(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each series and of the whole model.

    Each long line begins at the whole model on its own items where it has them, so that it tells no rise
    that is one of other items.
    """
    whole = frame[frame["fraction"] == 0].sort_values("n" if "n" in frame else "panel", kind="stable")
    whole = whole.drop_duplicates("panel", keep="last")
    own = frame[frame["fraction"] > 0].sort_values("fraction", kind="stable")
    lengths = own.groupby(["series", "panel"], sort=False)["fraction"].size()
    long = lengths[lengths >= 2].index.to_frame(index=False)
    own_whole = frame[frame["fraction"] == 0].merge(long, on=["series", "panel"])
    begun = whole.drop(columns="series").merge(long, on="panel")
    begun = pd.concat([own_whole, begun]).drop_duplicates(["series", "panel"])
    begun = begun.assign(low=float("nan"), high=float("nan"))
    return pd.concat([whole.assign(series=_WHOLE), begun, own], ignore_index=True)


def _noted(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with a note for the hover: the layers that are out, the number of items."""
    removed = rows["removed"].map(style.plain) if "removed" in rows else pd.Series("", rows.index)
    notes = ("layers " + removed + " out").where(removed != "", "whole model")
    return rows.assign(note=notes + rows["n"].map(", {:.0f} items".format) if "n" in rows else notes)


def _mark_line(trace: go.Scatter) -> None:
    if trace.name == _GUESS:
        trace.update(mode="lines", line_width=1.2, hovertemplate="random guess %{y:.3g}<extra></extra>")
        return
    color = trace.line.color
    fill = color if trace.line.dash == "solid" else "white"
    marker = {"size": style.px_of(8), "color": fill, "line": {"color": color, "width": style.px_of(1.8)}}
    trace.update(line_width=style.px_of(2), marker=marker, error_y={"color": color, "thickness": 1})
    if len(trace.x) < 3:  # nothing was measured between
        trace.mode = "markers"


def _unit(metric: str) -> str:
    name = str(metric).split(",")[0]
    own = any(word in name for word in ("perplexity", "loss", "bits_per_byte"))
    return style.plain(name.replace("_", " ")) if own else "score"


def _rows_height(rows: int, names: int) -> float:
    """Return the height of so many rows with one mark a name in each."""
    return rows * style.px_of(14 + 11 * names)


def _add_interval_panel(fig: go.Figure, rows: pd.DataFrame, unit: str, row: int) -> None:
    """Draw a row for each ``label``, in it a mark with its interval for each variant, one below the other."""
    hover = "%{fullData.name}<br>%{y} %{x:.3f}%{customdata[0]}"
    rows = rows.assign(spread=[style.bracketed(*pair) for pair in rows[["low", "high"]].to_numpy()])
    ends = {"custom_data": "spread", "error_x": ("low", "high"), "orientation": "h"}
    dots = style.draw(px.scatter, rows, "value", "label", hover=hover, **ends)
    dots.update_traces(marker_size=style.px_of(8), cliponaxis=False)
    dots.for_each_trace(lambda dot: dot.update(offsetgroup=dot.name, error_x_color=dot.marker.color))
    style.add_panel(fig, dots, 1, row)
    fig.update_layout(scattermode="group", scattergap=0.25)
    share = {"range": [-0.02, 1.03], "tickformat": ".0%"} if "score" in unit else {}
    fig.update_xaxes(title=unit, showgrid=True, row=row, **share)
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="", row=row)
