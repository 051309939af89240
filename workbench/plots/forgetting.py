"""Figures of how far responses moved: pairs, a map, form and length, divergence, loss against similarity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.express as px
import plotly.graph_objects as go

from workbench.checks import checked
from workbench.evaluation.scores import task_names
from workbench.forgetting.changes import BARE, FORMS, NO_ANSWER, change_summary
from workbench.forgetting.shift import shift_agreement
from workbench.plots import style
from workbench.statistics import bootstrap_interval

#: nats per token; divergences span decades, and those below this are drawn at it
KL_FLOOR = 1e-4
_FORM_STYLES = {
    form: style.Style(**look)
    for form, look in zip((*FORMS, BARE, NO_ANSWER), style.LOOK["forms"], strict=True)
}
#: columns of the real numbers of a mark -> what they are in the file of the data
_REAL = {"real": "x", "above": "error_x", "under": "error_x_minus"}
_REFERENCE = {"color": "#8b9199", "width": 1.2, "dash": "dash"}


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
    fig = _spreads(frame, "similarity", title, ".3f")
    lowest = min(0.0, float(frame["similarity"].min()))
    fig.update_xaxes(range=[lowest - 0.03, 1.04])
    return fig.update_xaxes(title="cosine similarity to the unpruned model's response")


def similarity_pairs(
    similarities: pd.DataFrame, *, title: str | None = "The same prompts, ordered by the farthest variant"
) -> go.Figure:
    """Draw every prompt's similarities above each other, prompts ordered by the variant that moved farthest.

    One line joins the variants' responses to one prompt: it shows whether a variant is closer to the base on
    every prompt, or on the average only.

    Args:
        similarities: frame of ``response_similarity`` for several variants: ``variant``, ``id``,
            ``similarity``.
        title: of the figure.

    Raises:
        ValueError: for missing columns, an empty frame, or variants that answered different prompts.
    """
    frame = checked(similarities, ["variant", "id", "similarity"], "similarities")
    table = frame.pivot(index="id", columns="variant", values="similarity")
    table = table[[*dict.fromkeys(frame["variant"])]]
    if table.isna().any(axis=None):
        raise ValueError("similarities must hold every id for every variant, so that prompts can be compared")
    order = table.mean().idxmin()
    table = table.sort_values([order, *(name for name in table if name != order)], kind="stable")
    place = np.arange(1, len(table) + 1)
    rows = table.assign(place=place).reset_index().melt(["place", "id"], var_name="variant")
    rows = style.escaped(rows, "variant", "id")
    # open: where variants agree, all of them are seen
    styles = style.variant_styles(rows["variant"])
    styles = {name: replace(one, symbol=f"{one.symbol}-open") for name, one in styles.items()}
    hover = "%{fullData.name}<br>%{customdata[0]}<br>similarity %{y:.3f}"
    shown = {"custom_data": "id", "hover": hover, "title": title}
    fig = style.draw(px.scatter, rows, "place", "value", styles, **shown)
    fig.update_traces(marker={"size": 7, "line": {"width": 1.4}})
    links = _links((place, table.min(axis=1)), (place, table.max(axis=1)))
    fig = go.Figure([links, *fig.data], fig.layout)
    fig.update_xaxes(title=f"prompt, ordered by the similarity of {style.plain(order)}", showgrid=False)
    lowest = min(0.0, float(rows["value"].min()))
    fig.update_yaxes(title="similarity to the<br>unpruned model's response", range=[lowest - 0.02, 1.03])
    return style.legend_above(fig)


def answer_forms(
    changes: pd.DataFrame,
    *,
    title: str | None = "How the responses state their answer, and how long they are",
) -> go.Figure:
    """Draw the share of each form of answer, and the length of the responses relative to the base's.

    Args:
        changes: frame of ``response_changes``, the base's own rows included.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(changes, ["variant", "form", "length", "base_length"], "changes")
    frame = style.escaped(frame, "variant")
    summary = change_summary(frame)
    names = list(summary["variant"])
    shares = pd.crosstab(frame["variant"], frame["form"], normalize="index").loc[names]
    wide = {"column_widths": [0.62, 0.38], "shared_yaxes": True, "horizontal_spacing": 0.08}
    titles = ["form of the answer", "length against the base's"]
    fig = style.new_panels(title, 1, 2, subplot_titles=titles, **wide)
    style.add_panel(fig, _form_bars(shares), 1)
    style.add_panel(fig, _ratio_marks(summary), 2)
    fig.add_vline(x=1, line=_REFERENCE, row=1, col=2)
    fig.update_xaxes(title="share of responses", range=[0, 1], tickformat=".0%", col=1)
    longest = float(np.nanmax([summary["ci_high"].max(), summary["length_ratio"].max(), 1.0]))
    fig.update_xaxes(title="times as long", range=[0, 1.12 * longest], col=2)
    fig.update_yaxes(autorange="reversed", showgrid=False, ticks="")
    fig.update_layout(height=190 + 42 * len(names), barmode="stack", bargap=0.35)
    return style.legend_below(fig).update_layout(legend_traceorder="normal", margin_t=84 if title else 40)


def divergence_distribution(
    by_response: pd.DataFrame,
    *,
    title: str | None = "Next-token divergence from the base, on the base's own responses",
) -> go.Figure:
    """Draw each variant's divergence, a dot a response, with the mean and its interval, on a log scale.

    Args:
        by_response: frame of ``divergence_by_response``: ``variant``, ``kl`` (nats per token), ``n_tokens``.
            The mean is over tokens; its interval resamples responses.
        title: of the figure.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    frame = checked(by_response, ["variant", "kl", "n_tokens"], "by_response")
    fig = _spreads(frame, "kl", title, ".3g", unit=" nats per token", weigh="n_tokens", drawn_at=_decades)
    highest = max(1.0, float(np.ceil(_decades(frame["kl"]).max())))
    decades = np.arange(np.log10(KL_FLOOR), highest + 1)
    labels = [f"≤ {KL_FLOOR:g}", *(f"{10.0**decade:g}" for decade in decades[1:])]
    fig.update_xaxes(tickvals=decades, ticktext=labels, range=[decades[0] - 0.15, highest + 0.1])
    return fig.update_xaxes(title="mean KL(base || variant), nats per token")


def similarity_map(
    points: pd.DataFrame, *, base: str = "base", title: str | None = "Where the responses lie"
) -> go.Figure:
    """Draw the base's and each variant's responses in the plane of their embeddings, the same prompt joined.

    One panel a variant on the same axes; the base's responses are in every panel.

    Args:
        points: frame of ``embedding_map``: ``variant, id, x, y, x_share, y_share``.
        base: the variant that the others are joined to.
        title: of the figure.

    Raises:
        ValueError: for missing columns, an empty frame, no such base or no other variant.
    """
    frame = checked(points, ["variant", "id", "x", "y", "x_share", "y_share"], "points")
    there = list(frame["variant"].unique())
    names = [name for name in there if name != base]
    if len(names) == len(there) or not names:
        raise ValueError(f"points must hold base {base!r} and another variant, got {there}")
    shared = {"shared_xaxes": "all", "shared_yaxes": "all", "horizontal_spacing": 0.03}
    fig = style.new_panels(title, 1, len(names), subplot_titles=[*map(style.plain, names)], **shared)
    styles = style.variant_styles(map(style.plain, [base, *names]))
    styles[style.plain(base)] = replace(styles[style.plain(base)], symbol="circle-open")
    own = frame[frame["variant"] == base].set_index("id")
    for column, name in enumerate(names, start=1):
        other = frame[frame["variant"] == name].set_index("id").loc[own.index]
        rows = style.escaped(pd.concat([own, other]).reset_index(), "variant", "id")
        shown = {"custom_data": "id", "hover": "%{fullData.name}<br>%{customdata[0]}"}
        points = style.draw(px.scatter, rows, "x", "y", styles, **shown)
        points.update_traces(marker={"size": 5, "opacity": 0.8})
        links = _links((own["x"], own["y"]), (other["x"], other["y"]))
        style.add_panel(fig, go.Figure([links, *points.data]), column)
    x_share, y_share = frame[["x_share", "y_share"]].iloc[0]
    middle = (len(names) + 1) // 2
    fig.update_xaxes(title=f"first direction ({x_share:.0%} of the variance)", col=middle)
    fig.update_yaxes(title=f"second direction ({y_share:.0%})", col=1)
    return style.legend_below(fig).update_layout(margin={"t": 80})


def loss_similarity(
    losses: pd.DataFrame, *, title: str | None = "Is a shift of the answers a sign of lost accuracy?"
) -> go.Figure:
    """Draw the accuracy lost on each task against the similarity of the answers, with both intervals.

    Args:
        losses: frame of ``loss_against_similarity``.
        title: of the figure; Spearman's correlation over the points is written under it.

    Raises:
        ValueError: for missing columns or an empty frame.
    """
    sides = ["lost", "lost_low", "lost_high", "similarity", "similarity_low", "similarity_high"]
    frame = checked(losses, ["variant", "task", *sides], "losses")
    correlation = _correlation(frame)
    frame = style.escaped(frame.assign(task=task_names(frame)), "variant", "task")
    # the tasks that lost much are named; the others crowd at the right end
    rows = frame.assign(label=frame["task"].where(frame["lost"] >= 0.1, ""))
    ends = {"error_x": ("similarity_low", "similarity_high"), "error_y": ("lost_low", "lost_high")}
    hover = "%{fullData.name}<br>%{customdata[0]}<br>similarity %{x:.3f}, lost %{y:+.3f}"
    shown = {"text": "label", "custom_data": "task", "hover": hover, "title": title}
    fig = style.draw(px.scatter, rows, "similarity", "lost", **ends, **shown)
    fig.for_each_trace(_loss_marks)
    fig.add_hline(y=0, line=_REFERENCE)
    lowest = min(0.0, float(frame["similarity_low"].min()))
    fig.update_xaxes(title="mean similarity of the task's answers to the base's", range=[lowest - 0.02, 1.04])
    low, high = min(0.0, float(frame["lost_low"].min())), max(0.2, float(frame["lost_high"].max()))
    room = 0.08 * (high - low)
    fig.update_yaxes(title="accuracy lost", tickformat="+.0%", range=[low - room, high + room])
    corner = {"xref": "paper", "yref": "paper", "x": 1, "y": 1, "xanchor": "right", "yanchor": "top"}
    fig.add_annotation(text=correlation, showarrow=False, bgcolor="rgba(255,255,255,0.85)", **corner)
    return style.legend_above(fig)


def _links(starts: tuple[Any, Any], ends: tuple[Any, Any]) -> go.Scatter:
    """Return thin lines from points to points, both given as their x and their y."""
    gap = np.full(len(starts[0]), np.nan)
    x, y = (np.stack([*pair, gap], axis=1).ravel() for pair in zip(starts, ends, strict=True))
    line = {"color": "#c9cdd2", "width": 1}
    return go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)


def _form_bars(shares: pd.DataFrame) -> go.Figure:
    rows = shares.reset_index().melt("variant", var_name="form", value_name="share")
    hover = "%{y}: %{x:.1%} %{fullData.name}"
    fig = style.draw(px.bar, rows, "share", "variant", _FORM_STYLES, "form", hover=hover)
    return fig.update_traces(marker_line={"color": "white", "width": 1})


def _ratio_marks(summary: pd.DataFrame) -> go.Figure:
    texts = summary["length_ratio"].map(lambda ratio: "" if np.isnan(ratio) else f"{ratio:.2f}")
    ends = {"custom_data": ["ci_low", "ci_high"], "error_x": ("ci_low", "ci_high")}
    shown = {"text": "label", "hover": "%{y}: %{x:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]"}
    fig = style.draw(px.scatter, summary.assign(label=texts), "length_ratio", "variant", **ends, **shown)
    return fig.update_traces(marker_size=9, textposition="top center", showlegend=False)


def _correlation(frame: pd.DataFrame) -> str:
    """Return Spearman's correlation of shift and loss as text."""
    found = shift_agreement(frame)
    known = "Spearman of shift and loss {spearman:.2f} [{ci_low:.2f}, {ci_high:.2f}], {n_points} tasks"
    beside = "<br>of the share of changed answers and loss {changed_spearman:.2f}"
    text = known + (beside if np.isfinite(found["changed_spearman"]) else "")
    return str(found["note"]) or text.format(**found)


def _loss_marks(trace: go.Scatter) -> None:
    thin = {"color": trace.marker.color, "thickness": 0.9, "width": 0}
    sides = ["top left" if x > 0.5 else "top right" for x in trace.x]
    trace.update(error_x=thin, error_y=thin, marker_size=9)
    trace.update(textposition=sides, textfont_size=11, cliponaxis=False)


def _decades(values: Any) -> Any:
    return np.log10(np.maximum(np.asarray(values, dtype=float), KL_FLOOR))


def _spreads(
    frame: pd.DataFrame,
    value: str,
    title: str | None,
    number: str,
    *,
    unit: str = "",
    weigh: str | None = None,
    drawn_at: Callable[[Any], Any] = np.asarray,
) -> go.Figure:
    """Return each variant's distribution: half a violin, a dot a response, the mean with its interval.

    Args:
        frame: one row a response.
        value: the column to draw.
        title: of the figure.
        number: format of the numbers that are written.
        unit: written after the number of a response.
        weigh: column of weights of the mean, if any.
        drawn_at: where a value lies on the axis.
    """
    # a fixed jitter: the same frame gives the same picture
    jitter = 0.1 + 0.2 * np.random.default_rng(0).random(len(frame))
    place, label = pd.factorize(frame["variant"])[0], [f"{one:{number}}{unit}" for one in frame[value]]
    frame = frame.assign(at=drawn_at(frame[value].astype(float)), place=place, label=label)
    frame = style.escaped(frame.assign(below=frame["place"] + jitter), "variant")
    styles = style.variant_styles(frame["variant"])
    means = _means(frame, value, weigh)
    numbers = means[["mean", "low", "high"]].to_numpy()
    about = [f"mean {mean:{number}} [{low:{number}}, {high:{number}}]" for mean, low, high in numbers]
    means = means.assign(about=about, real=numbers[:, 0], above=numbers[:, 2] - numbers[:, 0])
    means = means.assign(under=means["real"] - numbers[:, 1])
    means[["mean", "low", "high"]] = drawn_at(numbers)
    shown = {"custom_data": ["label", value], "hover": "%{customdata[0]}"}
    dots = style.draw(px.scatter, frame, "at", "below", styles, **shown)
    dots.for_each_trace(lambda dot: dot.update(meta={"x": [one[1] for one in dot.customdata]}))
    opacity = float(np.clip(60 * len(styles) / len(frame), 0.15, 0.7))
    dots.update_traces(marker={"size": 4, "opacity": opacity, "symbol": "circle"})
    shown = {"custom_data": ["about", *_REAL], "hover": "%{fullData.name}<br>%{customdata[0]}"}
    marks = style.draw(px.scatter, means, "mean", "place", styles, error_x=("low", "high"), **shown)
    line = {"color": style.INK, "width": 1.8}
    marks.update_traces(error_x={"thickness": 2, "width": 5})
    for mark in marks.data:
        columns = zip(*(one[1:] for one in mark.customdata), strict=True)
        mark.meta = dict(zip(_REAL.values(), map(list, columns), strict=True))
    marks.update_traces(marker={"symbol": "diamond", "size": 10, "color": "white", "line": line})
    violins = [_half_violin(frame[frame["variant"] == name], one, value) for name, one in styles.items()]
    fig = style.new_figure(title, *violins, *dots.data, *marks.data)
    ticks = [f"{row.variant}<br>{row.about}<br>{row.n} responses" for row in means.itertuples()]
    span = [len(ticks) - 0.35, -0.65]
    fig.update_yaxes(tickvals=means["place"], ticktext=ticks, range=span, showgrid=False)
    return fig.update_layout(height=150 + 105 * len(styles), showlegend=False)


def _means(frame: pd.DataFrame, value: str, weigh: str | None) -> pd.DataFrame:
    """Return the mean of each variant with its interval and the number of its rows."""
    rows = []
    for names, part in frame.groupby(["variant", "place"], sort=False):
        weights = part[weigh] if weigh else None
        interval = bootstrap_interval(part[value], weights=weights)
        rows.append((*names, len(part), np.average(part[value], weights=weights), *interval))
    return pd.DataFrame(rows, columns=["variant", "place", "n", "mean", "low", "high"])


def _half_violin(rows: pd.DataFrame, own_style: style.Style, value: str) -> go.Violin:
    """Return half a violin above the line of a variant; its width is its own, not that of the others."""
    shape = {"orientation": "h", "side": "negative", "spanmode": "hard", "width": 0.9, "points": False}
    color = {"line": {"color": own_style.color, "width": 1.2}, "fillcolor": own_style.color, "opacity": 0.45}
    real = {"hoverinfo": "skip", "meta": {"x": rows[value].tolist()}}
    return go.Violin(x=rows["at"], y0=rows["place"].iloc[0], **real, **shape, **color)
